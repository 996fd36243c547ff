"""Gives the entries of ``_etl.odd_values`` the new key of their table."""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from etl_dagster.destinations.sql.odd_values import key_before, key_columns, key_list
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.errors import RowsOutdated
from etl_dagster.model.schema import TableSchema


def rekey(session: Session, target: Target, rows: str, new: TableSchema) -> None:
    """If the table gets another key, give each entry the new key of its row.

    Call it before the table's columns change, while those of both keys are there.

    Args:
        target: the table as it is.
        rows: all that belong to it, as SQL.

    Raises:
        RowsOutdated: the new key doesn't tell which row an entry belongs to.
    """
    old = target.schema
    before, after = [column.name for column in key_columns(old)], key_before(old, new)
    names = [column.name for column in after]
    if names == before and len(names) == len(new.key_columns):
        return
    count = _count(session, "_etl.odd_values WHERE table_id = $1", new.id)
    if not count:
        return
    is_held = not _count(
        session,
        "_etl.odd_values WHERE table_id = $1 AND column_name IN (SELECT unnest($2::VARCHAR[]))",
        new.id,
        names,
    )
    # Without a key, a row is found by all of its values, and `clamp` has left some in the rows.
    if not (before and names and len(names) == len(new.key_columns) and is_held):
        raise _outdated(new)
    row_id, rekeyed = session.dialect.row_id, f"{session.dialect.temporary}_etl_rekeyed"
    old_key, new_key = (key_list(key, target.types) for key in (before, names))
    session.execute(
        f"CREATE TEMP TABLE _etl_rekeyed AS SELECT entry.{row_id} AS entry_id, of_row.new_key "
        "FROM _etl.odd_values AS entry "
        f"JOIN (SELECT {old_key} AS old_key, {new_key} AS new_key FROM {rows} AS rows)"
        f" AS of_row "
        # Not all databases take a parameter here.
        f"ON entry.key = of_row.old_key WHERE entry.table_id = {new.id:d}"
    )
    found = session.fetch_row(f"SELECT count(*), count(DISTINCT entry_id) FROM {rekeyed}")
    if found != (count, count):
        raise _outdated(new)
    session.execute(
        "UPDATE _etl.odd_values AS entry SET key = rekeyed.new_key "
        f"FROM {rekeyed} AS rekeyed WHERE entry.{row_id} = rekeyed.entry_id"
    )
    session.execute(f"DROP TABLE {rekeyed}")


def _count(session: Session, source: str, *values: object) -> int:
    row = session.fetch_row(f"SELECT count(*) FROM {source}", values)
    assert row is not None
    return int(row[0])


def _outdated(table: TableSchema) -> RowsOutdated:
    return RowsOutdated(
        table.id,
        "it has another key, which does not tell to which rows its odd values belong",
    )
