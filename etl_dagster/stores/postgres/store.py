"""The store that the processes of a pipeline share."""

from __future__ import annotations

from etl_dagster.config import PipelineConfig
from etl_dagster.pg.migrate import Migration, pending
from etl_dagster.stores.postgres.board import KeptBoard
from etl_dagster.stores.postgres.config import PostgresStoreConfig
from etl_dagster.stores.postgres.connections import StoreConnections
from etl_dagster.stores.postgres.leases import SessionLeases
from etl_dagster.stores.postgres.lifecycle import Lifecycle
from etl_dagster.stores.postgres.metadata import KeptMetadata
from etl_dagster.stores.postgres.migrate import STORE
from etl_dagster.stores.postgres.notes import KeptNotes
from etl_dagster.stores.postgres.plans import KeptPlans
from etl_dagster.stores.postgres.progress import KeptProgress
from etl_dagster.stores.postgres.readiness import check_store
from etl_dagster.stores.postgres.rows import PipelineRows
from etl_dagster.stores.postgres.schemas import KeptSchemas
from etl_dagster.stores.postgres.states import KeptStates
from etl_dagster.stores.postgres.waking import ListenedWakeUps


class PostgresStore(
    KeptSchemas,
    KeptStates,
    KeptProgress,
    KeptMetadata,
    Lifecycle,
    SessionLeases,
    KeptPlans,
    ListenedWakeUps,
    KeptBoard,
    KeptNotes,
):
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
        connections = StoreConnections(
            dsn, application_name=application_name, max_size=max_connections, place=place
        )
        sessions = connections
        if session_dsn is not None:
            sessions = StoreConnections(
                session_dsn,
                application_name=application_name,
                max_size=1,
                place="state_store.session_dsn",
            )
        super().__init__(PipelineRows(pipeline, schema, connections, sessions))

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

    @property
    def pipeline(self) -> str:
        return self._rows.pipeline

    @property
    def schema(self) -> str:
        return self._rows.schema

    def open(self) -> None:
        """Connect and migrate; done by the first call otherwise.

        Raises:
            StoreUnreachable: no server answers.
            StoreError: the server refuses us, or the tables can't be created.
        """
        self._rows.open()

    def close(self) -> None:
        """Disconnect; a later call connects again. Leases live on until they are released."""
        self._rows.close()

    def migrate(self) -> list[Migration]:
        """Create or upgrade the tables; returns the migrations that were run."""
        return self._rows.migrate()

    def pending_migrations(self) -> list[Migration]:
        """The migrations that the next start would run."""
        return self._rows.look(lambda connection: pending(connection, self.schema, STORE))

    def check(self) -> str:
        """Whether it can be reached, and its tables used or made; changes nothing.

        Raises:
            StoreError: it can't be used, with what to do.
        """
        found = self._rows.look(lambda connection: check_store(connection, self.schema))
        self._rows.connect_session().close()
        return found

    def knows_pipeline(self) -> bool:
        """Whether the pipeline ever ran on this store; creates nothing."""
        return self._rows.look(self._rows.knows_pipeline)
