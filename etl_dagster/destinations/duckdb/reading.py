"""Reads the file of a `DuckDBDestination` while others write it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from etl_dagster.destinations.duckdb.exact import exact
from etl_dagster.destinations.duckdb.file import lock_of, open_locked
from etl_dagster.destinations.duckdb.readiness import is_unfinished
from etl_dagster.destinations.duckdb.tables import fetch_row, quote
from etl_dagster.errors import DestinationError
from etl_dagster.lsn import Lsn
from etl_dagster.model.position import Position
from etl_dagster.table_name import TableName
from etl_dagster.values.families.times import timestamp_to_json

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

    Intervals, times with a zone and bits are text in it: see `exact`.

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
        table = None if relation is None else exact(relation).to_arrow_table()
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


@dataclass(frozen=True, slots=True)
class OddValue:
    """An entry of ``_etl.odd_values``."""

    #: ``schema.table``.
    table: str
    #: Of its row, as text; None where the table has no key.
    key: list[str | None] | None
    column: str
    text: str
    position: Position
    #: ISO 8601, UTC; None where a copy brought it.
    commit_time: str | None


def odd_values(
    path: str | os.PathLike[str],
    *,
    table: TableName | None = None,
    limit: int = 0,
    lock_timeout_s: float = 60.0,
) -> tuple[dict[str, dict[str, int]], list[OddValue]]:
    """How many values each table's columns can't hold, and the first `limit` of these.

    Args:
        table: this one alone.
    """
    with read_connection(path, lock_timeout_s=lock_timeout_s) as connection, _refusals():
        there = fetch_row(
            connection,
            "SELECT 1 FROM duckdb_tables() WHERE database_name = current_database() "
            "AND schema_name = '_etl' AND table_name = 'odd_values'",
        )
        if there is None:
            return {}, []  # an earlier version wrote the file
        condition, values = "", []
        if table is not None:
            condition = "WHERE schema_name = ? AND table_name = ?"
            values = [table.schema_name, table.table_name]
        counts: dict[str, dict[str, int]] = {}
        for schema_name, name, column, count in connection.execute(
            "SELECT schema_name, table_name, column_name, count(*) "  # noqa: S608
            f"FROM _etl.odd_values {condition} GROUP BY ALL ORDER BY ALL",
            values,
        ).fetchall():
            counts.setdefault(str(TableName(schema_name, name)), {})[column] = int(count)
        found = connection.execute(
            "SELECT schema_name, table_name, key, column_name, text, commit_lsn, ordinal, "  # noqa: S608
            f"epoch_us(commit_time) FROM _etl.odd_values {condition} "
            "ORDER BY schema_name, table_name, commit_lsn, ordinal, key, column_name LIMIT ?",
            [*values, limit],
        ).fetchall()
    return counts, [
        OddValue(
            str(TableName(schema_name, name)),
            key,
            column,
            text,
            Position(Lsn(lsn), ordinal),
            None if time_us is None else timestamp_to_json(time_us),
        )
        for schema_name, name, key, column, text, lsn, ordinal, time_us in found
    ]


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise DestinationError(
            f"DuckDB refuses the query: {error}", solution="Correct the query."
        ) from error
