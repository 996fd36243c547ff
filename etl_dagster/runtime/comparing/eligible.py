"""Which tables of a pipeline can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import NotOffered
from etl_dagster.model.destination import Destination, ReadsRows, offered
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Ready, TableState, state_name
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.source.catalog import (
    Publication,
    PublishedTable,
    fetch_publication,
    fetch_published_tables,
)
from etl_dagster.source.control import SourceControl


@dataclass(frozen=True, slots=True)
class Eligible:
    """A table as it is read from the source, or why it can't be compared."""

    name: str
    table_id: TableId
    table: PublishedTable | None
    why_not: str | None = None
    #: Whether that is how it is configured, and not something that passes.
    is_by_choice: bool = False


def require_reader(config: PipelineConfig, destination: Destination) -> ReadsRows:
    """The destination as one whose rows can be compared.

    Raises:
        NotOffered: it isn't one.
    """
    reader = offered(destination, ReadsRows)
    if reader is None:
        raise NotOffered(
            f"the rows of a destination of type {config.destination.type} can't be read back, so "
            "they can't be compared with the source's",
            solution="`etl-dagster reset TABLE` copies a table again without comparing it.",
        )
    return reader


def find_eligible(
    config: PipelineConfig,
    store: CoordinatingStore,
    control: SourceControl,
    wanted: Mapping[str, TableId],
) -> list[Eligible]:
    """The tables by name, in that order.

    Raises:
        EtlError: source or store can't be asked.
    """
    store.load_table_schemas()
    store.load_table_replication_states()
    newest: dict[TableId, TableSchema] = {}
    for schema in sorted(store.get_table_schemas(), key=lambda schema: schema.snapshot_id):
        newest[schema.id] = schema
    name = config.source.publication
    publication = control.ask("reading the publication", fetch_publication, name)
    found = control.ask(
        "reading the publication", fetch_published_tables, name, list(wanted.values())
    )
    published = {table.schema.id: table for table in found}
    states = store.get_table_replication_states()
    return [
        _eligible(each, table_id, publication, published, newest, states, config)
        for each, table_id in wanted.items()
    ]


def _eligible(
    name: str,
    table_id: TableId,
    publication: Publication,
    published: Mapping[TableId, PublishedTable],
    schemas: Mapping[TableId, TableSchema],
    states: Mapping[TableId, Any],
    config: PipelineConfig,
) -> Eligible:
    table, schema = published.get(table_id), schemas.get(table_id)
    if table is None or schema is None:
        return Eligible(name, table_id, None, "it is not published, or was never copied")
    by_choice = _why_never(table, schema, publication, config)
    why_not = by_choice or _why_not_now(table, schema, states.get(table_id))
    if why_not is not None:
        return Eligible(name, table_id, None, why_not, is_by_choice=by_choice is not None)
    return Eligible(name, table_id, replace(table, schema=schema))


def _why_not_now(
    table: PublishedTable, schema: TableSchema, state: TableState | None
) -> str | None:
    if not isinstance(state, Ready):
        return f"it is not streamed now ({state_name(state) if state else 'unknown'})"
    return _altered(table, schema)


def why_not_compared(
    table: PublishedTable, schema: TableSchema, publication: Publication, config: PipelineConfig
) -> str | None:
    """Why the destination's table, with this schema, need not have the source's rows, if so."""
    return _why_never(table, schema, publication, config) or _altered(table, schema)


def _why_never(
    table: PublishedTable, schema: TableSchema, publication: Publication, config: PipelineConfig
) -> str | None:
    """As `why_not_compared`, where only other settings change that."""
    if not config.table(schema.name).copy_rows:
        return "its rows are not copied (copy: false)"
    if schema.mode != "mirror":
        return f"its mode is {schema.mode}, and only tables in mode mirror can be compared"
    if schema.quarantine_columns:
        return "rows of it may be in quarantine (odd_values: quarantine)"
    if table.is_partitioned:
        return "it is published through its partition root"
    left_out = [
        what
        for what in ("insert", "update", "delete", "truncate")
        if not getattr(publication, what)
    ]
    if left_out:
        return f"the publication leaves out {', '.join(left_out)}"
    return None


def _altered(table: PublishedTable, schema: TableSchema) -> str | None:
    today, kept = table.schema.columns, schema.columns
    if [(c.name, c.type_oid) for c in today] != [(c.name, c.type_oid) for c in kept]:
        return "its columns have just been altered"
    return None
