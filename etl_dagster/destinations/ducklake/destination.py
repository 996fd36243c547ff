"""A destination that is a lake."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Final, TypeVar

import pyarrow as pa

from etl_dagster.backoff import Backoff
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb.hashes import hash_rows, read_hashes
from etl_dagster.destinations.duckdb.rows import AsStored, read_rows
from etl_dagster.destinations.ducklake.attaching import LakePlace
from etl_dagster.destinations.ducklake.catalogs import PostgresCatalog
from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.destinations.ducklake.dialect import DuckLakeDialect
from etl_dagster.destinations.ducklake.failures import LakeConflict, blaming
from etl_dagster.destinations.ducklake.fence import Fence
from etl_dagster.destinations.ducklake.lake import Lake
from etl_dagster.destinations.ducklake.readiness import check_lake
from etl_dagster.destinations.ducklake.session import DuckLakeSession
from etl_dagster.destinations.sql import counting
from etl_dagster.destinations.sql.destination import SqlDestination
from etl_dagster.errors import TableRewritten
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import (
    ChecksItself,
    ChecksNames,
    CopiesManyTables,
    CountsOddValues,
    CountsQuarantinedRows,
    CountsRows,
    HashesRows,
    ReadsRows,
    RemovesTables,
    RepairsTables,
)
from etl_dagster.model.events import ChunkId, EventBatch, TableChanges, TableRows
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import DestinationStore
from etl_dagster.values.digest import RowHashes

T = TypeVar("T")

#: Pauses after a conflict, and how many.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_MAX_PAUSES: Final = 8
#: Rows of the ledger that are written at once stay in the catalog: it is read with every batch.
_LEDGER_INLINE_ROWS: Final = 10_000


class DuckLakeDestination(SqlDestination[DuckLakeSession]):
    """Tables in schemas named as the source's, and in schema ``_etl`` what was applied to them.

    Data and positions are committed together, as one snapshot, so every change is applied exactly
    once. With a catalog in Postgres, any number of processes on any machines write at once.

    Args:
        timeout_s: how long to wait for another process that writes.
        changelog: also write the position of every applied change into ``_etl.changelog``.
        clock: seconds that only grow.
        sleep: waits for so many seconds.
    """

    name = "ducklake"
    capabilities = replace(
        SqlDestination.capabilities,
        offers=frozenset(
            {
                ChecksItself,
                ChecksNames,
                CopiesManyTables,
                CountsOddValues,
                CountsQuarantinedRows,
                CountsRows,
                HashesRows,
                ReadsRows,
                RemovesTables,
                RepairsTables,
            }
        ),
    )
    config_model = DuckLakeDestinationConfig

    @classmethod
    def from_config(
        cls, config: DuckLakeDestinationConfig, pipeline: PipelineConfig
    ) -> DuckLakeDestination:
        """The destination, not yet opened."""
        return cls(
            LakePlace.of(config), timeout_s=config.lock_timeout_s, changelog=config.changelog
        )

    def __init__(
        self,
        place: LakePlace,
        *,
        timeout_s: float = 60.0,
        changelog: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(DuckLakeDialect(), changelog=changelog)
        # A catalog in a file is locked by the process that writes.
        self.capabilities = replace(
            type(self).capabilities, shared_copies=isinstance(place.catalog, PostgresCatalog)
        )
        self._place = place
        self._clock = clock
        self._sleep = sleep
        self._lake = Lake(place, timeout_s=timeout_s)
        self._as_stored = AsStored()
        #: From startup on.
        self._fence: Fence | None = None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return self._place.shown

    def startup(self, store: DestinationStore) -> None:
        """Check the place, and create the lake and the ledger.

        Raises:
            DestinationError: the lake can't be reached, or not be written.
        """
        self.check()
        self._retrying(lambda: self._start(store))
        self._keep_ledger_in_catalog()

    def _start(self, store: DestinationStore) -> None:
        self._fence = None
        super().startup(store)

    def shutdown(self) -> None:
        self._lake.close()

    def check(self) -> str:
        """Whether the lake can be written; changes nothing.

        Raises:
            DestinationError: it can't, with what to do.
        """
        return check_lake(self._lake)

    # -- transactions --------------------------------------------------------------------------

    @contextmanager
    def _transaction(
        self, *, alone: bool = False, more_follows: bool | None = None
    ) -> Iterator[DuckLakeSession]:
        fence, turn = self._fence, 0
        with self._lake.transaction(alone=alone) as connection:
            session = DuckLakeSession(connection, self._place.inline_rows)
            yield session
            if fence is not None and alone and session.has_written:
                turn = fence.pass_(session)
        if fence is not None and turn:
            fence.passed(turn)

    @contextmanager
    def _reading(self) -> Iterator[DuckLakeSession | None]:
        if self._fence is None and not self._lake.exists():
            yield None
            return
        with self._transaction() as session:
            yield session

    def _blaming(self, table_id: TableId, name: str) -> AbstractContextManager[None]:
        return blaming(table_id, name, self._place)

    def _prepare(self, session: DuckLakeSession) -> None:
        fence = Fence(self.place)
        fence.create(session)
        self._fence = fence

    def _keep_ledger_in_catalog(self) -> None:
        with self._lake.turn() as connection:
            known = connection.execute(
                "SELECT 1 FROM ducklake_options('lake') WHERE scope_entry = '_etl' "
                "AND option_name = 'data_inlining_row_limit'"
            ).fetchall()
            if not known:
                connection.execute(
                    "CALL lake.set_option('data_inlining_row_limit', "
                    f"{_LEDGER_INLINE_ROWS}, schema => '_etl')"
                )

    # -- writes, again after a conflict --------------------------------------------------------

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        self._retrying(lambda: super(DuckLakeDestination, self).drop_table_for_copy(schema))

    def _begin_copy(self, schema: TableSchema, copy_id: str, chunk: ChunkId | None) -> bool:
        return self._retrying(
            lambda: super(DuckLakeDestination, self)._begin_copy(schema, copy_id, chunk)
        )

    def _end_copy(self, schema: TableSchema, rows: TableRows) -> None:
        self._retrying(lambda: super(DuckLakeDestination, self)._end_copy(schema, rows))

    def drop_tables_for_copy(self, schemas: Sequence[TableSchema]) -> None:
        self._retrying(lambda: super(DuckLakeDestination, self).drop_tables_for_copy(schemas))

    def write_events(self, events: EventBatch) -> None:
        """Apply the batch in one transaction, all tables and their positions together.

        Raises:
            Superseded: a newer epoch has written.
            TableWriteFailed: one table refuses; nothing is applied.
            DestinationUnreachable: the lake can't be had, or not be written.
        """
        self._retrying(lambda: super(DuckLakeDestination, self).write_events(events))

    def begin_repair(self, schema: TableSchema, repair_id: str) -> None:
        self._retrying(lambda: super(DuckLakeDestination, self).begin_repair(schema, repair_id))

    def write_repair(self, changes: TableChanges, repair_id: str) -> None:
        self._retrying(lambda: super(DuckLakeDestination, self).write_repair(changes, repair_id))

    def end_repair(self, schema: TableSchema, repair_id: str, replay_from: Lsn) -> None:
        self._retrying(
            lambda: super(DuckLakeDestination, self).end_repair(schema, repair_id, replay_from)
        )

    def _retrying(self, write: Callable[[], T]) -> T:
        """Do again what a conflict has undone; the next try sees what was first."""
        pauses = Backoff(
            _FIRST_PAUSE_S, _LONGEST_PAUSE_S, max_attempts=_MAX_PAUSES, clock=self._clock
        )
        while True:
            try:
                return write()
            except LakeConflict:
                if pauses.is_exhausted:
                    raise
            self._sleep(pauses.next_delay_s())

    # -- readers -------------------------------------------------------------------------------

    def count_rows(self) -> dict[str, int]:
        """The number of rows of each table, by ``schema.table``."""
        with self._reading() as session:
            return {} if session is None else counting.count_rows(session)

    @contextmanager
    def read_rows(self, schema: TableSchema) -> Iterator[Iterator[pa.RecordBatch]]:
        """The rows of a table, as of one snapshot. See `ReadsRows`."""
        with self._reading() as session:
            if session is None:
                raise TableRewritten(f"there is no lake at {self.place}")
            yield read_rows(session, schema)

    def as_read(self, schema: TableSchema, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows as `read_rows` gives them once they are written: as DuckDB holds them."""
        return self._as_stored(schema, rows)

    @contextmanager
    def read_hashes(self, schema: TableSchema) -> Iterator[Iterator[RowHashes]]:
        """Hashes of the rows, as of one snapshot. See `HashesRows`."""
        with self._reading() as session:
            if session is None:
                raise TableRewritten(f"there is no lake at {self.place}")
            yield read_hashes(session, schema)

    def hash_rows(
        self, schema: TableSchema, rows: pa.RecordBatch, *, are_read: bool = False
    ) -> RowHashes:
        """The same hashes of rows that are here."""
        return hash_rows(self._as_stored, schema, rows, are_read=are_read)

    def count_odd_values(self) -> dict[str, dict[str, int]]:
        """How many values each table's columns can't hold, by ``schema.table`` and column."""
        with self._reading() as session:
            return {} if session is None else counting.count_odd_values(session)

    def count_quarantined_rows(self) -> dict[str, int]:
        """How many rows are kept apart from each table, by ``schema.table``."""
        with self._reading() as session:
            return {} if session is None else counting.count_quarantined_rows(session)
