"""What an alteration that the source reported makes of a table, and of its rows."""

from __future__ import annotations

from dataclasses import replace

from etl_dagster.model.schema import TableSchema
from etl_dagster.protocol.alterations import (
    COLUMN_REWRITE,
    DEFAULT_VALUE,
    PERSISTENCE,
    ColumnsAltered,
    RowsRewritten,
)
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.retyping import keeps_rows, keeps_values


def altered_schema(alteration: ColumnsAltered, publication: str) -> TableSchema:
    """The published columns of the table after the alteration."""
    wanted = alteration.lists.get(publication)
    sends_generated = publication in alteration.with_generated
    columns = tuple(
        column.schema
        for column in alteration.columns
        if (
            column.schema.attnum in wanted
            if wanted is not None
            else not column.generated or (column.generated == "s" and sends_generated)
        )
    )
    in_key = {c.schema.attnum for c in alteration.columns if c.schema.primary_key_ordinal}
    if not in_key <= {column.attnum for column in columns}:
        # Rows are not told apart by a part of the key.
        columns = tuple(replace(column, primary_key_ordinal=None) for column in columns)
    return TableSchema(
        alteration.table_id,
        alteration.schema_name,
        alteration.table_name,
        columns,
        replica_identity=alteration.replica_identity,
    )


def reason_to_copy(
    alteration: ColumnsAltered,
    rewrite: RowsRewritten | None,
    known: TableSchema,
    altered: TableSchema,
) -> str | None:
    """Why the rows that are there don't follow from the columns alone; None where they do."""
    if alteration.changes_values:
        return "the type of a column was altered"
    before = {column.attnum: column for column in known.columns}
    added = [column for column in altered.columns if column.attnum not in before]
    retyped = [
        (before[column.attnum], column)
        for column in altered.columns
        if column.attnum in before and not _same_type(before[column.attnum], column)
    ]
    if any(column.attnum < max(before, default=0) for column in added):
        return "a column that was left out of the publication is in it now"
    reason = 0 if rewrite is None else rewrite.reason
    if reason & PERSISTENCE and alteration.persistence == "p":
        return "it was unlogged for a while, when its changes were not in the stream"
    if reason & DEFAULT_VALUE and added:
        return "a column was added whose value was computed for each row"
    published = {column.attnum for column in altered.columns}
    if reason & DEFAULT_VALUE and any(
        column.generated and column.schema.attnum in published for column in alteration.columns
    ):
        return "the values of a generated column were computed again"
    if reason & COLUMN_REWRITE:
        is_plain = rewrite is not None and rewrite.is_plain and bool(retyped)
        if not (is_plain and all(keeps_values(old, new) for old, new in retyped)):
            return "the values of a column were computed again"
    elif not all(keeps_rows(old, new) for old, new in retyped):
        return "a column has another type"
    clear = {c.schema.attnum: c.is_missing_clear for c in alteration.columns}
    if not all(clear[column.attnum] for column in added):
        return "the default of an added column differs among the partitions"
    return None


def _same_type(old: ColumnSchema, new: ColumnSchema) -> bool:
    return (old.effective_type_oid, old.type_modifier) == (
        new.effective_type_oid,
        new.type_modifier,
    )
