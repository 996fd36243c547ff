"""Reads the file of a `DuckDBDestination` while others write it."""

# Identifiers are quoted by the dialect, or constants; values are parameters.
# ruff: noqa: S608

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from etl_dagster.destinations.duckdb.exact import exact
from etl_dagster.destinations.duckdb.file import lock_of, open_locked
from etl_dagster.destinations.duckdb.readiness import is_unfinished
from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.sql.current import tables_with_current_rows
from etl_dagster.destinations.sql.dialect import quote
from etl_dagster.destinations.sql.ledger_tables import tables_there
from etl_dagster.destinations.sql.quarantine import SCHEMA as QUARANTINE
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
    path: str | os.PathLike[str],
    *,
    lock_timeout_s: float = 60.0,
    stop: threading.Event | None = None,
    config: Mapping[str, Any] | None = None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that only reads. Writers wait until it is closed, so don't keep it.

    Args:
        config: DuckDB's settings.
        stop: once set, other processes are not waited for.

    Raises:
        DestinationUnreachable: another process kept the file for too long.
        DestinationError: there is no such file, or it is none of DuckDB.
    """
    file = Path(path).expanduser().absolute()
    if not file.is_file() or is_unfinished(file):
        raise DestinationError(
            f"there is no file {file}",
            solution="Start the pipeline first; it creates the file. Or correct destination.path.",
        )
    lock = lock_of(file)
    connection = open_locked(
        file, lock, dict(config or {}), timeout_s=lock_timeout_s, stop=stop, read_only=True
    )
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
    with read_connection(path, lock_timeout_s=lock_timeout_s) as connection:
        return ask(connection, sql)


def ask(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """As `query`, over a connection."""
    with _refusals():
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


def count_rows(
    path: str | os.PathLike[str],
    *,
    lock_timeout_s: float = 60.0,
    stop: threading.Event | None = None,
) -> dict[str, int]:
    """The number of rows that the source has now of each table, by ``schema.table``.

    Of a table of which every change is kept, the number of changes.
    """
    with read_connection(path, lock_timeout_s=lock_timeout_s, stop=stop) as connection, _refusals():
        session = DuckDBSession(connection)
        tables = tables_with_current_rows(session)
        counts: dict[str, int] = {}
        for first in range(0, len(tables), _COUNTED_AT_ONCE):
            some = tables[first : first + _COUNTED_AT_ONCE]
            found = connection.execute(
                " UNION ALL ".join(
                    f"SELECT {place}, count(*) FROM "
                    f"{session.dialect.table(name.schema_name, name.table_name)} WHERE {condition}"
                    for place, (name, condition) in enumerate(some)
                )
            ).fetchall()
            counts |= {str(some[place][0]): int(count) for place, count in found}
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
    #: Whether its row is kept apart from the table.
    is_quarantined: bool = False


@dataclass(frozen=True, slots=True)
class Twin:
    """Where the rows are that are kept apart from a table."""

    #: ``schema.table``.
    table: str
    #: As SQL, without the database.
    twin: str
    row_count: int
    #: The columns whose odd values keep rows apart.
    columns: list[str]


def quarantines(
    path: str | os.PathLike[str],
    *,
    table: TableName | None = None,
    lock_timeout_s: float = 60.0,
    stop: threading.Event | None = None,
) -> list[Twin]:
    """The tables that have had rows in quarantine, and how many each has there now.

    Args:
        table: this one alone.
    """
    with read_connection(path, lock_timeout_s=lock_timeout_s, stop=stop) as connection:
        return twins_of(connection, table)


def twins_of(connection: duckdb.DuckDBPyConnection, table: TableName | None) -> list[Twin]:
    """As `quarantines`, over a connection."""
    with _refusals():
        if not _has_table(connection, "quarantines"):
            return []  # an earlier version wrote the file
        named = connection.execute(
            "SELECT schema_name, table_name, twin_name, columns FROM _etl.quarantines "
            "JOIN _etl.tables USING (table_id) ORDER BY ALL"
        ).fetchall()
        session = DuckDBSession(connection)
        twins: list[Twin] = []
        for schema_name, name, twin_name, columns in named:
            called = TableName(schema_name, name)
            if table not in (None, called):
                continue
            twin = session.dialect.table(QUARANTINE, twin_name)
            [(count,)] = session.fetch(f"SELECT count(*) FROM {twin}")
            holding = [column["name"] for column in json.loads(columns) if column.get("quarantine")]
            twins.append(Twin(str(called), quote(QUARANTINE, twin_name), int(count), holding))
        return twins


def odd_values(
    path: str | os.PathLike[str],
    *,
    table: TableName | None = None,
    limit: int = 0,
    lock_timeout_s: float = 60.0,
    stop: threading.Event | None = None,
) -> tuple[dict[str, dict[str, int]], list[OddValue]]:
    """How many values each table's columns can't hold, and the first `limit` of these.

    Args:
        table: this one alone.
    """
    with read_connection(path, lock_timeout_s=lock_timeout_s, stop=stop) as connection:
        return odd_values_of(connection, table, limit)


def odd_values_of(
    connection: duckdb.DuckDBPyConnection, table: TableName | None, limit: int | None
) -> tuple[dict[str, dict[str, int]], list[OddValue]]:
    """As `odd_values`, over a connection; without a limit, all of them."""
    with _refusals():
        if not _has_table(connection, "odd_values"):
            return {}, []  # an earlier version wrote the file
        condition, values = "", []
        if table is not None:
            condition = "WHERE schema_name = ? AND table_name = ?"
            values = [table.schema_name, table.table_name]
        counts: dict[str, dict[str, int]] = {}
        for schema_name, name, column, count in connection.execute(
            "SELECT schema_name, table_name, column_name, count(*) "
            f"FROM _etl.odd_values {condition} GROUP BY ALL ORDER BY ALL",
            values,
        ).fetchall():
            counts.setdefault(str(TableName(schema_name, name)), {})[column] = int(count)
        found = connection.execute(
            "SELECT schema_name, table_name, key, column_name, text, commit_lsn, ordinal, "
            "epoch_us(commit_time), EXISTS (SELECT 1 FROM _etl.odd_values AS other "
            "WHERE other.table_id = entry.table_id AND other.key = entry.key "
            "AND (other.schema_name, other.table_name, other.column_name) IN "
            "(SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), unnest(?::VARCHAR[]))) "
            f"FROM _etl.odd_values AS entry {condition} "
            "ORDER BY schema_name, table_name, commit_lsn, ordinal, key, column_name LIMIT ?",
            [*_columns_of(twins_of(connection, table)), *values, limit],
        ).fetchall()
    return counts, [
        OddValue(
            str(TableName(schema_name, name)),
            key,
            column,
            text,
            Position(Lsn(lsn), ordinal),
            None if time_us is None else timestamp_to_json(time_us),
            is_quarantined,
        )
        for schema_name, name, key, column, text, lsn, ordinal, time_us, is_quarantined in found
    ]


def _columns_of(twins: Sequence[Twin]) -> list[list[str]]:
    """The columns that keep rows apart: their schemas, their tables, and their names."""
    found = [(TableName.parse(twin.table), column) for twin in twins for column in twin.columns]
    return [
        [table.schema_name for table, _ in found],
        [table.table_name for table, _ in found],
        [column for _, column in found],
    ]


def _has_table(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    """Whether the ledger has this table; files of earlier versions lack some."""
    return name in tables_there(DuckDBSession(connection))


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise DestinationError(
            f"DuckDB refuses the query: {error}", solution="Correct the query."
        ) from error
