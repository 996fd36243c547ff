"""How a table at the destination differs, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.columns import destination_column, destination_schema
from etl_dagster.values.columns import ColumnSchema


def described(schema: TableSchema) -> Mapping[str, Any]:
    """Names and columns on both sides, as JSON; without any value of a row.

    Args:
        schema: as `shaped` returns it.
    """
    shape = schema.shape
    columns = [_column(column) for column in schema.columns]
    for added in () if shape is None else shape.added:
        origin = "the hook" if added.value is None else "the settings"
        columns.append(
            {"source": None, "column": added.name, "type": added.type_name, "from": origin}
        )
    return {
        "source": schema.name,
        "table": destination_schema(schema).name,
        "columns": columns,
        "where": (shape and shape.where) or None,
        "hook": (shape and shape.hook) or None,
    }


def _column(column: ColumnSchema) -> dict[str, Any]:
    shape = column.shape
    if shape is not None and shape.left_out:
        return {"source": column.name, "column": None, "type": None, "from": "left out"}
    there = destination_column(column)
    made = "the source"
    if shape is not None and shape.mask is not None:
        made = f"mask: {shape.mask.kind}"
    elif shape is not None and shape.cast is not None:
        made = f"cast from {column.type_name}"
    return {
        "source": column.name,
        "column": there.name,
        "type": there.type_name,
        "from": made,
    }
