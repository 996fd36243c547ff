"""Reads the file of a `DuckDBDestination` while others write it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from etl_dagster.destinations.duckdb.file import lock_of, open_locked
from etl_dagster.destinations.duckdb.readiness import is_unfinished
from etl_dagster.destinations.duckdb.tables import fetch_row, quote
from etl_dagster.errors import DestinationError
from etl_dagster.table_name import TableName

#: So many tables are counted by one statement.
_COUNTED_AT_ONCE = 50
#: May stand before a query.
_SETTINGS = (duckdb.StatementType.SET, duckdb.StatementType.VARIABLE_SET)


@contextmanager
def read_connection(
    path: str | os.PathLike[str], *, lock_timeout_s: float = 60.0
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that only reads. Writers wait until it is closed, so don't keep it.

    Raises:
        DestinationUnreachable: somebody else kept the file for too long.
        DestinationError: there is no such file, or it is none of DuckDB.
    """
    file = Path(path).expanduser().absolute()
    if not file.is_file() or is_unfinished(file):
        raise DestinationError(
            f"there is no file {file}",
            solution="Start the pipeline first; it creates the file. Or correct destination.path.",
        )
    lock = lock_of(file)
    connection = open_locked(file, lock, {}, timeout_s=lock_timeout_s, read_only=True)
    try:
        yield connection
    finally:
        connection.close()
        lock.release()


def query(path: str | os.PathLike[str], sql: str, *, lock_timeout_s: float = 60.0) -> pa.Table:
    """The result of a query, as an Arrow table. Settings (`SET ...;`) may stand before it.

    Raises:
        DestinationError: DuckDB refuses the query, it is more than one, or the file can't be read.
    """
    with read_connection(path, lock_timeout_s=lock_timeout_s) as connection, _refusals():
        before = connection.extract_statements(sql)[:-1]
        if any(statement.type not in _SETTINGS for statement in before):
            raise DestinationError(
                "these are several queries, and one result can be returned",
                solution="Ask one at a time, or combine them: SELECT ... UNION ALL SELECT ...",
            )
        relation = connection.sql(sql)
        # A statement without a result, such as SET, gives no relation.
        table: pa.Table | None = None if relation is None else relation.to_arrow_table()
    return pa.table({}) if table is None else table


def count_rows(path: str | os.PathLike[str], *, lock_timeout_s: float = 60.0) -> dict[str, int]:
    """The number of rows of each replicated table, by ``schema.table``."""
    with read_connection(path, lock_timeout_s=lock_timeout_s) as connection, _refusals():
        database = fetch_row(connection, "SELECT current_database()") or ("",)
        tables = connection.execute(
            "SELECT schema_name, table_name FROM _etl.tables ORDER BY ALL"
        ).fetchall()
        counts: dict[str, int] = {}
        for first in range(0, len(tables), _COUNTED_AT_ONCE):
            some = tables[first : first + _COUNTED_AT_ONCE]
            found = connection.execute(
                " UNION ALL ".join(
                    f"SELECT {place}, count(*) FROM {quote(database[0], *names)}"  # noqa: S608
                    for place, names in enumerate(some)
                )
            ).fetchall()
            counts |= {str(TableName(*some[place])): int(count) for place, count in found}
        return counts


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise DestinationError(
            f"DuckDB refuses the query: {error}", solution="Correct the query."
        ) from error
