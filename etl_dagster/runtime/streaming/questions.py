"""What a stream's worker asks the source about the tables that it applies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.runtime.streaming.unchanged import Key, UnchangedValues
from etl_dagster.runtime.tables.representation import chosen
from etl_dagster.runtime.tables.schemas import SchemaTracker, ask_types
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import FetchedValues, fetch_row_values
from etl_dagster.source.columns import TableToday, fetch_table_today


def schema_tracker(parts: WorkerParts) -> SchemaTracker:
    """Asks for the columns and types of tables that the stream describes again."""
    publication = parts.config.source.publication

    def fetch_table(table_id: TableId) -> TableToday | None:
        return parts.control.ask(
            "reading the table's columns", fetch_table_today, publication, table_id
        )

    return SchemaTracker(
        parts.store,
        fetch_table,
        partial(ask_types, parts.control),
        publication,
        partial(chosen, config=parts.config),
    )


def unchanged_values(
    parts: WorkerParts, doing: str, *, copied_until: Lsn | None
) -> UnchangedValues:
    """Asks for values that the stream left out; see `UnchangedValues` for the last argument."""

    def fetch(schema: TableSchema, columns: Sequence[str], keys: Sequence[Key]) -> FetchedValues:
        return parts.control.ask(doing, fetch_row_values, schema, columns, keys)

    return UnchangedValues(fetch, copied_until=copied_until)
