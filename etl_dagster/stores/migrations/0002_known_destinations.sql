-- The destination that a pipeline has written, and how far. Another one, and an older copy of this
-- one, is refused.
CREATE TABLE known_destinations (
    pipeline text PRIMARY KEY REFERENCES pipelines (name) ON DELETE CASCADE,
    type text NOT NULL,
    place text NOT NULL,
    -- Empty for a destination without a mark of its own.
    identity text NOT NULL,
    revision bigint NOT NULL,
    epoch bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
-- Each table of the store has this comment, by which the source knows that it is never replicated.
COMMENT ON TABLE known_destinations IS 'etl_dagster state store';
