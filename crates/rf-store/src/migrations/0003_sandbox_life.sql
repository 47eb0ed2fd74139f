-- Whether a live sandbox runs, and what its maker says of it; labels, env and door are JSON. `env` may hold secrets of
-- its user: it is read for starting programs in that sandbox alone.
ALTER TABLE sandboxes ADD COLUMN state TEXT NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'paused'));
ALTER TABLE sandboxes ADD COLUMN pause_kind TEXT CHECK (pause_kind IN ('memory', 'files'));
ALTER TABLE sandboxes ADD COLUMN started INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sandboxes ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE sandboxes ADD COLUMN env TEXT NOT NULL DEFAULT '{}';
ALTER TABLE sandboxes ADD COLUMN auto_resume INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sandboxes ADD COLUMN idle_pause_ms INTEGER;
ALTER TABLE sandboxes ADD COLUMN door TEXT NOT NULL DEFAULT 'null';
UPDATE sandboxes SET started = created;
CREATE INDEX sandboxes_by_start ON sandboxes (user, started, id) WHERE ended IS NULL;
