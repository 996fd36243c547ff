-- One row for each pipeline. Everything else hangs on it, so deleting the row forgets the pipeline.
-- Writers of table states lock it, which puts them in an order.
CREATE TABLE pipelines (
    name text PRIMARY KEY,
    epoch bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);
-- By this comment the source knows tables that are never replicated (etl_dagster/source/catalog.py).
COMMENT ON TABLE pipelines IS 'etl_dagster state store';

-- A state is never changed: the next one points to it and takes over `is_current`.
CREATE TABLE table_states (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline text NOT NULL REFERENCES pipelines (name) ON DELETE CASCADE,
    table_id bigint NOT NULL,
    state jsonb NOT NULL,
    previous_id bigint REFERENCES table_states (id) ON DELETE CASCADE,
    is_current boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX table_states_current ON table_states (pipeline, table_id) WHERE is_current;
CREATE INDEX table_states_history ON table_states (pipeline, table_id, id);
CREATE INDEX table_states_previous ON table_states (previous_id);

CREATE TABLE table_schemas (
    pipeline text NOT NULL REFERENCES pipelines (name) ON DELETE CASCADE,
    table_id bigint NOT NULL,
    snapshot_id pg_lsn NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    replica_identity text NOT NULL CHECK (replica_identity IN ('d', 'i', 'f', 'n')),
    columns jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, table_id, snapshot_id)
);

-- `worker` is 'apply', or 'table_sync:' and the table's OID.
CREATE TABLE replication_progress (
    pipeline text NOT NULL REFERENCES pipelines (name) ON DELETE CASCADE,
    worker text NOT NULL,
    flush_lsn pg_lsn NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, worker)
);

CREATE TABLE destination_tables (
    pipeline text NOT NULL REFERENCES pipelines (name) ON DELETE CASCADE,
    table_id bigint NOT NULL,
    destination_table_id text NOT NULL,
    snapshot_id pg_lsn NOT NULL,
    previous_snapshot_id pg_lsn,
    status text NOT NULL CHECK (status IN ('applying', 'applied')),
    replication_mask boolean[] NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, table_id)
);

CREATE TABLE copy_plans (
    pipeline text NOT NULL REFERENCES pipelines (name) ON DELETE CASCADE,
    table_id bigint NOT NULL,
    copy_id text NOT NULL,
    slot_lsn pg_lsn NOT NULL,
    started_at timestamptz NOT NULL,
    PRIMARY KEY (pipeline, table_id)
);

-- Finished once `read_lsn` is set.
CREATE TABLE copy_chunks (
    pipeline text NOT NULL,
    table_id bigint NOT NULL,
    chunk_index integer NOT NULL,
    relation_id bigint NOT NULL,
    first_block bigint NOT NULL,
    end_block bigint,
    estimated_rows bigint NOT NULL,
    file_node bigint NOT NULL,
    row_count bigint,
    byte_count bigint,
    read_lsn pg_lsn,
    duration_s double precision,
    PRIMARY KEY (pipeline, table_id, chunk_index),
    FOREIGN KEY (pipeline, table_id) REFERENCES copy_plans ON DELETE CASCADE
);

CREATE TABLE status (
    pipeline text NOT NULL REFERENCES pipelines (name) ON DELETE CASCADE,
    key text NOT NULL,
    payload jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, key)
);
