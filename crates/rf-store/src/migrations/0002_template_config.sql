-- How programs are started in a template, from its image's configuration; JSON.
ALTER TABLE templates ADD COLUMN config TEXT NOT NULL DEFAULT '{}';
