-- What is kept of a sandbox that is paused by itself, since when it is paused, the snapshot that holds its files while
-- nothing else of it is kept, and the snapshot that it was made from.
ALTER TABLE sandboxes ADD COLUMN auto_pause TEXT NOT NULL DEFAULT 'memory' CHECK (auto_pause IN ('memory', 'files'));
ALTER TABLE sandboxes ADD COLUMN paused INTEGER;
ALTER TABLE sandboxes ADD COLUMN saved BLOB CHECK (saved IS NULL OR length(saved) = 16);
ALTER TABLE sandboxes ADD COLUMN from_snapshot BLOB CHECK (from_snapshot IS NULL OR length(from_snapshot) = 16);

-- `sandbox` is the one that it was made of, which may be gone; `spec` is JSON.
CREATE TABLE snapshots (
    id BLOB PRIMARY KEY CHECK (length(id) = 16),
    user BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT,
    sandbox BLOB NOT NULL CHECK (length(sandbox) = 16),
    spec TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    files INTEGER NOT NULL,
    durable INTEGER NOT NULL,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX snapshots_by_name ON snapshots (user, name) WHERE name IS NOT NULL;
CREATE INDEX snapshots_by_user ON snapshots (user, created, id);
