"""The formats of bodies, the JSON Schema of each, and what format 1 can't carry.

Format 2 spells values with parts (arrays, ranges, composites, hstore) as lists and objects, and
says of every column how its values are spelled. Format 1 has no such values: a receiver that knows
no other format gets their text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from typing import Any, Final

from etl_dagster.destinations.http.config import NEWEST, Format
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.events import RelationEvent, TableStep
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.values.json import spelling

_FLAGS: Final = ("lower_inc", "upper_inc", "empty")


class NotInFormat(TableWriteFailed):
    """The table has columns whose values an older format has no spelling for."""

    solution = (
        "Set destination.format to 2, if the receiver takes it. Else set `nested` of these columns "
        "to text, and a `numeric` of double too; then reset the table, so that it is copied again."
    )


def load_json_schema(format: Format = NEWEST) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of every body in a format."""
    folder = resources.files("etl_dagster.destinations.http") / "schema"
    schema: dict[str, Any] = json.loads((folder / f"format-{format}.json").read_text("utf-8"))
    return schema


def row_json_schema(table: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of one table's rows.

    A row of an event may lack columns; a row of a copy has them all.

    Args:
        table: the member `table` of a body in format 2.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": load_json_schema(2)["$defs"],
        "type": "object",
        "properties": {
            column["name"]: _or_null(_value_schema(column["value"])) for column in table["columns"]
        },
        "additionalProperties": False,
    }


def _value_schema(spelled: Mapping[str, Any]) -> dict[str, Any]:
    match spelled["form"]:
        case "list":
            return {"type": "array", "items": _or_null(_value_schema(spelled["items"]))}
        case "map":
            items = _or_null(_value_schema(spelled["items"]))
            return {"type": "object", "additionalProperties": items}
        case "range":
            bound = _or_null(_value_schema(spelled["bounds"]))
            flags = {name: {"type": "boolean"} for name in _FLAGS}
            return _object({"lower": bound, "upper": bound} | flags)
        case "object":
            members = spelled["members"]
            return _object({each["name"]: _or_null(_value_schema(each)) for each in members})
    return {"$ref": f"#/$defs/{spelled['form']}Value"}


def _object(members: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": members,
        "required": list(members),
        "additionalProperties": False,
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


# -- format 1 ----------------------------------------------------------------------------------


def require_format(format: Format, schema: TableSchema) -> None:
    """Refuse a table whose values the format can't spell.

    Raises:
        NotInFormat: it has such columns.
    """
    if format != 1 or schema == (plain := without_choices(schema)):
        return
    pairs = zip(schema.columns, plain.columns, strict=True)
    names = [one.name for one, other in pairs if spelling(one) != spelling(other)]
    if names:
        raise NotInFormat(
            schema.id,
            f"{schema.name}: format 1 has no lists, objects or chosen numbers, "
            f"as which {', '.join(names)} were copied",
        )


def without_choices(schema: TableSchema) -> TableSchema:
    """The table as format 1 describes it, where no column's form is a choice."""
    return replace(schema, columns=tuple(map(_without_choice, schema.columns)))


def _without_choice(column: ColumnSchema) -> ColumnSchema:
    return replace(column, nested="text", numeric="text")


def described(format: Format, step: TableStep) -> TableStep:
    """The step as the format describes it: what was before may have had other forms."""
    if format == 1 and isinstance(step, RelationEvent) and step.previous is not None:
        return replace(step, previous=without_choices(step.previous))
    return step
