"""Text that Postgres reads back as the same values; the other way round than `parsing`."""

from __future__ import annotations

from typing import Any

from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.oids import (
    DATE,
    DATE_INFINITY,
    NUMERIC,
    TIME,
    TIMESTAMP,
    TIMESTAMP_INFINITY,
    TIMESTAMPTZ,
)

_DAY_US = 86_400_000_000
#: From 1970-01-01 to 0000-03-01 in the proleptic Gregorian calendar, where 400 years are 146,097
#: days, and each begins in March so that a leap day is its last.
_DAYS_TO_MARCH_0 = 719_468
_DAYS_OF_400_YEARS = 146_097


def print_keys(column: ColumnSchema, array: Any) -> list[str | None]:
    """The values of a key's column, an array of `arrow_type(column)`, as text for Postgres.

    A key has no nulls: what is one stands for a value that the type can't hold. In a numeric
    column that is NaN; where it could be several, the answer is None.
    """
    import pyarrow as pa

    match column.effective_type_oid:
        case oid if oid == DATE:
            return [_date(days) for days in array.cast(pa.int32()).to_pylist()]
        case oid if oid in (TIMESTAMP, TIMESTAMPTZ):
            return [_timestamp(micros) for micros in array.cast(pa.int64()).to_pylist()]
        case oid if oid == TIME:
            return [_time(micros) for micros in array.cast(pa.int64()).to_pylist()]
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return [None if value is None else "\\x" + value.hex() for value in array.to_pylist()]
    texts: list[str | None] = array.cast(pa.string()).to_pylist()
    if column.effective_type_oid == NUMERIC:
        return ["NaN" if text is None else text for text in texts]
    return texts


def _date(days: int | None) -> str | None:
    if days is None:
        return None
    if abs(days) == DATE_INFINITY:
        return "infinity" if days > 0 else "-infinity"
    text, era = _calendar(days)
    return text + era


def _timestamp(micros: int | None) -> str | None:
    if micros is None:
        return None
    if abs(micros) == TIMESTAMP_INFINITY:
        return "infinity" if micros > 0 else "-infinity"
    days, time_us = divmod(micros, _DAY_US)
    text, era = _calendar(days)
    # Ignored by a timestamp without time zone.
    return f"{text} {_time(time_us)}+00{era}"


def _time(micros: int | None) -> str | None:
    if micros is None:
        return None
    seconds, fraction = divmod(micros, 1_000_000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}"


def _calendar(days: int) -> tuple[str, str]:
    """Year, month and day of a count of days since 1970-01-01, and the era."""
    cycle, day = divmod(days + _DAYS_TO_MARCH_0, _DAYS_OF_400_YEARS)
    # The last day of four, a hundred and four hundred years makes no year of its own.
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day -= (153 * month + 2) // 5
    year += 400 * cycle + (month >= 10)
    month = month + 3 if month < 10 else month - 9
    is_bc = year <= 0
    return f"{1 - year if is_bc else year:04}-{month:02}-{day + 1:02}", " BC" if is_bc else ""
