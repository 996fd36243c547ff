"""Rows of Arrow as Python objects; simple, and slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa

from etl_dagster.values.oids import DATE_INFINITY, TIMESTAMP_INFINITY

_DAY_US: Final = 86_400_000_000


def to_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as dictionaries.

    Python has no object for some dates and timestamps. The infinities become the texts ``infinity``
    and ``-infinity``; others (BC, years past 9999) stay numbers: days or microseconds since
    1970-01-01. The end of a day is the text ``24:00:00``.
    """
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    columns = [to_objects(column) for column in batch.columns]
    names = batch.schema.names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def to_objects(array: pa.Array[Any]) -> list[Any]:
    """The values as in `to_dicts`: a list for a list, a dictionary for a struct or a map."""
    kind = array.type
    if kind == pa.time64("us"):
        return _to_times(array)
    if pa.types.is_struct(kind):
        return _to_structs(array)
    if pa.types.is_list(kind):
        return _to_lists(array, list, to_objects(array.values))  # type: ignore[attr-defined]
    if pa.types.is_map(kind):
        maps: Any = array
        pairs = zip(to_objects(maps.keys), to_objects(maps.items), strict=True)
        return _to_lists(maps, dict, list(pairs))
    try:
        objects: list[Any] = array.to_pylist()
    except OverflowError:
        objects = [_to_object(scalar) for scalar in array]
    return objects


def _to_structs(array: Any) -> list[Any]:
    names = [field.name for field in array.type]
    columns = [to_objects(array.field(place)) for place in range(len(names))]
    valid = array.is_valid().to_pylist()
    return [
        dict(zip(names, row, strict=True)) if is_valid else None
        for is_valid, *row in zip(valid, *columns, strict=True)
    ]


def _to_lists(array: Any, kind: Callable[[list[Any]], Any], parts: list[Any]) -> list[Any]:
    offsets, valid = array.offsets.to_pylist(), array.is_valid().to_pylist()
    return [
        kind(parts[offsets[place] : offsets[place + 1]]) if is_valid else None
        for place, is_valid in enumerate(valid)
    ]


def _to_object(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except OverflowError:
        number = scalar.value
        if abs(number) in (DATE_INFINITY, TIMESTAMP_INFINITY):
            return "infinity" if number > 0 else "-infinity"
        return number


def _to_times(array: Any) -> list[Any]:
    """Arrow's own conversion would turn 24:00:00 into the beginning of the day."""
    numbers = array.view(pa.int64()).to_pylist()
    return [
        "24:00:00" if number == _DAY_US else value
        for number, value in zip(numbers, array.to_pylist(), strict=True)
    ]
