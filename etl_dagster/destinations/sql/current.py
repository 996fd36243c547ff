"""Which rows of a table are counted: those that the source has now, whatever else is kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from etl_dagster.destinations.sql.session import Session
from etl_dagster.model.modes import TableMode
from etl_dagster.table_name import TableName

#: By mode, the condition for rows that the source has now. Where every change is kept, all rows
#: are counted.
CURRENT: Final[Mapping[TableMode, str]] = {
    "mirror": "true",
    "soft_delete": "_etl_deleted_at IS NULL",
    "append": "true",
    "scd2": "_etl_is_current",
}


def tables_with_current_rows(session: Session) -> list[tuple[TableName, str]]:
    """The tables, each with the condition on its rows, by name."""
    # Files of earlier versions have no modes.
    has_mode = session.fetch(
        "SELECT 1 FROM information_schema.columns WHERE table_catalog = current_database() "
        "AND table_schema = '_etl' AND table_name = 'tables' AND column_name = 'mode'"
    )
    mode = "mode" if has_mode else "NULL"
    tables = session.fetch(
        f"SELECT schema_name, table_name, {mode} FROM _etl.tables ORDER BY 1, 2"  # noqa: S608  (a constant)
    )
    conditions = {str(mode): condition for mode, condition in CURRENT.items()}
    return [
        (TableName(schema_name, name), conditions[found or "mirror"])
        for schema_name, name, found in tables
    ]
