-- The source whose changes were applied. Another cluster or database, and one that was restored to
-- an earlier point, is refused.
CREATE TABLE known_sources (
    pipeline text PRIMARY KEY REFERENCES pipelines (name) ON DELETE CASCADE,
    system_id text NOT NULL,
    timeline bigint NOT NULL,
    database_id bigint NOT NULL,
    database text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE known_sources IS 'etl_dagster state store';
