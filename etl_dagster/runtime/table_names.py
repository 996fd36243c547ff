"""What a table is called in a log."""

from __future__ import annotations

from etl_dagster.lsn import LSN_MAX
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import SchemaStore


def name_of(store: SchemaStore, table_id: TableId) -> str:
    """The name of the table's newest version; its number where the store knows none."""
    schema = store.get_table_schema(table_id, LSN_MAX)
    return f"table {table_id}" if schema is None else schema.name
