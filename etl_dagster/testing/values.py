"""Compares rows by the meaning of their values, however a destination spells them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID as Uuid

import pyarrow as pa

from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import Row, content, exact
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.forms import form_of
from etl_dagster.values.registry import row_of


def readable_rows(schema: TableSchema, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of a destination, with Python's own value for each.

    An integer, numeric, date, timestamp, UUID or bytea (in base64) may come as its text, as it does
    from JSON. A value with parts may come as the text of its JSON, and a map as pairs. What was
    lost on the way is not restored: a numeric that became a float differs from what it was.
    """
    columns = {column.name: column for column in schema.columns}
    return [
        {
            name: readable(columns[name], value) if name in columns else value
            for name, value in row.items()
        }
        for row in rows
    ]


def differences(schema: TableSchema, found: Iterable[Row], expected: Iterable[Row]) -> list[str]:
    """In words, what is missing, different or not expected; empty if the rows are the same.

    The rows are in any order, and in the form of `readable_rows`. If two rows have the same key,
    only the values that differ are listed.
    """
    found, expected = list(found), list(expected)
    surplus = _without(found, expected)
    wrong = []
    for row in _without(expected, found):
        twin = next((other for other in surplus if _same_key(schema, row, other)), None)
        if twin is None:
            wrong.append(f"missing: {row}")
            continue
        surplus.remove(twin)
        key = {name: row[name] for name in schema.key_columns}
        for name in sorted(row.keys() | twin.keys()):
            if name not in twin:
                wrong.append(f"{key}: there is no {name}, which should be {row[name]!r}")
            elif name not in row:
                wrong.append(f"{key}: {name} should not be there, it is {twin[name]!r}")
            elif content([{name: row[name]}]) != content([{name: twin[name]}]):
                wrong.append(f"{key}: {name} is {twin[name]!r}, should be {row[name]!r}")
    return wrong + [f"not expected: {row}" for row in surplus]


def _without(rows: list[Row], others: list[Row]) -> list[Row]:
    left, counts = [], content(others)
    for row in rows:
        [(same, _)] = content([row]).items()
        if counts[same]:
            counts[same] -= 1
        else:
            left.append(row)
    return left


def _same_key(schema: TableSchema, one: Row, other: Row) -> bool:
    missing = object()
    return bool(schema.key_columns) and all(
        one.get(name, missing) == other.get(name) for name in schema.key_columns
    )


def readable(column: ColumnSchema, value: Any) -> Any:
    """One value; if it can't be read as the column's type it stays as it is, and so differs."""
    read = _reader(column)
    if value is None or read is None:
        return value
    try:
        return read(value)
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        return value


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, str) else value


def _numeric(value: Any) -> Any:
    return exact(Decimal(value))


def _float(value: Any) -> Any:
    number = float(value)
    # NaN isn't equal to itself; the word is.
    return "NaN" if number != number else number


def _date(value: Any) -> Any:
    return date.fromisoformat(value) if isinstance(value, str) else value


def _timestamp(value: Any) -> Any:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _timestamptz(value: Any) -> Any:
    moment = _timestamp(value)
    return moment.astimezone(UTC) if isinstance(moment, datetime) and moment.tzinfo else moment


def _uuid(value: Any) -> Any:
    return Uuid(value) if isinstance(value, str) else value


def _bytes(value: Any) -> Any:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else bytes(value)


def _json(value: Any) -> Any:
    parsed = json.loads(value) if isinstance(value, str) else value
    return json.dumps(parsed, sort_keys=True)


def _reader(column: ColumnSchema) -> Callable[[Any], Any] | None:
    row, form = row_of(column), form_of(column)
    if form.parts:
        return partial(_whole, form.arrow)
    if form.meaning is not None:
        return _json if form.meaning == "json" else _uuid
    return _numeric if row.bound == "digits" else _reader_of(form.arrow)


def _whole(arrow: pa.DataType, value: Any) -> Any:
    """A value with parts; members of a struct that are missing are null."""
    found = json.loads(value) if isinstance(value, str) else value
    return _part(arrow, found)


def _part(arrow: Any, value: Any) -> Any:
    if value is None:
        return None
    if pa.types.is_list(arrow):
        return [_part(arrow.value_type, each) for each in value]
    if pa.types.is_struct(arrow):
        return {field.name: _part(field.type, value.get(field.name)) for field in arrow}
    if pa.types.is_map(arrow):
        return dict(sorted(value.items() if isinstance(value, Mapping) else value))
    read = _reader_of(arrow)
    return value if read is None else read(value)


def _reader_of(arrow: Any) -> Callable[[Any], Any] | None:
    if pa.types.is_decimal(arrow):
        return _numeric
    if pa.types.is_timestamp(arrow):
        return _timestamp if arrow.tz is None else _timestamptz
    return next((read for is_of, read in _BY_ARROW if is_of(arrow)), None)


_BY_ARROW: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any], Any]], ...] = (
    (pa.types.is_integer, _integer),
    (pa.types.is_floating, _float),
    (pa.types.is_date, _date),
    (pa.types.is_binary, _bytes),
)
