"""The published tables as text: in the cache of definitions, and as the state of a component."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from etl_dagster.errors import SchemaTooNew
from etl_dagster.lsn import LSN_ZERO
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.source.comments import TableComments
from etl_dagster.values.columns import column_from_json, column_to_json

#: The tables and, by ID, what COMMENT ON says of them.
KnownTables = tuple[tuple[TableSchema, ...], Mapping[TableId, TableComments]]


def tables_to_text(
    publication: str,
    database: str,
    tables: Sequence[TableSchema],
    comments: Mapping[TableId, TableComments],
) -> str:
    """The tables of a publication as JSON, without rows and passwords."""
    payload = [
        asdict(table)
        | {"columns": [column_to_json(column) for column in table.columns]}
        | {"snapshot_id": None, "publication": publication, "database": database}
        | {"comments": asdict(comments.get(table.id, TableComments()))}
        for table in tables
    ]
    return json.dumps(payload, indent=1)


def tables_from_text(text: str, publication: str) -> tuple[KnownTables, str | None]:
    """The tables of one publication, and the name of their database.

    There are none if the text is not from `tables_to_text`. Texts of earlier versions have no
    database.
    """
    try:
        kept = [table for table in json.loads(text) if table["publication"] == publication]
        tables = tuple(map(_read_table, kept))
        comments = {
            table["id"]: TableComments(**table["comments"]) for table in kept if "comments" in table
        }
    except (ValueError, KeyError, TypeError, SchemaTooNew):
        return ((), {}), None
    return (tables, comments), next((table.get("database") for table in kept), None)


def _read_table(kept: Mapping[str, Any]) -> TableSchema:
    return TableSchema(
        id=kept["id"],
        schema_name=kept["schema_name"],
        table_name=kept["table_name"],
        columns=tuple(map(column_from_json, kept["columns"])),
        snapshot_id=LSN_ZERO,
        replica_identity=kept["replica_identity"],
    )
