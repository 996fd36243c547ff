"""A destination that is one DuckDB file."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import duckdb
import pyarrow as pa

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import reading
from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.destinations.duckdb.enums import pieces_with_room
from etl_dagster.destinations.duckdb.file import DatabaseFile
from etl_dagster.destinations.duckdb.parts import parts
from etl_dagster.destinations.duckdb.readiness import check_file, check_place
from etl_dagster.destinations.duckdb.seen import SeenFile, is_missing
from etl_dagster.destinations.duckdb.tables import (
    column_types,
    create_table,
    find_clashes,
    insert_rows,
    quote,
    readable,
    table_name,
)
from etl_dagster.destinations.duckdb.wide_numbers import correct_exponents
from etl_dagster.destinations.sql.fetch import FetchAhead
from etl_dagster.destinations.sql.ledger import Ledger
from etl_dagster.destinations.sql.merge import TableMerge
from etl_dagster.destinations.sql.names import Names
from etl_dagster.destinations.sql.odd_values import Entries, OddValues
from etl_dagster.destinations.sql.quarantine import Quarantine
from etl_dagster.destinations.sql.whole_tables import (
    WholeTables,
    drop_tables,
    staging_name,
)
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.destination import (
    Capabilities,
    ChecksItself,
    ChecksNames,
    CopiesManyTables,
    CountsOddValues,
    CountsQuarantinedRows,
    CountsRows,
)
from etl_dagster.model.events import ChunkId, EventBatch, TableRows
from etl_dagster.model.identity import DestinationMark, HeldCopy
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import DestinationStore

_log = logging.getLogger(__name__)

#: What a table or its values can be the reason of; anything else concerns the file.
_OF_TABLE = (
    duckdb.DataError,
    duckdb.ProgrammingError,
    duckdb.NotSupportedError,
    duckdb.IntegrityError,
    pa.ArrowInvalid,
    pa.ArrowNotImplementedError,
)
_NOT_OF_TABLE = (duckdb.TransactionException, duckdb.OutOfMemoryException)
#: Inside quotes, DuckDB's messages repeat values.
_VALUES = re.compile(r"'.*'|\".*\"", re.DOTALL)


class DuckDBDestination:
    """Tables in schemas named as the source's, and in schema ``_etl`` what was applied to them.

    Data and positions are committed together, so every change is applied exactly once. Any number
    of processes may write at once, and readers read in between; each waits for its turn.

    Args:
        memory_limit: for DuckDB's own buffers; more goes to a temporary folder beside the file.
        lock_timeout_s: how long to wait for somebody else to let go of the file.
        changelog: also write the position of every applied change into ``_etl.changelog``.
    """

    name = "duckdb"
    capabilities = Capabilities(
        transactional=True,
        schema_changes=True,
        odd_values=True,
        quarantine=True,
        offers=frozenset(
            {
                ChecksItself,
                ChecksNames,
                CopiesManyTables,
                CountsOddValues,
                CountsQuarantinedRows,
                CountsRows,
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
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self._lock_timeout_s = lock_timeout_s
        self._changelog = changelog
        self._store: DestinationStore | None = None
        self._file = DatabaseFile(
            self.path, memory_limit=memory_limit, lock_timeout_s=lock_timeout_s
        )
        #: Chunks are written side by side. What compares and sets (an epoch, a copy), or creates
        #: something that another transaction might create too, comes one after the other.
        self._lock = threading.Lock()
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
        self._store = store
        self._file.guard = None
        with self._file.transaction() as connection:
            ledger = Ledger(connection)
            ledger.create()
            mark = ledger.mark("")
            _rename_earlier_staging(connection)
            correct_exponents(connection, ledger.all_tables())
        assert mark is not None
        self._file.guard = self._seen = SeenFile(self.path, mark.identity)

    def shutdown(self) -> None:
        self._file.close()

    def check(self) -> str:
        """Whether the file can be written where it is; changes nothing.

        Raises:
            DestinationError: it can't, with what to do.
        """
        check_file(self.path)
        return f"DuckDB file {self.path}" + (
            "; the first start creates it" if is_missing(self.path) else ""
        )

    def check_names(self, schemas: Sequence[TableSchema]) -> Sequence[str]:
        return find_clashes(schemas)

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        with self._lock, self._transaction(schema) as connection:
            ledger = Ledger(connection)
            ledger.forget_position(schema.id)
            ledger.end_copies(schema.id)
            OddValues(connection).forget_copied([schema.id])
            _drop_staging(connection, schema)

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        chunk = rows.chunk
        if chunk is None:
            self._end_copy(schema, rows)
            return
        if not self._begin_copy(schema, rows.copy_id, chunk):
            return
        with FetchAhead(rows.pieces()) as fetched:
            fetched.wait_until_worthwhile()
            self._write_chunk(schema, chunk, fetched)

    def _write_chunk(self, schema: TableSchema, chunk: ChunkId, fetched: FetchAhead) -> None:
        types = column_types(schema)
        odd: list[Entries] = []

        def batches() -> Iterator[pa.RecordBatch]:
            for piece in fetched:
                if piece.odd:
                    odd.append(Entries.copied(piece, schema.key_columns))
                yield piece.rows

        with self._transaction(schema) as connection:
            ledger = Ledger(connection)
            if ledger.copy_status(schema.id, chunk.copy_id) != "running" or ledger.has_chunk(
                schema.id, chunk
            ):
                return
            ledger.keep_chunk(schema.id, chunk)
            staging = table_name(connection, schema.schema_name, staging_name(schema.id))
            # One statement for all: DuckDB then compresses and writes row groups as they fill.
            for stretch in pieces_with_room(connection, staging, schema, batches()):
                stream = map(readable, stretch)
                first = next(stream)
                reader = pa.RecordBatchReader.from_batches(first.schema, chain([first], stream))
                try:
                    insert_rows(connection, staging, reader, schema.column_names, types)
                except duckdb.Error:
                    # Through DuckDB, a failure of the source would look like one of its own.
                    fetched.raise_failure()
                    raise
            if odd:
                OddValues(connection).keep_copied(schema.id, odd, types)

    def _begin_copy(self, schema: TableSchema, copy_id: str, chunk: ChunkId | None) -> bool:
        """Make the copy the current one; whether the chunk, or the end, is still missing."""
        with self._lock, self._transaction(schema) as connection:
            ledger = Ledger(connection)
            status = ledger.copy_status(schema.id, copy_id)
            if status is None:
                ledger.begin_copy(schema.id, copy_id)
                OddValues(connection).forget_copied([schema.id])
                _drop_staging(connection, schema)
                create_table(connection, schema, staging_name(schema.id))
                return True
            return status == "running" and not (chunk and ledger.has_chunk(schema.id, chunk))

    def _end_copy(self, schema: TableSchema, rows: TableRows) -> None:
        """The copy becomes the table, in place of the one before."""
        if not self._begin_copy(schema, rows.copy_id, None):
            return
        with self._lock, self._transaction(schema) as connection:
            ledger = Ledger(connection)
            if ledger.copy_status(schema.id, rows.copy_id) != "running":
                return
            names = Names(connection, ledger)
            for other in ledger.tables_in_the_way(schema):
                is_namesake = other.name == schema.name and not self._is_known(other.id)
                if other.id == schema.id or is_namesake:
                    old = table_name(connection, other.schema_name, other.table_name)
                    connection.execute(f"DROP TABLE IF EXISTS {old}")
                    ledger.forget_table(other.id)
                    OddValues(connection).clear(other.id)
                    Quarantine(connection).drop(other.id)
                    if is_namesake:
                        _log.warning(
                            "%s is another table now; the rows of the one that had the name "
                            "before (OID %s) are replaced",
                            schema.name,
                            other.id,
                        )
            names.claim(schema)
            staging = table_name(connection, schema.schema_name, staging_name(schema.id))
            # Refused where a table is in the way that isn't ours.
            connection.execute(f"ALTER TABLE {staging} RENAME TO {quote(schema.table_name)}")
            position = Position.just_before(rows.replay_from)
            has_odd_values = OddValues(connection).complete([(schema, position)])
            ledger.keep_table(schema)
            ledger.note_odd_values(schema.id, bool(has_odd_values))
            if has_odd_values:
                Quarantine(connection).hold_all(schema)
            ledger.keep_position(schema, position)
            ledger.complete_copy(schema.id, rows.copy_id, rows.replay_from)
            names.settle()

    def _is_known(self, table_id: TableId) -> bool:
        """Whether the pipeline has the table; one that was dropped or left the publication is
        forgotten."""
        return self._store is not None and (
            self._store.get_table_replication_state(table_id) is not None
        )

    def drop_tables_for_copy(self, schemas: Sequence[TableSchema]) -> None:
        table_ids = [schema.id for schema in schemas]
        with self._lock, self._file.transaction() as connection:
            WholeTables(connection, _blaming, self._is_known).forget_copies(table_ids)
            OddValues(connection).forget_copied(table_ids)
            drop_tables(connection, map(staging_name, table_ids))

    def write_whole_tables(self, copies: Sequence[tuple[TableSchema, TableRows]]) -> None:
        """Write whole tables, and that their copies are complete, in one transaction.

        Raises:
            TableWriteFailed: one table refuses; nothing is written.
        """
        # To open the file takes the longer, the more tables are in it.
        with self._lock, self._file.transaction(more_follows=True) as connection:
            WholeTables(connection, _blaming, self._is_known).write(copies)

    # -- the stream ----------------------------------------------------------------------------

    def write_events(self, events: EventBatch) -> None:
        """Apply the batch in one transaction, all tables and their positions together.

        Where columns change after rows did, it takes several transactions; see `parts`.

        Raises:
            Superseded: a newer epoch has written.
            TableWriteFailed: one table refuses; nothing of that transaction is applied.
            DestinationUnreachable: the file can't be had, or not be written.
        """
        for part in parts(events):
            self._write_part(part)

    def _write_part(self, events: EventBatch) -> None:
        with self._lock:
            transaction = self._file.transaction(more_follows=events.more_follows)
            with transaction as connection:
                ledger = Ledger(connection)
                revision = ledger.raise_mark(events)
                tables = ledger.tables(events.tables)
                names = Names(connection, ledger, tables)
                replay_points = ledger.replay_points(events.tables)
                dead_rows = 0
                for table_id, steps in events.tables.items():
                    if events.is_outdated(table_id, replay_points.get(table_id)):
                        continue
                    merge = TableMerge(
                        connection, ledger, tables.get(table_id), names, changelog=self._changelog
                    )
                    name = steps[0].schema.name if steps else str(table_id)
                    with _blaming(table_id, name):
                        merge.apply(steps)
                    dead_rows += merge.dead_rows
                names.settle()
                self._file.upkeep.before_commit(connection, events, dead_rows=dead_rows)
            if self._seen is not None:
                self._seen.revisions[events.pipeline] = revision

    # -- the mark ------------------------------------------------------------------------------

    def read_mark(self, pipeline: str) -> DestinationMark | None:
        with self._reading() as ledger:
            return None if ledger is None else ledger.mark(pipeline)

    def held_copies(self, table_ids: Collection[TableId]) -> Mapping[TableId, HeldCopy]:
        with self._reading() as ledger:
            return {} if ledger is None else ledger.held_copies(table_ids)

    @contextmanager
    def _reading(self) -> Iterator[Ledger | None]:
        """The ledger to read, also before `startup`; None while there is no file."""
        if self._seen is not None:
            with self._file.transaction() as connection:
                yield Ledger(connection)
        elif is_missing(self.path):
            yield None
        else:
            check_place(self.path)
            with reading.read_connection(
                self.path, lock_timeout_s=self._lock_timeout_s
            ) as connection:
                yield Ledger(connection)

    def written_revision(self, pipeline: str) -> int:
        return 0 if self._seen is None else self._seen.revisions.get(pipeline, 0)

    # -- readers -------------------------------------------------------------------------------

    def query(self, sql: str) -> pa.Table:
        """The result of a query; as `reading.query`."""
        return reading.query(self.path, sql, lock_timeout_s=self._lock_timeout_s)

    def count_rows(self) -> dict[str, int]:
        """The number of rows of each table, by ``schema.table``."""
        return reading.count_rows(self.path, lock_timeout_s=self._lock_timeout_s)

    def count_odd_values(self) -> dict[str, dict[str, int]]:
        """How many values each table's columns can't hold, by ``schema.table`` and column."""
        return reading.odd_values(self.path, lock_timeout_s=self._lock_timeout_s)[0]

    def count_quarantined_rows(self) -> dict[str, int]:
        """How many rows are kept apart from each table, by ``schema.table``."""
        return {
            twin.table: twin.row_count
            for twin in reading.quarantines(self.path, lock_timeout_s=self._lock_timeout_s)
            if twin.row_count
        }

    @contextmanager
    def _transaction(self, schema: TableSchema) -> Iterator[duckdb.DuckDBPyConnection]:
        """A transaction about one table."""
        with self._file.transaction() as connection, _blaming(schema.id, schema.name):
            yield connection


@contextmanager
def _blaming(table_id: TableId, name: str) -> Iterator[None]:
    """Tell failures of this table from those of the file. Messages keep no value of a row."""
    try:
        yield
    except _NOT_OF_TABLE:
        raise
    except _OF_TABLE as error:
        message = (str(error).splitlines() or [""])[0]
        if isinstance(error, duckdb.ProgrammingError):
            raise TableWriteFailed(table_id, f"DuckDB refuses {name}: {message}") from error
        # The cause isn't kept either: it would be logged with its values.
        message = _VALUES.sub("...", str(error)).splitlines()[0]
        raise TableWriteFailed(
            table_id,
            f"DuckDB refuses a value of {name}: {message}",
            solution="Compare the column's type at the destination with the source's, "
            "then reset the table: the copy creates it again.",
        ) from None


def _rename_earlier_staging(connection: duckdb.DuckDBPyConnection) -> None:
    """Go on with copies that a version began which called their tables ``_etl_copy_OID``."""
    found = connection.execute(
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
    ).fetchall()
    for schema_name, name, table_id in found:
        staging = table_name(connection, schema_name, name)
        connection.execute(f"ALTER TABLE {staging} RENAME TO {quote(staging_name(table_id))}")


def _drop_staging(connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> None:
    # The table may have been in another schema when the copy began.
    drop_tables(connection, [staging_name(schema.id)])
