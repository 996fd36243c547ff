"""A destination that is one DuckDB file."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final

import pyarrow as pa

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import reading
from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.destinations.duckdb.dialect import DuckDBDialect
from etl_dagster.destinations.duckdb.failures import blaming
from etl_dagster.destinations.duckdb.file import DatabaseFile
from etl_dagster.destinations.duckdb.hashes import hash_rows, read_hashes
from etl_dagster.destinations.duckdb.parts import parts
from etl_dagster.destinations.duckdb.readiness import check_file, check_place
from etl_dagster.destinations.duckdb.rows import AsStored, read_rows
from etl_dagster.destinations.duckdb.seen import SeenFile, is_missing
from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.duckdb.turns import HOLDING, Holding
from etl_dagster.destinations.duckdb.upkeep import BOUNDS, Bounds
from etl_dagster.destinations.duckdb.wide_numbers import correct_exponents
from etl_dagster.destinations.sql.destination import SqlDestination
from etl_dagster.destinations.sql.ledger import Ledger
from etl_dagster.destinations.sql.marks import Marks
from etl_dagster.destinations.sql.tables import move_table
from etl_dagster.errors import TableRewritten
from etl_dagster.model.destination import (
    ChecksItself,
    ChecksNames,
    CopiesManyTables,
    CountsOddValues,
    CountsQuarantinedRows,
    CountsRows,
    HashesRows,
    Interruptible,
    ReadsRows,
    RemovesTables,
    RepairsTables,
)
from etl_dagster.model.events import EventBatch
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import DestinationStore
from etl_dagster.table_name import TableName
from etl_dagster.values.digest import RowHashes

#: Of a connection that only reads: one thread decompresses while another takes what it made.
_READING: Final = {"threads": 2}


class DuckDBDestination(SqlDestination[DuckDBSession]):
    """Tables in schemas named as the source's, and in schema ``_etl`` what was applied to them.

    Data and positions are committed together, so every change is applied exactly once. Any number
    of processes may write at once, and readers read in between; each waits for its turn.

    Args:
        memory_limit: for DuckDB's own buffers; more goes to a temporary folder next to the file.
        lock_timeout_s: how long to wait for another process to close the file.
        changelog: also write the position of every applied change into ``_etl.changelog``.
        bounds, holding: when it writes again what it has written, and how long it keeps the file.
    """

    name = "duckdb"
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
                Interruptible,
                ReadsRows,
                RemovesTables,
                RepairsTables,
            }
        ),
    )
    config_model = DuckDBDestinationConfig

    @classmethod
    def from_config(
        cls, config: DuckDBDestinationConfig, pipeline: PipelineConfig
    ) -> DuckDBDestination:
        """The destination, not yet opened."""
        return cls(
            config.path,
            memory_limit=config.memory_limit,
            lock_timeout_s=config.lock_timeout_s,
            changelog=config.changelog,
        )

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        memory_limit: str = "256MB",
        lock_timeout_s: float = 60.0,
        changelog: bool = False,
        bounds: Bounds = BOUNDS,
        holding: Holding = HOLDING,
    ) -> None:
        super().__init__(DuckDBDialect(), changelog=changelog)
        self.path = Path(path).expanduser().absolute()
        self._lock_timeout_s = lock_timeout_s
        self._file = DatabaseFile(
            self.path,
            memory_limit=memory_limit,
            lock_timeout_s=lock_timeout_s,
            bounds=bounds,
            holding=holding,
        )
        #: Held by transactions that come one after the other; other processes don't have the file.
        self._turn = threading.Lock()
        self._as_stored = AsStored()
        #: From startup on.
        self._seen: SeenFile | None = None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return str(self.path)

    def startup(self, store: DestinationStore) -> None:
        """Check the folder and the file, and create the ledger.

        Raises:
            DestinationError: the file can't be written where it is.
        """
        self.check()
        self._file.guard = None
        super().startup(store)
        self._file.guard = self._seen

    def interrupt(self) -> None:
        """Wait for no other process that has the file; what is free is still written."""
        self._file.stop.set()

    def shutdown(self) -> None:
        self._file.close()
        # The next startup waits again.
        self._file.stop.clear()

    def check(self) -> str:
        """Whether the file can be written where it is; changes nothing.

        Raises:
            DestinationError: it can't, with what to do.
        """
        check_file(self.path)
        return f"DuckDB file {self.path}" + (
            "; the first start creates it" if is_missing(self.path) else ""
        )

    # -- transactions --------------------------------------------------------------------------

    @contextmanager
    def _transaction(
        self, *, alone: bool = False, more_follows: bool | None = None
    ) -> Iterator[DuckDBSession]:
        turn = self._turn if alone else nullcontext()
        with turn, self._file.transaction(more_follows=more_follows) as connection:
            yield DuckDBSession(connection)

    @contextmanager
    def _reading(self) -> Iterator[DuckDBSession | None]:
        if self._seen is not None:
            with self._transaction() as session:
                yield session
        elif is_missing(self.path):
            yield None
        else:
            check_place(self.path)
            with reading.read_connection(
                self.path,
                lock_timeout_s=self._lock_timeout_s,
                stop=self._file.stop,
                config=_READING,
            ) as connection:
                yield DuckDBSession(connection)

    def _blaming(self, table_id: TableId, name: str) -> AbstractContextManager[None]:
        return blaming(table_id, name)

    def _prepare(self, session: DuckDBSession) -> None:
        _rename_earlier_staging(session)
        correct_exponents(session, Ledger(session).all_tables())
        mark = Marks(session).mark("")
        assert mark is not None
        self._seen = SeenFile(self.path, mark.identity, self._revisions)

    def _before_commit(self, session: DuckDBSession, events: EventBatch, dead_rows: int) -> None:
        self._file.upkeep.before_commit(session.connection, events, dead_rows=dead_rows)

    def write_events(self, events: EventBatch) -> None:
        """Apply the batch in one transaction, all tables and their positions together.

        Where columns change after rows did, it takes several transactions; see `parts`.

        Raises:
            Superseded: a newer epoch has written.
            TableWriteFailed: one table refuses; nothing of that transaction is applied.
            DestinationUnreachable: the file can't be opened, or can't be written.
        """
        for part in parts(events):
            super().write_events(part)

    # -- readers -------------------------------------------------------------------------------

    def query(self, sql: str) -> pa.Table:
        """The result of a query; as `reading.query`."""
        return reading.query(self.path, sql, lock_timeout_s=self._lock_timeout_s)

    def count_rows(self) -> dict[str, int]:
        """The number of rows of each table, by ``schema.table``."""
        self._let_go_at_the_end()
        return reading.count_rows(
            self.path, lock_timeout_s=self._lock_timeout_s, stop=self._file.stop
        )

    @contextmanager
    def read_rows(self, schema: TableSchema) -> Iterator[Iterator[pa.RecordBatch]]:
        """The rows of a table; writers wait until the block ends. See `ReadsRows`."""
        with self._reading() as session:
            if session is None:
                raise TableRewritten(f"there is no file {self.path}")
            yield read_rows(session, schema, is_alone=self._seen is None)

    def as_read(self, schema: TableSchema, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows as `read_rows` gives them once they are written."""
        return self._as_stored(schema, rows)

    @contextmanager
    def read_hashes(self, schema: TableSchema) -> Iterator[Iterator[RowHashes]]:
        """Hashes of the rows; writers wait until the block ends. See `HashesRows`."""
        with self._reading() as session:
            if session is None:
                raise TableRewritten(f"there is no file {self.path}")
            yield read_hashes(session, schema, is_alone=self._seen is None)

    def hash_rows(
        self, schema: TableSchema, rows: pa.RecordBatch, *, are_read: bool = False
    ) -> RowHashes:
        """The same hashes of rows that are here."""
        return hash_rows(self._as_stored, schema, rows, are_read=are_read)

    def count_odd_values(self) -> dict[str, dict[str, int]]:
        """How many values each table's columns can't hold, by ``schema.table`` and column."""
        self._let_go_at_the_end()
        return reading.odd_values(
            self.path, lock_timeout_s=self._lock_timeout_s, stop=self._file.stop
        )[0]

    def _let_go_at_the_end(self) -> None:
        """Readers wait for no one once they were interrupted, so neither for this process."""
        if self._file.stop.is_set():
            self._file.close()

    def count_quarantined_rows(self) -> dict[str, int]:
        """How many rows are kept apart from each table, by ``schema.table``."""
        self._let_go_at_the_end()
        return {
            twin.table: twin.row_count
            for twin in reading.quarantines(
                self.path, lock_timeout_s=self._lock_timeout_s, stop=self._file.stop
            )
            if twin.row_count
        }


def _rename_earlier_staging(session: DuckDBSession) -> None:
    """Continue with copies that a version began which called their tables ``_etl_copy_OID``."""
    found = session.fetch(
        """
        SELECT t.schema_name, t.table_name, c.table_id
        FROM duckdb_tables() AS t
        JOIN _etl.copies AS c ON t.table_name = '_etl_copy_' || c.table_id
        WHERE c.status = 'running' AND t.database_name = current_database()
        AND NOT EXISTS (
            FROM _etl.tables AS k
            WHERE k.schema_name = t.schema_name AND k.table_name = t.table_name
        )
        """
    )
    for schema_name, name, table_id in found:
        staging = session.dialect.staging(schema_name, table_id)
        move_table(session, TableName(schema_name, name), staging)
