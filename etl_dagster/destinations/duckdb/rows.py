"""All rows of a table in a DuckDB file, to be compared with those of the source."""

# Every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import duckdb
import pyarrow as pa

from etl_dagster.destinations.duckdb.dialect import DuckDBDialect
from etl_dagster.destinations.duckdb.exact import exact
from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.sql.dialect import column_list
from etl_dagster.destinations.sql.stored import stored_table
from etl_dagster.errors import DestinationError
from etl_dagster.model.schema import TableSchema

DIALECT: Final = DuckDBDialect()
#: Rows that are given, in SQL.
GIVEN: Final = "_etl_rows"
#: What DuckDB makes at a time. Of long texts, that alone is many MiB.
_VECTOR_ROWS: Final = 2048
#: A batch, which ends with the first of the two that is reached.
_BATCH_ROWS: Final = 65_536
_BATCH_BYTES: Final = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class ReadCache:
    """How much of a file DuckDB may keep in memory while it is read."""

    #: More than this is dropped, down to `left`, which DuckDB reads as a size.
    most_bytes: int = 64 * 1024**2
    left: str = "32MB"
    #: How often it is looked at; seconds.
    look_s: float = 0.05


CACHE: Final = ReadCache()


def read_rows(
    session: DuckDBSession, schema: TableSchema, *, is_alone: bool = False
) -> Iterator[pa.RecordBatch]:
    """The rows, in batches of some MiB.

    Args:
        is_alone: whether no other thread uses the session's DuckDB, which has the default memory
            limit. Then it lets go of what was read, which it would keep up to that limit.

    Raises:
        TableRewritten: the table has other columns, or is not there.
        DestinationError: DuckDB can't read them.
    """
    table = stored_table(session, schema)
    columns = column_list(schema.column_names) or str(session.dialect.only_column)
    query = f"SELECT {columns} FROM {table}"
    return read_query(session.connection, query, schema.name, CACHE if is_alone else None)


def read_query(
    connection: duckdb.DuckDBPyConnection, query: str, table_name: str, cache: ReadCache | None
) -> Iterator[pa.RecordBatch]:
    """What a query over a table finds, in batches of some MiB.

    Args:
        cache: None where other threads use the same DuckDB, whose memory is theirs.

    Raises:
        DestinationError: DuckDB can't read them.
    """
    try:
        vectors: Iterable[pa.RecordBatch] = exact(connection.sql(query)).to_arrow_reader(
            _VECTOR_ROWS
        )
        yield from _gathered(_letting_go(vectors, connection, cache) if cache else vectors)
    except duckdb.Error as error:
        raise DestinationError(
            f"the rows of {table_name} can't be read: {type(error).__name__}",
            solution="Ask for the same with `etl-dagster query`, which shows DuckDB's own message.",
        ) from error


def _gathered(vectors: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches that are worth the steps taken for each."""
    some: list[pa.RecordBatch] = []
    rows = size = 0
    for vector in vectors:
        some.append(vector)
        rows += vector.num_rows
        size += vector.nbytes
        if rows >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield from _joined(some)
            some, rows, size = [], 0, 0
    yield from _joined(some)


def _joined(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    if len(batches) < 2:
        return batches
    return pa.Table.from_batches(batches).combine_chunks().to_batches()


def _letting_go(
    vectors: Iterable[pa.RecordBatch], connection: duckdb.DuckDBPyConnection, cache: ReadCache
) -> Iterator[pa.RecordBatch]:
    """The same, and DuckDB drops what it keeps of the file meanwhile.

    It does when its limit becomes lower. That the limit is low all the time would not do: a vector
    of long texts may need more.
    """
    with contextlib.closing(connection.cursor()) as other:  # the first one has an open result
        looked_at = time.monotonic()
        for vector in vectors:
            yield vector
            if time.monotonic() - looked_at < cache.look_s:
                continue
            [(kept,)] = other.execute(
                "SELECT sum(memory_usage_bytes) FROM duckdb_memory()"
            ).fetchall()
            if kept > cache.most_bytes:
                with contextlib.suppress(duckdb.OutOfMemoryException):  # what is in use stays
                    other.execute(f"SET memory_limit = '{cache.left}'")
                other.execute("RESET memory_limit")
            looked_at = time.monotonic()


class AsStored:
    """What becomes of rows that are written: the same values in DuckDB's own types."""

    def __init__(self) -> None:
        #: In memory; one for each thread, opened by its first rows.
        self._engines = threading.local()

    def __call__(self, schema: TableSchema, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows as `read_rows` would give them."""
        if not schema.columns:
            return rows
        return self.select(DIALECT.readable(rows), f"SELECT {as_stored(schema)} FROM {GIVEN}")

    def select(self, rows: pa.RecordBatch, query: str) -> pa.RecordBatch:
        """What a query makes of rows, which it calls `GIVEN`; from any thread."""
        engine: duckdb.DuckDBPyConnection | None = getattr(self._engines, "engine", None)
        if engine is None:
            engine = duckdb.connect(":memory:", config={"threads": 1})
            self._engines.engine = engine
        engine.register(GIVEN, rows)
        try:
            found = exact(engine.sql(query)).to_arrow_table()
        finally:
            engine.unregister(GIVEN)
        batches = found.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=found.schema)


def as_stored(schema: TableSchema) -> str:
    """Columns of rows that are given, in SQL, as their table has them."""
    return DIALECT.select_list(schema.column_names, DIALECT.column_types(schema))
