"""A table's schema at the destination, from that in the source."""

from __future__ import annotations

from dataclasses import replace

from etl_dagster.model.schema import TableSchema
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.shapes import ColumnShape


def with_shape(column: ColumnSchema, shape: ColumnShape | None) -> ColumnSchema:
    """The column of the source with a shape, held as the shape needs it."""
    column = replace(column, shape=shape)
    if shape is None:
        return column
    if not shape.is_read:
        # A default of rows that were there is a value, too.
        column = replace(column, missing_value=None)
    if shape.left_out:
        column = replace(column, nested="text", as_text=True, own_type=False, quarantine=False)
    return column


def keep_shapes(schema: TableSchema, known: TableSchema | None) -> TableSchema:
    """The schema, of which columns that are in the known one keep their shape.

    So does the table: what hides values belongs to them, whatever they are called by now.
    """
    if known is None:
        return schema
    before = {column.attnum or column.name: column for column in known.columns}
    columns = []
    for column in schema.columns:
        old = before.get(column.attnum or column.name)
        if old is not None and old.shape != column.shape:
            column = with_shape(column, old.shape)
        columns.append(column)
    shape = known.shape
    if shape is None and schema.shape is not None and any(c.shape is not None for c in columns):
        # A new column is to be hidden; what concerns the whole table waits for its copy.
        shape = type(schema.shape)(schema.shape.chosen_as, salt_check=schema.shape.salt_check)
    return replace(schema, columns=tuple(columns), shape=shape)


def destination_schema(schema: TableSchema) -> TableSchema:
    """The table as the destination has it; the schema itself where it doesn't differ."""
    if schema.shape is None:
        return schema
    columns = tuple(
        destination_column(column)
        for column in schema.columns
        if column.shape is None or not column.shape.left_out
    )
    target = schema.target
    return replace(
        schema,
        schema_name=target.schema_name,
        table_name=target.table_name,
        columns=columns,
        shape=None,
    )


def destination_column(column: ColumnSchema) -> ColumnSchema:
    """The column as the destination has it."""
    shape = column.shape
    if shape is None:
        return column
    return replace(column, name=shape.name or column.name, shape=None)
