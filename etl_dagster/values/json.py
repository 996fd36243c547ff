"""Values as JSON that loses nothing, and the way back.

Years outside of 1 to 9999 have a sign and at least six digits, as in ISO 8601 with expanded years
and in ECMAScript: ``"-000043-03-15"`` is in 44 BC. No value is ever a NaN of Python, so
``json.dumps(..., allow_nan=False)`` accepts all of it. Null stays null.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.types import (
    Array,
    Composite,
    Multirange,
    PgType,
    Range,
    without_domains,
)

if TYPE_CHECKING:
    from etl_dagster.values.form import Form


def json_writer(column: ColumnSchema) -> Callable[[Any], Any] | None:
    """Converts a value of `python.to_dicts` to one that json.dumps() accepts; None: no change."""
    from etl_dagster.values.forms import form_of

    return form_of(column).to_json


def json_reader(column: ColumnSchema) -> Callable[[Any], Any] | None:
    """Converts what json.loads() returns back to the value; None: no change.

    It raises a ValueError for JSON that `json_writer` doesn't make for this column.
    """
    from etl_dagster.values.forms import form_of

    return form_of(column).from_json


def spelling(column: ColumnSchema) -> dict[str, Any]:
    """How the column's values are spelled in JSON, for readers of a destination.

    ``form`` is a `Spelling`; for values with parts it is one of these, with the spellings of the
    parts:

    | form | more |
    |---|---|
    | ``list`` | ``items`` |
    | ``range`` | ``bounds``: for both |
    | ``object`` | ``members``: a list in their order, each with its ``name`` |
    | ``map`` | ``items``: for every key |

    Each part also has its ``type``, as format_type() spells it, without a modifier.
    """
    from etl_dagster.values.forms import form_of

    form = form_of(column)
    if column.type is None or not form.parts:
        return {"form": form.spelling}
    return _spelling(without_domains(column.type), form)


def _spelling(type_: PgType, form: Form) -> dict[str, Any]:
    match type_:
        case Array() if form.parts:
            items = _part(type_.element, form.parts[0])
            for _ in range(type_.dimensions - 1):
                items = {"type": type_.name, "form": "list", "items": items}
            return {"form": "list", "items": items}
        case Multirange() if form.parts:
            return {"form": "list", "items": _part(type_.range, form.parts[0])}
        case Range() if form.parts:
            return {"form": "range", "bounds": _part(type_.subtype, form.parts[0])}
        case Composite() if form.parts:
            members = [
                {"name": attribute.name} | _part(attribute.type, part)
                for attribute, part in zip(type_.attributes, form.parts, strict=True)
            ]
            return {"form": "object", "members": members}
    if form.parts:  # hstore
        return {"form": "map", "items": {"type": "text", "form": form.parts[1].spelling}}
    return {"form": form.spelling}


def _part(type_: PgType, form: Form) -> dict[str, Any]:
    return {"type": type_.name} | _spelling(without_domains(type_), form)
