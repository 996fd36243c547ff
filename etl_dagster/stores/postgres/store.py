"""The store that the processes of a pipeline share."""

# Queries are put together of constants only; identifiers go through psycopg.sql.
# ruff: noqa: S608

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import StateRollbackError
from etl_dagster.lsn import Lsn
from etl_dagster.model.changes import Changes
from etl_dagster.model.identity import KnownDestination, KnownSource
from etl_dagster.model.schema import SnapshotId, TableId, TableSchema, TableSchemaRetention
from etl_dagster.model.states import (
    Init,
    TableState,
    is_durable,
    state_from_json,
    state_to_json,
)
from etl_dagster.model.stores import (
    CopyPlan,
    DestinationTableMetadata,
    FinishedChunk,
    WorkerType,
    epoch_by_clock,
)
from etl_dagster.pg.advisory import (
    PostgresLease,
    is_locked,
    lock_key,
    locked_keys,
    try_acquire,
    try_acquire_all,
)
from etl_dagster.pg.connection import Connection
from etl_dagster.pg.listener import Listener
from etl_dagster.pg.migrate import Migration, pending
from etl_dagster.stores.postgres import records
from etl_dagster.stores.postgres.cache import Cache
from etl_dagster.stores.postgres.config import PostgresStoreConfig
from etl_dagster.stores.postgres.connections import Connections
from etl_dagster.stores.postgres.migrate import STORE, migrate
from etl_dagster.stores.postgres.readiness import check_store

T = TypeVar("T")
#: What a notification says has changed.
Topic = Literal["states", "schemas", "metadata", "plans"]
#: While nothing is heard, a wait ends this often so that its caller looks for itself.
_POLL_S = 1.0
#: So many states of each table are kept: a table that fails and is tried again for days makes many.
_KEPT_STATES = 100


class PostgresStore:
    """Keeps everything in one schema of a Postgres database, by the name of the pipeline.

    Nothing is connected until the first call, which also creates or upgrades the tables. An
    operation that may be repeated survives a restart of the server. States, schemas and metadata
    are cached only while a connection listens for the changes of other processes, from the first
    `wait_for_change` on.

    Leases are session locks and LISTEN needs a session. Everything else works through a pooler in
    transaction mode, too; then `session_dsn` must lead to the server itself, or to a pooler in
    session mode.

    Args:
        dsn: a libpq URI or key/value string.
        pipeline: whose rows these are.
        schema: where the tables are, created when missing.
        session_dsn: for leases and LISTEN; by default the same as `dsn`.

    Raises:
        ConfigError: the DSN can't be read.
    """

    config_model = PostgresStoreConfig

    def __init__(
        self,
        dsn: str,
        pipeline: str,
        schema: str = "etl",
        *,
        session_dsn: str | None = None,
        application_name: str = "etl-dagster-store",
        max_connections: int = 4,
        place: str = "state_store.dsn",
    ) -> None:
        self.pipeline = pipeline
        self.schema = schema
        self._connections = Connections(
            dsn, application_name=application_name, max_size=max_connections, place=place
        )
        self._sessions = self._connections
        if session_dsn is not None:
            self._sessions = Connections(
                session_dsn,
                application_name=application_name,
                max_size=1,
                place="state_store.session_dsn",
            )
        # A channel is an identifier of at most 63 bytes, whatever the pipeline is called.
        self._channel = "etl_{:08x}{:08x}".format(
            *(part & 0xFFFFFFFF for part in lock_key(schema, pipeline, "changes"))
        )
        self._lock = threading.Lock()
        self._is_open = False
        self._listener: Listener | None = None
        self._changes = Changes()
        self._states: Cache[Mapping[TableId, TableState]] = Cache()
        #: As last read, with the IDs of their rows.
        self._known_states: Mapping[TableId, tuple[int, TableState]] = {}
        self._schemas: Cache[Mapping[TableId, Sequence[TableSchema]]] = Cache()
        self._metadata: Cache[Mapping[TableId, DestinationTableMetadata]] = Cache()

    @classmethod
    def from_config(cls, config: PostgresStoreConfig, pipeline: PipelineConfig) -> PostgresStore:
        """The store of a pipeline, not yet connected.

        Raises:
            ConfigError: a DSN can't be read.
        """
        session_dsn = config.session_dsn
        return cls(
            config.conninfo(pipeline.source),
            pipeline.pipeline,
            schema=config.schema_name,
            session_dsn=None if session_dsn is None else session_dsn.get_secret_value(),
            place="source" if config.dsn is None else "state_store.dsn",
        )

    def open(self) -> None:
        """Connect and migrate; done by the first call otherwise.

        Raises:
            StoreUnreachable: no server answers.
            StoreError: the server refuses us, or the tables can't be created.
        """
        with self._lock:
            if self._is_open:
                return
            self.migrate()
            # A standby, or a reader without rights, can still be asked for the status.
            if not self._look(self._knows_pipeline):
                self._connections.run(
                    lambda c: c.execute(
                        self._sql(
                            "INSERT INTO {schema}.pipelines (name) VALUES (%s) "
                            "ON CONFLICT DO NOTHING"
                        ),
                        (self.pipeline,),
                    )
                )
            self._is_open = True

    def close(self) -> None:
        """Disconnect; a later call connects again. Leases live on until they are released."""
        with self._lock:
            self._is_open = False
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self._connections.close()

    def migrate(self) -> list[Migration]:
        """Create or upgrade the tables; returns the migrations that were run."""
        return self._look(lambda connection: migrate(connection, self.schema))

    def pending_migrations(self) -> list[Migration]:
        """The migrations that the next start would run."""
        return self._look(lambda connection: pending(connection, self.schema, STORE))

    def check(self) -> str:
        """Whether it can be reached, and its tables used or made; changes nothing.

        Raises:
            StoreError: it can't be used, with what to do.
        """
        found = self._look(lambda connection: check_store(connection, self.schema))
        self._sessions.connect_session().close()
        return found

    def knows_pipeline(self) -> bool:
        """Whether the pipeline ever ran on this store; creates nothing."""
        return self._look(self._knows_pipeline)

    def _knows_pipeline(self, connection: Connection) -> bool:
        table = sql.Identifier(self.schema, "pipelines")
        found = connection.execute("SELECT to_regclass(%s)", [table.as_string()]).fetchone()
        if found == (None,):
            return False
        query = sql.SQL("SELECT 1 FROM {} WHERE name = %s").format(table)
        return connection.execute(query, [self.pipeline]).fetchone() is not None

    def _look(self, work: Callable[[Connection], T]) -> T:
        """Do something on a connection of its own, outside of any transaction."""
        try:
            with self._connections.connect() as connection:
                return work(connection)
        except psycopg.Error as error:
            raise self._connections.translate(error) from error

    # -- schemas -------------------------------------------------------------------------------

    def get_table_schema(self, table_id: TableId, snapshot_id: SnapshotId) -> TableSchema | None:
        found = None
        for schema in self._schema_versions().get(table_id, ()):
            if schema.snapshot_id <= snapshot_id:
                found = schema
        return found

    def get_table_schemas(self) -> Sequence[TableSchema]:
        return [schema for versions in self._schema_versions().values() for schema in versions]

    def _schema_versions(self) -> Mapping[TableId, Sequence[TableSchema]]:
        """The versions of each table, the oldest first."""
        query = (
            f"SELECT {records.SCHEMA_COLUMNS} FROM {{schema}}.table_schemas "
            # Unqualified, it would be the text that is selected.
            "WHERE pipeline = %s ORDER BY table_id, table_schemas.snapshot_id"
        )

        def load() -> Mapping[TableId, Sequence[TableSchema]]:
            versions: dict[TableId, list[TableSchema]] = {}
            for row in self._fetch(query, self.pipeline):
                schema = records.schema_from_row(row)
                versions.setdefault(schema.id, []).append(schema)
            return versions

        return self._schemas.get(load, keep=self._hears_changes)

    def load_table_schemas(self) -> int:
        self._schemas.invalidate()
        return len(self.get_table_schemas())

    def store_table_schema(self, schema: TableSchema) -> TableSchema:
        self.store_table_schemas([schema])
        return schema

    def store_table_schemas(self, schemas: Sequence[TableSchema]) -> None:
        self._write_many(
            "schemas",
            """
            INSERT INTO {schema}.table_schemas
                (pipeline, table_id, snapshot_id, schema_name, table_name, replica_identity,
                 columns, mode, shape)
            VALUES (%s, %s, %s::pg_lsn, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (pipeline, table_id, snapshot_id) DO UPDATE SET
                schema_name = excluded.schema_name, table_name = excluded.table_name,
                replica_identity = excluded.replica_identity, columns = excluded.columns,
                mode = excluded.mode, shape = excluded.shape
            """,
            [
                (
                    self.pipeline,
                    schema.id,
                    str(schema.snapshot_id),
                    schema.schema_name,
                    schema.table_name,
                    schema.replica_identity,
                    Jsonb(records.columns_to_json(schema)),
                    schema.mode,
                    Jsonb(shape) if (shape := records.shape_to_json(schema)) else None,
                )
                for schema in schemas
            ],
        )

    def prune_table_schemas(self, retentions: Mapping[TableId, TableSchemaRetention]) -> int:
        return self._write(
            "schemas",
            """
            WITH retention AS (
                SELECT * FROM unnest(%s::bigint[], %s::text[]::pg_lsn[]) AS r (table_id, lsn)
            )
            DELETE FROM {schema}.table_schemas AS old
            USING retention
            WHERE old.pipeline = %s AND old.table_id = retention.table_id AND EXISTS (
                SELECT FROM {schema}.table_schemas AS later
                WHERE later.pipeline = old.pipeline AND later.table_id = old.table_id
                    AND later.snapshot_id > old.snapshot_id
                    AND later.snapshot_id <= retention.lsn
            )
            """,
            list(retentions),
            [str(retention.lsn) for retention in retentions.values()],
            self.pipeline,
        )

    # -- states --------------------------------------------------------------------------------

    def get_table_replication_state(self, table_id: TableId) -> TableState | None:
        return self._current_states().get(table_id)

    def get_table_replication_states(self) -> Mapping[TableId, TableState]:
        return dict(self._current_states())

    def load_table_replication_states(self) -> int:
        self._states.invalidate()
        return len(self._current_states())

    def update_table_replication_states(
        self, updates: Sequence[tuple[TableId, TableState]]
    ) -> None:
        def work(connection: Connection) -> None:
            self._lock_pipeline(connection)
            for once in _without_repetition(updates):
                self._set_states(connection, once)

        self._change(work, "states")

    def rollback_table_replication_state(self, table_id: TableId) -> TableState:
        def work(connection: Connection) -> TableState:
            self._lock_pipeline(connection)
            history = connection.execute(
                self._sql(
                    "SELECT id, state FROM {schema}.table_states "
                    "WHERE pipeline = %s AND table_id = %s ORDER BY id DESC"
                ),
                (self.pipeline, table_id),
            ).fetchall()
            earlier = ((number, state_from_json(payload)) for number, payload in history[1:])
            found = next(((n, state) for n, state in earlier if is_durable(state)), None)
            if found is None:
                raise StateRollbackError(f"table {table_id} has no earlier state to go back to")
            number, state = found
            connection.execute(
                self._sql(
                    "DELETE FROM {schema}.table_states "
                    "WHERE pipeline = %s AND table_id = %s AND id > %s"
                ),
                (self.pipeline, table_id, number),
            )
            connection.execute(
                self._sql("UPDATE {schema}.table_states SET is_current = true WHERE id = %s"),
                (number,),
            )
            return state

        return self._change(work, "states", repeatable=False)

    def _current_states(self) -> Mapping[TableId, TableState]:
        return self._states.get(self._load_states, keep=self._hears_changes)

    def _load_states(self) -> Mapping[TableId, TableState]:
        """Read what is new since the last time; of thousands of tables that is little.

        A row of the history never gets another state. That rows were deleted, or an earlier one is
        the current one again, is told by a digest of all current rows.
        """
        states = self._read_states(self._known_states)
        if states is None:
            states = self._read_states({}) or {}
        self._known_states = states
        return {table_id: states[table_id][1] for table_id in sorted(states)}

    def _read_states(
        self, known: Mapping[TableId, tuple[int, TableState]]
    ) -> dict[TableId, tuple[int, TableState]] | None:
        """By table, the ID of the current row and its state; None where `known` doesn't lead there.

        Args:
            known: an earlier answer; only later rows are read.
        """
        newest = max((number for number, _ in known.values()), default=0)
        rows = self._fetch(
            """
            WITH current AS (
                SELECT id, table_id, state FROM {schema}.table_states
                WHERE pipeline = %s AND is_current
            )
            SELECT d.digest, c.id, c.table_id, c.state
            FROM (SELECT md5(coalesce(string_agg(id::text, ',' ORDER BY id), '')) AS digest
                  FROM current) AS d
            LEFT JOIN current AS c ON c.id > %s
            """,
            self.pipeline,
            newest,
        )
        found = dict(known)
        for _, number, table_id, payload in rows:
            if number is not None:
                found[table_id] = number, state_from_json(payload)
        ids = ",".join(map(str, sorted(number for number, _ in found.values())))
        digest = hashlib.md5(ids.encode(), usedforsecurity=False).hexdigest()
        return found if digest == rows[0][0] or not known else None

    def _set_state(self, connection: Connection, table_id: TableId, state: TableState) -> None:
        self._set_states(connection, {table_id: state})

    def _set_states(self, connection: Connection, states: Mapping[TableId, TableState]) -> None:
        """Add to the history of each table; the pipeline's row is locked by the caller."""
        # The same state again is no change; it would only make a rollback go nowhere.
        connection.execute(
            self._sql(
                """
                WITH new AS (
                    SELECT * FROM unnest(%(tables)s::bigint[], %(states)s::jsonb[])
                        AS n (table_id, state)
                ), current AS (
                    SELECT id, table_id, state FROM {schema}.table_states
                    WHERE pipeline = %(pipeline)s AND table_id = ANY (%(tables)s) AND is_current
                ), retired AS (
                    UPDATE {schema}.table_states AS old SET is_current = false
                    FROM current JOIN new USING (table_id)
                    WHERE old.id = current.id AND current.state <> new.state
                    RETURNING old.id, old.table_id
                )
                INSERT INTO {schema}.table_states (pipeline, table_id, state, previous_id)
                SELECT %(pipeline)s, new.table_id, new.state, retired.id
                FROM new LEFT JOIN retired USING (table_id)
                WHERE retired.id IS NOT NULL
                    OR NOT EXISTS (SELECT FROM current WHERE current.table_id = new.table_id)
                """
            ),
            {
                "pipeline": self.pipeline,
                "tables": list(states),
                "states": [Jsonb(state_to_json(state)) for state in states.values()],
            },
        )
        # What is deleted takes along what points to it, so the chain is cut before.
        connection.execute(
            self._sql(
                """
                WITH old AS (
                    SELECT old.id
                    FROM unnest(%s::bigint[]) AS t (table_id) CROSS JOIN LATERAL (
                        SELECT id FROM {schema}.table_states
                        WHERE pipeline = %s AND table_id = t.table_id
                        ORDER BY id DESC OFFSET %s
                    ) AS old
                ), oldest_kept AS (
                    UPDATE {schema}.table_states SET previous_id = NULL
                    WHERE previous_id IN (SELECT id FROM old)
                        AND id NOT IN (SELECT id FROM old)
                )
                DELETE FROM {schema}.table_states WHERE id IN (SELECT id FROM old)
                """
            ),
            [list(states), self.pipeline, _KEPT_STATES],
        )

    # -- progress ------------------------------------------------------------------------------

    def get_replication_progress(self, worker: WorkerType) -> Lsn | None:
        rows = self._fetch(
            "SELECT flush_lsn::text FROM {schema}.replication_progress "
            "WHERE pipeline = %s AND worker = %s",
            self.pipeline,
            records.worker_key(worker),
        )
        return Lsn.parse(rows[0][0]) if rows else None

    def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
        [(stored,)] = self._fetch(
            """
            INSERT INTO {schema}.replication_progress AS progress (pipeline, worker, flush_lsn)
            VALUES (%s, %s, %s::pg_lsn)
            ON CONFLICT (pipeline, worker) DO UPDATE SET
                flush_lsn = greatest(progress.flush_lsn, excluded.flush_lsn), updated_at = now()
            RETURNING flush_lsn::text
            """,
            self.pipeline,
            records.worker_key(worker),
            str(flush_lsn),
        )
        return Lsn.parse(stored)

    def delete_replication_progress(self, worker: WorkerType) -> None:
        self._write(
            None,
            "DELETE FROM {schema}.replication_progress WHERE pipeline = %s AND worker = %s",
            self.pipeline,
            records.worker_key(worker),
        )

    # -- source and destination ----------------------------------------------------------------

    def get_known_destination(self) -> KnownDestination | None:
        rows = self._fetch(
            "SELECT type, place, identity, revision, epoch FROM {schema}.known_destinations "
            "WHERE pipeline = %s",
            self.pipeline,
        )
        return KnownDestination(*rows[0]) if rows else None

    def store_known_destination(self, known: KnownDestination | None) -> None:
        if known is None:
            self._write(
                None, "DELETE FROM {schema}.known_destinations WHERE pipeline = %s", self.pipeline
            )
            return
        self._write(
            None,
            """
            INSERT INTO {schema}.known_destinations
                (pipeline, type, place, identity, revision, epoch)
            VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT (pipeline) DO UPDATE SET
                type = excluded.type, place = excluded.place, identity = excluded.identity,
                revision = excluded.revision, epoch = excluded.epoch, updated_at = now()
            """,
            self.pipeline,
            known.type,
            known.place,
            known.identity,
            known.revision,
            known.epoch,
        )

    def get_known_source(self) -> KnownSource | None:
        rows = self._fetch(
            "SELECT system_id, timeline, database_id, database FROM {schema}.known_sources "
            "WHERE pipeline = %s",
            self.pipeline,
        )
        return KnownSource(*rows[0]) if rows else None

    def store_known_source(self, known: KnownSource) -> None:
        self._write(
            None,
            """
            INSERT INTO {schema}.known_sources
                (pipeline, system_id, timeline, database_id, database)
            VALUES (%s, %s, %s, %s, %s)
            ON CONFLICT (pipeline) DO UPDATE SET
                system_id = excluded.system_id, timeline = excluded.timeline,
                database_id = excluded.database_id, database = excluded.database,
                updated_at = now()
            """,
            self.pipeline,
            known.system_id,
            known.timeline,
            known.database_id,
            known.database,
        )

    def store_delivery(self, worker: WorkerType, flush_lsn: Lsn, revision: int) -> Lsn:
        [(stored,)] = self._fetch(
            """
            WITH known AS (
                UPDATE {schema}.known_destinations
                SET revision = greatest(revision, %s), updated_at = now()
                WHERE pipeline = %s
            )
            INSERT INTO {schema}.replication_progress AS progress (pipeline, worker, flush_lsn)
            VALUES (%s, %s, %s::pg_lsn)
            ON CONFLICT (pipeline, worker) DO UPDATE SET
                flush_lsn = greatest(progress.flush_lsn, excluded.flush_lsn), updated_at = now()
            RETURNING flush_lsn::text
            """,
            revision,
            self.pipeline,
            self.pipeline,
            records.worker_key(worker),
            str(flush_lsn),
        )
        return Lsn.parse(stored)

    def get_copy_ids(self) -> Mapping[TableId, str]:
        return dict(
            self._fetch(
                "SELECT table_id, copy_id FROM {schema}.copy_plans WHERE pipeline = %s",
                self.pipeline,
            )
        )

    # -- destination metadata ------------------------------------------------------------------

    def get_destination_table_metadata(self, table_id: TableId) -> DestinationTableMetadata | None:
        return self._all_metadata().get(table_id)

    def get_applied_destination_table_metadata(
        self, table_id: TableId
    ) -> DestinationTableMetadata | None:
        metadata = self.get_destination_table_metadata(table_id)
        return None if metadata is None else metadata.require_applied()

    def load_destination_tables_metadata(self) -> int:
        self._metadata.invalidate()
        return len(self._all_metadata())

    def store_destination_table_metadata(
        self, table_id: TableId, metadata: DestinationTableMetadata
    ) -> None:
        self.store_destination_tables_metadata({table_id: metadata})

    def store_destination_tables_metadata(
        self, metadata: Mapping[TableId, DestinationTableMetadata]
    ) -> None:
        self._write_many(
            "metadata",
            """
            INSERT INTO {schema}.destination_tables
                (pipeline, table_id, destination_table_id, snapshot_id, previous_snapshot_id,
                 status, replication_mask)
            VALUES (%s, %s, %s, %s::pg_lsn, %s::pg_lsn, %s, %s)
            ON CONFLICT (pipeline, table_id) DO UPDATE SET
                destination_table_id = excluded.destination_table_id,
                snapshot_id = excluded.snapshot_id,
                previous_snapshot_id = excluded.previous_snapshot_id,
                status = excluded.status,
                replication_mask = excluded.replication_mask,
                updated_at = now()
            """,
            [
                (
                    self.pipeline,
                    table_id,
                    described.destination_table_id,
                    str(described.snapshot_id),
                    None
                    if described.previous_snapshot_id is None
                    else str(described.previous_snapshot_id),
                    described.status,
                    list(described.replication_mask),
                )
                for table_id, described in metadata.items()
            ],
        )

    def _all_metadata(self) -> Mapping[TableId, DestinationTableMetadata]:
        query = (
            f"SELECT table_id, {records.METADATA_COLUMNS} FROM {{schema}}.destination_tables "
            "WHERE pipeline = %s"
        )

        def load() -> Mapping[TableId, DestinationTableMetadata]:
            rows = self._fetch(query, self.pipeline)
            return {table_id: records.metadata_from_row(tuple(row)) for table_id, *row in rows}

        return self._metadata.get(load, keep=self._hears_changes)

    # -- lifecycle -----------------------------------------------------------------------------

    def clear_table_copy_state(self, table_id: TableId) -> None:
        self.clear_table_copy_states([table_id])

    def clear_table_copy_states(self, table_ids: Collection[TableId]) -> None:
        self._change(
            lambda connection: self._clear_copies(connection, table_ids),
            "schemas",
            "metadata",
            "plans",
        )

    def delete_table_pipeline_state(self, table_id: TableId) -> None:
        def work(connection: Connection) -> None:
            self._lock_pipeline(connection)
            self._clear_copies(connection, [table_id])
            self._delete(connection, "table_states", [table_id])

        self._change(work, "states", "schemas", "metadata", "plans")

    def reset_for_resync(self) -> int:
        def work(connection: Connection) -> int:
            self._lock_pipeline(connection)
            table_ids = connection.execute(
                self._sql(
                    "SELECT table_id FROM {schema}.table_states WHERE pipeline = %s AND is_current"
                ),
                (self.pipeline,),
            ).fetchall()
            self._set_states(connection, {table_id: Init() for (table_id,) in table_ids})
            for statement in (
                "DELETE FROM {schema}.replication_progress "
                "WHERE pipeline = %s AND worker = 'apply'",
                "DELETE FROM {schema}.copy_plans WHERE pipeline = %s",
                "DELETE FROM {schema}.known_destinations WHERE pipeline = %s",
            ):
                connection.execute(self._sql(statement), (self.pipeline,))
            return len(table_ids)

        return self._change(work, "states", "plans")

    def _clear_copies(self, connection: Connection, table_ids: Collection[TableId]) -> None:
        for name in ("table_schemas", "destination_tables", "copy_plans"):
            self._delete(connection, name, table_ids)
        connection.execute(
            self._sql(
                "DELETE FROM {schema}.replication_progress WHERE pipeline = %s AND worker = ANY(%s)"
            ),
            (self.pipeline, [records.sync_worker_key(table_id) for table_id in table_ids]),
        )

    def _delete(self, connection: Connection, name: str, table_ids: Collection[TableId]) -> None:
        connection.execute(
            sql.SQL("DELETE FROM {} WHERE pipeline = %s AND table_id = ANY(%s)").format(
                sql.Identifier(self.schema, name)
            ),
            (self.pipeline, list(table_ids)),
        )

    # -- coordination --------------------------------------------------------------------------

    def transition_table_state(
        self, table_id: TableId, expected: TableState, new: TableState
    ) -> bool:
        return bool(self.transition_table_states([(table_id, expected, new)]))

    def transition_table_states(
        self, changes: Sequence[tuple[TableId, TableState, TableState]]
    ) -> Collection[TableId]:
        def work(connection: Connection) -> Collection[TableId]:
            self._lock_pipeline(connection)
            found = connection.execute(
                self._sql(
                    """
                    SELECT table_id FROM {schema}.table_states
                    JOIN unnest(%s::bigint[], %s::jsonb[]) AS e (table_id, state)
                        USING (table_id, state)
                    WHERE pipeline = %s AND is_current
                    """
                ),
                (
                    [table_id for table_id, _, _ in changes],
                    [Jsonb(state_to_json(expected)) for _, expected, _ in changes],
                    self.pipeline,
                ),
            ).fetchall()
            as_expected = {table_id for (table_id,) in found}
            self._set_states(connection, {t: new for t, _, new in changes if t in as_expected})
            return as_expected

        return self._change(work, "states", repeatable=False)

    def wait_for_change(self, timeout_s: float) -> None:
        self._listen()
        if self._hears_changes:
            self._changes.wait(timeout_s)
        else:
            self._changes.wait(min(timeout_s, _POLL_S))

    def wake(self) -> None:
        self._changes.bump()

    def acquire_lease(self, name: str) -> PostgresLease | None:
        self.open()
        key = lock_key(self.schema, self.pipeline, f"lease:{name}")
        return try_acquire(self._sessions.connect_session(), key)

    def acquire_leases(self, names: Collection[str]) -> Mapping[str, PostgresLease]:
        self.open()
        keys = {lock_key(self.schema, self.pipeline, f"lease:{name}"): name for name in names}
        leases = try_acquire_all(self._sessions.connect_session(), list(keys))
        return {keys[key]: lease for key, lease in leases.items()}

    def leased(self, names: Collection[str]) -> Collection[str]:
        locked = self._run(locked_keys)
        return {
            name
            for name in names
            if lock_key(self.schema, self.pipeline, f"lease:{name}") in locked
        }

    def is_leased(self, name: str) -> bool:
        key = lock_key(self.schema, self.pipeline, f"lease:{name}")
        return self._run(lambda connection: is_locked(connection, key))

    def take_epoch(self) -> int:
        [(epoch,)] = self._fetch(
            "UPDATE {schema}.pipelines SET epoch = greatest(epoch + 1, %s) "
            "WHERE name = %s RETURNING epoch",
            epoch_by_clock(),
            self.pipeline,
        )
        return int(epoch)

    def current_epoch(self) -> int:
        [(epoch,)] = self._fetch(
            "SELECT epoch FROM {schema}.pipelines WHERE name = %s", self.pipeline
        )
        return int(epoch)

    def get_copy_plan(self, table_id: TableId) -> CopyPlan | None:
        return self.get_copy_plans([table_id]).get(table_id)

    def get_copy_plans(self, table_ids: Collection[TableId]) -> Mapping[TableId, CopyPlan]:
        if not table_ids:
            return {}

        def work(connection: Connection) -> Mapping[TableId, CopyPlan]:
            # One snapshot for both queries: a plan is never seen with the chunks of another.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            of_tables = (self.pipeline, list(table_ids))
            plans = connection.execute(
                self._sql(
                    "SELECT table_id, copy_id, slot_lsn::text, started_at FROM {schema}.copy_plans "
                    "WHERE pipeline = %s AND table_id = ANY(%s)"
                ),
                of_tables,
            ).fetchall()
            if not plans:
                return {}
            chunks: dict[TableId, list[tuple[Any, ...]]] = {}
            for table_id, *chunk in connection.execute(
                self._sql(
                    f"SELECT table_id, {records.CHUNK_COLUMNS} FROM {{schema}}.copy_chunks "
                    "WHERE pipeline = %s AND table_id = ANY(%s) ORDER BY chunk_index"
                ),
                of_tables,
            ):
                chunks.setdefault(table_id, []).append(tuple(chunk))
            return {
                table_id: records.plan_from_rows((copy_id, slot_lsn, at), chunks.get(table_id, ()))
                for table_id, copy_id, slot_lsn, at in plans
            }

        return self._run(work)

    def store_copy_plan(self, table_id: TableId, plan: CopyPlan) -> None:
        self.store_copy_plans({table_id: plan})

    def store_copy_plans(self, plans: Mapping[TableId, CopyPlan]) -> None:
        chunks = [(table_id, chunk) for table_id, plan in plans.items() for chunk in plan.chunks]

        def work(connection: Connection) -> None:
            self._lock_pipeline(connection)
            self._delete(connection, "copy_plans", plans)
            connection.execute(
                self._sql(
                    """
                    INSERT INTO {schema}.copy_plans
                        (pipeline, table_id, copy_id, slot_lsn, started_at)
                    SELECT %s, * FROM unnest(
                        %s::bigint[], %s::text[], %s::text[]::pg_lsn[], %s::timestamptz[]
                    )
                    """
                ),
                (
                    self.pipeline,
                    list(plans),
                    [plan.copy_id for plan in plans.values()],
                    [str(plan.slot_lsn) for plan in plans.values()],
                    [plan.started_at for plan in plans.values()],
                ),
            )
            connection.execute(
                self._sql(
                    """
                    INSERT INTO {schema}.copy_chunks
                        (pipeline, table_id, chunk_index, relation_id, first_block, end_block,
                         estimated_rows, file_node)
                    SELECT %s, * FROM unnest(
                        %s::bigint[], %s::integer[], %s::bigint[], %s::bigint[], %s::bigint[],
                        %s::bigint[], %s::bigint[]
                    )
                    """
                ),
                (
                    self.pipeline,
                    [table_id for table_id, _ in chunks],
                    [chunk.index for _, chunk in chunks],
                    [chunk.relation_id for _, chunk in chunks],
                    [chunk.first_block for _, chunk in chunks],
                    [chunk.end_block for _, chunk in chunks],
                    [chunk.estimated_rows for _, chunk in chunks],
                    [chunk.file_node for _, chunk in chunks],
                ),
            )

        self._change(work, "plans")

    def finish_chunk(self, table_id: TableId, copy_id: str, chunk: FinishedChunk) -> None:
        self.finish_chunks([(table_id, copy_id, chunk)])

    def finish_chunks(self, chunks: Sequence[tuple[TableId, str, FinishedChunk]]) -> None:
        self._write_many(
            "plans",
            """
            UPDATE {schema}.copy_chunks AS chunk
            SET row_count = %s, byte_count = %s, read_lsn = %s::pg_lsn, duration_s = %s
            FROM {schema}.copy_plans AS plan
            WHERE plan.pipeline = %s AND plan.table_id = %s AND plan.copy_id = %s
                AND chunk.pipeline = plan.pipeline AND chunk.table_id = plan.table_id
                AND chunk.chunk_index = %s AND chunk.read_lsn IS NULL
            """,
            [
                (
                    chunk.row_count,
                    chunk.byte_count,
                    str(chunk.read_lsn),
                    chunk.duration_s,
                    self.pipeline,
                    table_id,
                    copy_id,
                    chunk.index,
                )
                for table_id, copy_id, chunk in chunks
            ],
        )

    def request_copy(self, table_id: TableId) -> None:
        def work(connection: Connection) -> None:
            self._lock_pipeline(connection)
            self._delete(connection, "copy_plans", [table_id])
            self._set_state(connection, table_id, Init())

        self._change(work, "states", "plans")

    def publish_status(self, key: str, payload: Mapping[str, Any]) -> None:
        self._write(
            None,
            "INSERT INTO {schema}.status (pipeline, key, payload) VALUES (%s, %s, %s) "
            "ON CONFLICT (pipeline, key) DO UPDATE "
            "SET payload = excluded.payload, updated_at = now()",
            self.pipeline,
            key,
            Jsonb(dict(payload)),
        )

    def get_status(self, key: str) -> Mapping[str, Any] | None:
        rows = self._fetch(
            "SELECT payload FROM {schema}.status WHERE pipeline = %s AND key = %s",
            self.pipeline,
            key,
        )
        return rows[0][0] if rows else None

    # -- plumbing ------------------------------------------------------------------------------

    def _sql(self, text: str) -> sql.Composed:
        return _compose(text, self.schema)

    def _run(self, work: Callable[[Connection], T], *, repeatable: bool = True) -> T:
        self.open()
        return self._connections.run(work, repeatable=repeatable)

    def _fetch(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._run(lambda c: c.execute(self._sql(query), values).fetchall())

    def _write(self, topic: Topic | None, statement: str, *values: object) -> int:
        """Run one statement that may be repeated; returns how many rows it touched."""
        topics = () if topic is None else (topic,)
        return self._change(lambda c: c.execute(self._sql(statement), values).rowcount, *topics)

    def _write_many(self, topic: Topic, statement: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one statement, which may be repeated, for each of the rows."""

        def work(connection: Connection) -> None:
            if len(rows) == 1:
                connection.execute(self._sql(statement), rows[0])
            elif rows:
                with connection.cursor() as cursor:
                    cursor.executemany(self._sql(statement), rows)

        self._change(work, topic)

    def _change(
        self, work: Callable[[Connection], T], *topics: Topic, repeatable: bool = True
    ) -> T:
        """Do the work and tell everybody, in one transaction."""

        def work_and_tell(connection: Connection) -> T:
            result = work(connection)
            for topic in topics:
                connection.execute("SELECT pg_notify(%s, %s)", (self._channel, topic))
            return result

        result = self._run(work_and_tell, repeatable=repeatable)
        for topic in topics:
            # Our own notification comes a moment later; our own threads see the change now.
            self._heard(topic)
        return result

    def _lock_pipeline(self, connection: Connection) -> None:
        """Have writers of states follow one another; each then sees what the one before wrote."""
        connection.execute(
            self._sql("SELECT FROM {schema}.pipelines WHERE name = %s FOR NO KEY UPDATE"),
            (self.pipeline,),
        )

    def _listen(self) -> None:
        self.open()
        with self._lock:
            if self._listener is None:
                self._listener = Listener(
                    self._sessions.connect_session,
                    self._channel,
                    self._heard,
                    subject="the state store",
                )

    @property
    def _hears_changes(self) -> bool:
        listener = self._listener
        return listener is not None and listener.is_listening

    def _heard(self, topic: str) -> None:
        """Forget what has changed; everything, when notifications may have been missed."""
        if topic in ("", "states"):
            self._states.invalidate()
        if topic in ("", "schemas"):
            self._schemas.invalidate()
        if topic in ("", "metadata"):
            self._metadata.invalidate()
        self._changes.bump()


@functools.lru_cache(maxsize=256)
def _compose(text: str, schema: str) -> sql.Composed:
    return sql.SQL(text).format(schema=sql.Identifier(schema))


def _without_repetition(
    updates: Sequence[tuple[TableId, TableState]],
) -> list[dict[TableId, TableState]]:
    """The updates in their order, cut where a table comes a second time."""
    parts: list[dict[TableId, TableState]] = [{}]
    for table_id, state in updates:
        if table_id in parts[-1]:
            parts.append({})
        parts[-1][table_id] = state
    return parts
