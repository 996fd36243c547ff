-- How a table differs at the destination from what it is in the source, beyond its columns; null: not
-- at all.
ALTER TABLE table_schemas ADD COLUMN shape jsonb;
