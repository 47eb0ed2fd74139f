-- Users and what hangs on them. Ids are their 16 bytes, times are milliseconds since 1970, hashes are 32 bytes.
-- Every table but `templates` and `settings` has the user in each row, and goes with the user.

CREATE TABLE users (
    id BLOB PRIMARY KEY CHECK (length(id) = 16),
    name TEXT NOT NULL UNIQUE,
    operator INTEGER NOT NULL CHECK (operator IN (0, 1)),
    limits TEXT NOT NULL,
    preference TEXT NOT NULL,
    created INTEGER NOT NULL,
    disabled INTEGER
) STRICT, WITHOUT ROWID;

-- Who a provider's subject is here.
CREATE TABLE subjects (
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    user BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created INTEGER NOT NULL,
    PRIMARY KEY (issuer, subject)
) STRICT, WITHOUT ROWID;
CREATE INDEX subjects_by_user ON subjects (user);

CREATE TABLE api_keys (
    id BLOB PRIMARY KEY CHECK (length(id) = 16),
    user BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    scopes TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER,
    revoked INTEGER,
    last_used INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_by_user ON api_keys (user, created, id);

CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    user BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    scopes TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    ended INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_user ON sessions (user, created, id);

CREATE TABLE machines (
    id BLOB PRIMARY KEY CHECK (length(id) = 16),
    user BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    public_key BLOB NOT NULL UNIQUE CHECK (length(public_key) = 32),
    facts TEXT NOT NULL,
    level TEXT NOT NULL,
    joined INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    removed INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX machines_by_user ON machines (user, joined, id);

CREATE TABLE enrolment_tokens (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    user BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    used_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX enrolment_tokens_by_user ON enrolment_tokens (user, expires);

-- The three sums are the spec's own numbers, apart so that one index answers what a user has; `ended` is in it so that
-- the rows themselves need not be looked at.
CREATE TABLE sandboxes (
    id BLOB PRIMARY KEY CHECK (length(id) = 16),
    user BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT,
    spec TEXT NOT NULL,
    cpu_milli INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL,
    disk_bytes INTEGER NOT NULL,
    phase TEXT NOT NULL CHECK (phase IN ('starting', 'running', 'stopping', 'ended')),
    created INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    ended INTEGER,
    ended_why TEXT,
    CHECK ((phase = 'ended') = (ended IS NOT NULL))
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX sandboxes_alive_by_name ON sandboxes (user, name) WHERE ended IS NULL AND name IS NOT NULL;
CREATE INDEX sandboxes_alive_by_user ON sandboxes (user, cpu_milli, memory_bytes, disk_bytes, ended)
    WHERE ended IS NULL;
CREATE INDEX sandboxes_by_user ON sandboxes (user, created, id);
CREATE INDEX sandboxes_by_end ON sandboxes (ended) WHERE ended IS NOT NULL;

-- Shared by all users; only an operator writes.
CREATE TABLE templates (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    layers TEXT NOT NULL,
    source TEXT NOT NULL,
    digest TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE settings (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
