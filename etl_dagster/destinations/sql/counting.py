"""What is in the destination, counted."""

# Every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from etl_dagster.destinations.sql.current import tables_with_current_rows
from etl_dagster.destinations.sql.ledger_tables import tables_there
from etl_dagster.destinations.sql.quarantine import SCHEMA as QUARANTINE
from etl_dagster.destinations.sql.session import Session
from etl_dagster.table_name import TableName


def count_rows(session: Session) -> dict[str, int]:
    """How many rows of each table the source has now, by ``schema.table``.

    For a table that keeps every change, the number of changes.
    """
    if "tables" not in tables_there(session):
        return {}
    return {
        str(name): count_current(session, name, condition)
        for name, condition in tables_with_current_rows(session)
    }


def count_current(session: Session, name: TableName, condition: str) -> int:
    """The number of a table's rows for which the condition holds."""
    return _count(session, name.schema_name, name.table_name, condition)


def count_odd_values(session: Session) -> dict[str, dict[str, int]]:
    """How many values the columns of each table can't hold, by ``schema.table`` and column."""
    if "odd_values" not in tables_there(session):
        return {}
    counts: dict[str, dict[str, int]] = {}
    for schema_name, name, column, count in session.fetch(
        "SELECT schema_name, table_name, column_name, count(*) FROM _etl.odd_values "
        "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    ):
        counts.setdefault(str(TableName(schema_name, name)), {})[column] = int(count)
    return counts


def count_quarantined_rows(session: Session) -> dict[str, int]:
    """How many rows are kept apart from each table, by ``schema.table``."""
    if "quarantines" not in tables_there(session):
        return {}
    twins = session.fetch(
        "SELECT t.schema_name, t.table_name, q.twin_name FROM _etl.quarantines AS q "
        "JOIN _etl.tables AS t ON t.table_id = q.table_id ORDER BY 1, 2"
    )
    counts = {
        str(TableName(schema_name, name)): _count(session, QUARANTINE, twin)
        for schema_name, name, twin in twins
    }
    return {name: count for name, count in counts.items() if count}


def _count(session: Session, schema_name: str, name: str, condition: str = "true") -> int:
    table = session.dialect.table(schema_name, name)
    [(count,)] = session.fetch(f"SELECT count(*) FROM {table} WHERE {condition}")
    return int(count)
