"""A table's schema at the destination, from its schema in the source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from etl_dagster.model.modes import HISTORY_MODES
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.shape import AddedColumn, TableShape
from etl_dagster.values import oids
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.shapes import ColumnShape

#: Masks whose values are texts.
_OF_TEXT: Final = ("partial", "hash")
#: In place of a hidden default: it only matters that there is one.
_HIDDEN: Final = ""


def with_shape(column: ColumnSchema, shape: ColumnShape | None) -> ColumnSchema:
    """The column of the source with a shape, and held as the shape needs it."""
    column = replace(column, shape=shape)
    if shape is None:
        return column
    if shape.hides and column.missing_value is not None:
        # The default in rows that existed before is a value, too.
        column = replace(column, missing_value=_HIDDEN if shape.is_read else None)
    if shape.left_out or is_of_text(shape):
        return replace(column, nested="text", as_text=True, own_type=False, quarantine=False)
    if shape.mask is not None:
        return replace(column, own_type=False, quarantine=False)
    if shape.cast is not None:
        return replace(column, nested="text", as_text=False, own_type=False)
    return column


def is_of_text(shape: ColumnShape) -> bool:
    """Whether the destination's value is made from the text that Postgres prints."""
    return shape.mask is not None and shape.mask.kind in _OF_TEXT


def keep_shapes(schema: TableSchema, known: TableSchema | None) -> TableSchema:
    """The schema, in which the table and its known columns keep their shapes.

    A shape that hides values belongs to the column or table, whatever its name is by now.
    """
    if known is None:
        return schema
    before = {column.attnum or column.name: column for column in known.columns}
    columns = []
    for column in schema.columns:
        old = before.get(column.attnum or column.name)
        if old is not None and (old.shape is not None or column.shape is not None):
            column = with_shape(column, old.shape)
        columns.append(column)
    shape = known.shape
    if shape is None and schema.shape is not None and any(c.shape is not None for c in columns):
        # A new column must be hidden; settings of the whole table wait for its next copy.
        shape = TableShape(schema.shape.chosen_as, salt_check=schema.shape.salt_check)
    return replace(schema, columns=tuple(columns), shape=shape)


def reason_of_shapes(schema: TableSchema, known: TableSchema) -> str | None:
    """Why a shaped table must be copied again after its columns have changed; None: it need not."""
    if lacks_whole_rows(schema):
        return "its old rows are not sent any more"
    before = {column.attnum or column.name: column for column in known.columns}
    for column in schema.columns:
        old = before.get(column.attnum or column.name)
        shape = column.shape
        if old is None:
            has_default = column.missing_value is not None
            if has_default and shape is not None and shape.hides and not shape.left_out:
                return f"its new column {column.name} is masked and has a default"
            if has_default and schema.shape is not None and schema.shape.hook:
                return f"its new column {column.name} has a default, and the table has a hook"
        elif shape is not None and (
            is_of_text(shape) or shape.cast is not None or shape.in_condition
        ):
            types = ((each.type_oid, each.type_modifier) for each in (old, column))
            if len(set(types)) > 1:
                return f"{column.name}, which is masked, cast or used in `where`, has another type"
    now = {column.attnum or column.name for column in schema.columns}
    gone = [
        column.name
        for column in known.columns
        if column.shape is not None
        and column.shape.in_condition
        and (column.attnum or column.name) not in now
    ]
    return f"{gone[0]}, which `where` names, was dropped" if gone else None


def lacks_whole_rows(schema: TableSchema) -> bool:
    """Whether a table with a history needs whole rows, but the stream may leave out values.

    Without a history they are fetched from the source. In a history, such a newer value would be
    wrong.
    """
    needs = schema.shape is not None and schema.shape.needs_whole_rows
    return needs and schema.mode in HISTORY_MODES and schema.replica_identity != "f"


def destination_schema(schema: TableSchema) -> TableSchema:
    """The table as the destination has it; the schema itself if it doesn't differ."""
    if schema.shape is None:
        return schema
    target = schema.target
    return replace(
        schema,
        schema_name=target.schema_name,
        table_name=target.table_name,
        columns=(*_kept_columns(schema), *_added_columns(schema.shape)),
        shape=None,
    )


def _kept_columns(schema: TableSchema) -> Iterator[ColumnSchema]:
    for column in schema.columns:
        if column.shape is None or not column.shape.left_out:
            yield destination_column(column)


def _added_columns(shape: TableShape) -> Iterator[ColumnSchema]:
    # An attnum that no column of the source has, since columns are identified by it.
    for number, added in enumerate(shape.added, 1):
        yield added_column(added, -number)


def added_column(added: AddedColumn, attnum: int = 0) -> ColumnSchema:
    """A column that only the destination has."""
    return ColumnSchema(
        added.name,
        added.type_oid,
        added.type_modifier,
        added.type_name,
        attnum,
        base_type_oid=added.type_oid,
    )


def destination_column(column: ColumnSchema) -> ColumnSchema:
    """The column as the destination has it."""
    shape = column.shape
    if shape is None:
        return column
    there = replace(column, name=shape.name or column.name, shape=None)
    if is_of_text(shape):
        return replace(_of_type(there, oids.TEXT, -1, "text"), missing_value=None)
    if shape.mask is not None:
        is_constant = shape.mask.kind == "constant"
        return replace(
            there,
            nullable=column.nullable if is_constant else True,
            missing_value=_printed(there, shape.mask.text) if is_constant else None,
        )
    if shape.cast is not None:
        cast = shape.cast
        there = _of_type(there, cast.type_oid, cast.type_modifier, cast.type_name)
        # A value that can't be read as the type is null.
        return replace(there, nullable=True)
    return there


def _printed(column: ColumnSchema, text: str) -> str | None:
    from etl_dagster.values.read_as import as_printed

    return as_printed(column, text)


def _of_type(column: ColumnSchema, type_oid: int, modifier: int, name: str) -> ColumnSchema:
    return replace(
        column,
        type_oid=type_oid,
        type_modifier=modifier,
        type_name=name,
        base_type_oid=type_oid,
        type=None,
        nested="text",
        as_text=False,
        numeric="text",
        own_type=False,
    )
