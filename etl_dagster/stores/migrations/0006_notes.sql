-- What correctness rests on besides states and plans, as JSON by key. Versions before this one kept it
-- in `status`; a row that one of them left there is the newest, and is removed with the next note.
CREATE TABLE notes (
    pipeline text NOT NULL REFERENCES pipelines (name) ON DELETE CASCADE,
    key text NOT NULL,
    payload jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, key)
);
COMMENT ON TABLE notes IS 'etl_dagster state store';
