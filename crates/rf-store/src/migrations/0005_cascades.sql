-- With which key a session was begun, directly or by another session: it ends with that key.
ALTER TABLE sessions ADD COLUMN key BLOB;
CREATE INDEX sessions_by_key ON sessions (key) WHERE key IS NOT NULL;

-- What was made under an `Idempotency-Key`, and the digest of the request that made it.
CREATE TABLE repeats (
    user BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    made BLOB NOT NULL CHECK (length(made) = 16),
    created INTEGER NOT NULL,
    PRIMARY KEY (user, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX repeats_by_user ON repeats (user, created, key);
