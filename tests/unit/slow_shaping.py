"""Rows shaped the obvious way: one row, one value, one Python object after the other.

What the product does to columns of thousands of rows at once must be what this does to each.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from etl_dagster.model.events import DeleteEvent, InsertEvent, RowEvent, UpdateEvent
from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.conditions import (
    Compared,
    Condition,
    IsNull,
    IsTrue,
    Joined,
    Like,
    Not,
    parse_condition,
)
from etl_dagster.values.shapes import Mask

Row = Mapping[str, Any]
#: What happens to a row: I, U or D, the row, and the old row's key where that is another one.
Done = tuple[str, dict[str, Any], dict[str, Any] | None]


def shaped_row(schema: TableSchema, row: Row, salt: bytes) -> dict[str, Any]:
    """The row as the destination has it; values that aren't known stay away."""
    assert schema.shape is not None
    made: dict[str, Any] = {}
    for column in schema.columns:
        shape = column.shape
        if column.name not in row or (shape is not None and shape.left_out):
            continue
        value = row[column.name]
        if shape is not None and shape.mask is not None:
            value = _masked(shape.mask, value, salt)
        made[(shape and shape.name) or column.name] = value
    return made | {added.name: added.value for added in schema.shape.added}


def _masked(mask: Mask, value: Any, salt: bytes) -> Any:
    if mask.kind == "null":
        return None
    if mask.kind == "constant":
        return mask.text
    if value is None:
        return None
    if mask.kind == "hash":
        return hmac.new(salt, value.encode(), hashlib.sha256).hexdigest()
    if len(value) <= mask.first + mask.last:
        return mask.text
    return value[: mask.first] + mask.text + value[len(value) - mask.last :]


def shaped_events(schema: TableSchema, events: Iterator[RowEvent], salt: bytes) -> Iterator[Done]:
    """What the destination gets of a table with a key whose old rows have the key alone."""
    assert schema.shape is not None
    condition = parse_condition(schema.shape.where) if schema.shape.where else None
    for event in events:
        row = dict(event.row)
        old = event.old_row
        key = {name: row[name] for name in schema.key_columns}
        old_key = None if old is None else {name: old[name] for name in schema.key_columns}
        is_match = condition is None or holds(condition, row) is True
        match event:
            case InsertEvent() if is_match:
                yield "I", shaped_row(schema, row, salt), None
            case UpdateEvent() if is_match:
                of = None if old_key is None else shaped_row(schema, old_key, salt)
                yield "U", shaped_row(schema, row, salt), of
            case UpdateEvent():
                yield "D", shaped_row(schema, old_key or key, salt), None
            case DeleteEvent():
                yield "D", shaped_row(schema, key, salt), None


def holds(condition: Condition, row: Row) -> bool | None:
    """True, false, or None for unknown."""
    match condition:
        case Compared(column, sign, literal):
            value = row[column]
            return None if value is None else _compared(value, sign, literal)
        case Like(column, pattern):
            value = row[column]
            return None if value is None else _like(value, pattern)
        case IsNull(column):
            return row[column] is None
        case IsTrue(column):
            flag: bool | None = row[column]
            return flag
        case Not(inner):
            found = holds(inner, row)
            return None if found is None else not found
        case Joined(word, parts):
            all_found = [holds(part, row) for part in parts]
            decisive = word == "or"
            if decisive in all_found:
                return decisive
            return None if None in all_found else not decisive


def _compared(value: Any, sign: str, literal: str) -> bool:
    bound: Any = literal
    if isinstance(value, bool):
        bound = literal == "true"
    elif isinstance(value, int):
        bound = int(literal)
    elif isinstance(value, str) and literal.lstrip("-").replace(".", "").isdigit():
        value, bound = Decimal(value), Decimal(literal)
    return {
        "=": value == bound,
        "<>": value != bound,
        "<": value < bound,
        "<=": value <= bound,
        ">": value > bound,
        ">=": value >= bound,
    }[sign]


def _like(value: str, pattern: str) -> bool:
    if not pattern:
        return not value
    if pattern[0] == "%":
        return any(_like(value[at:], pattern[1:]) for at in range(len(value) + 1))
    return bool(value) and pattern[0] in ("_", value[0]) and _like(value[1:], pattern[1:])
