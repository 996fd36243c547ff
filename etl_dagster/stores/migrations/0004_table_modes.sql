-- How the destination keeps the table under this version of its schema.
ALTER TABLE table_schemas ADD COLUMN mode text NOT NULL DEFAULT 'mirror';
