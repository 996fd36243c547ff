"""Rows of Arrow as Python objects; simple, and slow."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from etl_dagster.values.oids import DATE_INFINITY, TIMESTAMP_INFINITY

_DAY_US: Final = 86_400_000_000


def to_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as dictionaries.

    Python has no object for some dates and timestamps. Of these the infinities become the texts
    ``infinity`` and ``-infinity``; others (BC, years past 9999) stay numbers, days or microseconds
    since 1970-01-01. The end of a day is the text ``24:00:00``.
    """
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    columns = [to_objects(column) for column in batch.columns]
    names = batch.schema.names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def to_objects(array: pa.Array[Any]) -> list[Any]:
    """The values as `to_dicts` gives them."""
    if array.type == pa.time64("us"):
        return _to_times(array)
    try:
        objects: list[Any] = array.to_pylist()
    except OverflowError:
        objects = [_to_object(scalar) for scalar in array]
    return objects


def _to_object(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except OverflowError:
        number = scalar.value
        if abs(number) in (DATE_INFINITY, TIMESTAMP_INFINITY):
            return "infinity" if number > 0 else "-infinity"
        return number


def _to_times(array: Any) -> list[Any]:
    """Arrow's own conversion makes 24:00:00 the beginning of the day."""
    numbers = array.view(pa.int64()).to_pylist()
    return [
        "24:00:00" if number == _DAY_US else value
        for number, value in zip(numbers, array.to_pylist(), strict=True)
    ]
