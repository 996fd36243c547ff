"""All rows of a table in a DuckDB file, to be compared with those of the source."""

# Every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

import threading
from collections.abc import Iterator

import duckdb
import pyarrow as pa

from etl_dagster.destinations.duckdb.dialect import DuckDBDialect
from etl_dagster.destinations.duckdb.exact import exact
from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.sql.dialect import column_list
from etl_dagster.destinations.sql.stored import stored_table
from etl_dagster.errors import DestinationError
from etl_dagster.model.schema import TableSchema

_ROWS_AT_ONCE = 50_000


def read_rows(session: DuckDBSession, schema: TableSchema) -> Iterator[pa.RecordBatch]:
    """The rows, in batches.

    Raises:
        TableRewritten: the table has other columns, or is not there.
        DestinationError: DuckDB can't read them.
    """
    table = stored_table(session, schema)
    columns = column_list(schema.column_names) or str(session.dialect.only_column)
    try:
        relation = exact(session.connection.sql(f"SELECT {columns} FROM {table}"))
        yield from relation.to_arrow_reader(_ROWS_AT_ONCE)
    except duckdb.Error as error:
        raise DestinationError(
            f"the rows of {schema.name} can't be read: {type(error).__name__}",
            solution="Ask for the same with `etl-dagster query`, which shows what DuckDB says.",
        ) from error


class AsStored:
    """What becomes of rows that are written: the same values in DuckDB's own types."""

    def __init__(self) -> None:
        #: In memory; one for each thread, opened by its first rows.
        self._engines = threading.local()

    def __call__(self, schema: TableSchema, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows as `read_rows` would give them."""
        if not schema.columns:
            return rows
        engine: duckdb.DuckDBPyConnection | None = getattr(self._engines, "engine", None)
        if engine is None:
            engine = duckdb.connect(":memory:", config={"threads": 1})
            self._engines.engine = engine
        dialect = DuckDBDialect()
        engine.register("_etl_rows", dialect.readable(rows))
        try:
            selected = dialect.select_list(schema.column_names, dialect.column_types(schema))
            found = exact(engine.sql(f"SELECT {selected} FROM _etl_rows")).to_arrow_table()
        finally:
            engine.unregister("_etl_rows")
        batches = found.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=found.schema)
