"""A destination that is a database of a Postgres."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Literal

import pyarrow as pa

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.postgres.config import PostgresDestinationConfig
from etl_dagster.destinations.postgres.connections import DestinationConnections
from etl_dagster.destinations.postgres.counting import LARGE_BYTES, count_rows
from etl_dagster.destinations.postgres.dialect import PostgresDialect
from etl_dagster.destinations.postgres.readiness import require_usable
from etl_dagster.destinations.postgres.rows import read_rows
from etl_dagster.destinations.postgres.session import AloneNeeded, PostgresSession
from etl_dagster.destinations.postgres.watch import TELL_AFTER_S
from etl_dagster.destinations.sql import counting
from etl_dagster.destinations.sql.destination import SqlDestination
from etl_dagster.model.destination import (
    ChecksItself,
    ChecksNames,
    CopiesManyTables,
    CountsOddValues,
    CountsQuarantinedRows,
    CountsRows,
    Interruptible,
    ReadsRows,
    RemovesTables,
    RepairsTables,
    TellsWaits,
)
from etl_dagster.model.events import EventBatch
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import DestinationStore


class PostgresDestination(SqlDestination[PostgresSession]):
    """Tables in schemas named as the source's, and in schema ``_etl`` what was applied to them.

    Data and positions are committed together, so every change is applied exactly once. Any number
    of processes may write at once: the server has those wait for each other that must. Batches of
    two shards are written side by side, unless one of them changes the catalog.

    Args:
        dsn: a libpq URI or key/value string.
        user_types: what enums, domains and composites become: text and base types, or the same
            types, made here.
        changelog: also write the position of every applied change into ``_etl.changelog``.
        source: a connection string of the source, which must be another database.
    """

    name = "postgres"
    capabilities = replace(
        SqlDestination.capabilities,
        shared_copies=True,
        offers=frozenset(
            {
                ChecksItself,
                ChecksNames,
                CopiesManyTables,
                CountsOddValues,
                CountsQuarantinedRows,
                CountsRows,
                Interruptible,
                ReadsRows,
                RemovesTables,
                RepairsTables,
                TellsWaits,
            }
        ),
    )
    config_model = PostgresDestinationConfig
    completes_apart = True

    @classmethod
    def from_config(
        cls, config: PostgresDestinationConfig, pipeline: PipelineConfig
    ) -> PostgresDestination:
        """The destination, not yet opened."""
        return cls(
            config.dsn.get_secret_value(),
            user_types=config.user_types,
            changelog=config.changelog,
            source=pipeline.source.conninfo(),
        )

    def __init__(
        self,
        dsn: str,
        *,
        user_types: Literal["text", "create"] = "text",
        changelog: bool = False,
        source: str | None = None,
        large_bytes: int = LARGE_BYTES,
        tell_after_s: float = TELL_AFTER_S,
    ) -> None:
        """Args:
        large_bytes: the rows of a table from this size on are estimated.
        tell_after_s: what a write waits for this long is looked up.
        """
        super().__init__(PostgresDialect(), changelog=changelog)
        self._connections = DestinationConnections(dsn, tell_after_s=tell_after_s)
        self._large_bytes = large_bytes
        self._source = source
        #: Whether new columns get the types that users of the source made.
        self.makes_types = user_types == "create"

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return self._connections.uri

    def startup(self, store: DestinationStore) -> None:
        """Check the database, and create the ledger.

        Raises:
            DestinationError: it can't be reached, or not be written.
        """
        self.check()
        super().startup(store)

    def interrupt(self) -> None:
        """Begin no more writes, and have the server give up the one under way; it is rolled back
        unless it ends within a moment, and comes again with the next start."""
        self._connections.interrupt()

    def waiting_for(self) -> str | None:
        """The lock that a write has waited for, for some seconds, and who holds it."""
        return self._connections.waiting_for()

    def shutdown(self) -> None:
        self._connections.close()

    def check(self) -> str:
        """Whether the database can be reached and written; changes nothing.

        Raises:
            DestinationError: it can't, with what to do.
        """
        with self._connections.transaction(writes=False) as connection:
            return require_usable(connection, self._connections.uri, self._source)

    # -- transactions --------------------------------------------------------------------------

    @contextmanager
    def _transaction(
        self, *, alone: bool = False, more_follows: bool | None = None
    ) -> Iterator[PostgresSession]:
        with self._connections.transaction(alone=alone) as connection:
            yield PostgresSession(connection, self._connections.transaction)

    def write_events(self, events: EventBatch) -> None:
        """As `SqlDestination.write_events`, next to batches of other shards.

        Those of one pipeline come one after the other, as do those that have a table in common:
        they lock its row in the ledger.
        """
        try:
            with self._connections.transaction(pipeline=events.pipeline) as connection:
                revision = self._apply(PostgresSession(connection, None), events)
        except AloneNeeded:
            super().write_events(events)
        else:
            self._note_revision(events.pipeline, revision)

    @contextmanager
    def _reading(self) -> Iterator[PostgresSession]:
        with self._connections.transaction(writes=False) as connection:
            yield PostgresSession(connection, self._connections.transaction)

    def _blaming(self, table_id: TableId, name: str) -> AbstractContextManager[None]:
        return self._connections.blaming(table_id, name)

    # -- readers -------------------------------------------------------------------------------

    def count_rows(self) -> dict[str, int]:
        """The number of rows of each table, by ``schema.table``; estimated where it is large."""
        with self._reading() as session:
            return count_rows(session, large_bytes=self._large_bytes)

    @contextmanager
    def read_rows(self, schema: TableSchema) -> Iterator[Iterator[pa.RecordBatch]]:
        """The rows of a table, as of one moment. See `ReadsRows`."""
        with self._connections.transaction(writes=False) as connection:
            session = PostgresSession(connection, self._connections.transaction)
            rows = read_rows(session, connection, self._connections, schema)
            with contextlib.closing(rows):  # type: ignore[type-var]
                yield rows

    def as_read(self, schema: TableSchema, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows themselves: Postgres prints for a value what the source prints."""
        return rows

    def count_odd_values(self) -> dict[str, dict[str, int]]:
        """How many values each table's columns can't hold, by ``schema.table`` and column."""
        with self._reading() as session:
            return counting.count_odd_values(session)

    def count_quarantined_rows(self) -> dict[str, int]:
        """How many rows are kept apart from each table, by ``schema.table``."""
        with self._reading() as session:
            return counting.count_quarantined_rows(session)
