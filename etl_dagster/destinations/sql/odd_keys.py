"""Gives the entries of ``_etl.odd_values`` the key that their table gets."""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping

import duckdb

from etl_dagster.destinations.duckdb.tables import fetch_row
from etl_dagster.destinations.sql.odd_values import key_before, key_columns, key_list
from etl_dagster.errors import RowsOutdated
from etl_dagster.model.schema import TableSchema


def rekey(
    connection: duckdb.DuckDBPyConnection,
    target: str,
    old: TableSchema,
    new: TableSchema,
    types: Mapping[str, str],
) -> None:
    """Where the table gets another key, give its entries that of their rows.

    To be called before the table's columns change: the columns of both keys are there then.

    Args:
        target: the table, as SQL.
        types: DuckDB's types of its columns.

    Raises:
        RowsOutdated: which row an entry belongs to isn't known under the new key.
    """
    before, after = [column.name for column in key_columns(old)], key_before(old, new)
    names = [column.name for column in after]
    if names == before and len(names) == len(new.key_columns):
        return
    count = _count(connection, "_etl.odd_values AS entry WHERE entry.table_id = ?", new.id)
    if not count:
        return
    is_held = not _count(
        connection,
        "_etl.odd_values AS entry WHERE entry.table_id = ? AND list_contains(?, column_name)",
        new.id,
        names,
    )
    # Without a key, a row is found by all of its values, and `clamp` has left some in the rows.
    if not (before and names and len(names) == len(new.key_columns) and is_held):
        raise _outdated(new)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE _etl_rekeyed AS "
        "SELECT entry.rowid AS entry_id, of_row.new_key FROM _etl.odd_values AS entry "
        f"JOIN (SELECT {key_list(before, types)} AS old_key, {key_list(names, types)} AS new_key "
        f"FROM {target}) AS of_row ON entry.key = of_row.old_key WHERE entry.table_id = ?",
        [new.id],
    )
    found = fetch_row(
        connection, "SELECT count(*), count(DISTINCT entry_id) FROM temp.main._etl_rekeyed"
    )
    if found != (count, count):
        raise _outdated(new)
    connection.execute(
        "UPDATE _etl.odd_values AS entry SET key = rekeyed.new_key "
        "FROM temp.main._etl_rekeyed AS rekeyed WHERE entry.rowid = rekeyed.entry_id"
    )
    connection.execute("DROP TABLE temp.main._etl_rekeyed")


def _count(connection: duckdb.DuckDBPyConnection, source: str, *values: object) -> int:
    row = fetch_row(connection, f"SELECT count(*) FROM {source}", values)
    assert row is not None
    return int(row[0])


def _outdated(table: TableSchema) -> RowsOutdated:
    return RowsOutdated(
        table.id,
        "it has another key, and which rows its odd values belong to is not known under that",
    )
