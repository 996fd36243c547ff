"""Dates, times of day, moments and intervals.

Dates and timestamps may be ``infinity``. Arrow has no word for it; the numbers for it here are
those of DuckDB, the largest of the type and its negative. `24:00:00` is 86,400,000,000 us.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.values import oids
from etl_dagster.values.casts import cast_or_convert
from etl_dagster.values.families.texts import own_text, printed
from etl_dagster.values.form import CAST, AnyArray, BuiltIn, Edge, Form, OwnType
from etl_dagster.values.oids import DATE_INFINITY, TIMESTAMP_INFINITY
from etl_dagster.values.parsed import Odd, Parsed, odd_where
from etl_dagster.values.respelling import as_dates, as_timestamps
from etl_dagster.values.strings import ascii_scalar, valid_text

_compute: Any = pc
_DAY_US: Final = 86_400_000_000
_EPOCH: Final = datetime(1970, 1, 1)
_EPOCH_DAY: Final = _EPOCH.toordinal()
_MICROSECOND: Final = timedelta(microseconds=1)
_INFINITIES: Final = ("infinity", "-infinity")

# -- the calendar ------------------------------------------------------------------------------
# Proleptic Gregorian, in eras of 400 years, which are 146,097 days. Years begin in March here, so
# that a leap day is a year's last: the months' lengths then follow one formula.

#: From 0000-03-01 to 1970-01-01.
_DAYS_FROM_MARCH_0: Final = 719_468


def days_of(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01; the year before 1 is 0."""
    if month <= 2:
        year, month = year - 1, month + 12
    day_of_year = (153 * (month - 3) + 2) // 5 + day - 1
    return 365 * year + year // 4 - year // 100 + year // 400 + day_of_year - _DAYS_FROM_MARCH_0


def civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of a number of days since 1970-01-01; the year before 1 is 0."""
    era, day = divmod(days + _DAYS_FROM_MARCH_0, 146_097)
    # The last day of four, a hundred and four hundred years makes no year of its own.
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day -= (153 * month + 2) // 5
    month = month + 3 if month < 10 else month - 9
    return year + era * 400 + (month <= 2), month, day + 1


# -- from text ---------------------------------------------------------------------------------

_ORDINARY: Final = r"^\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d(\.\d+)?(\+00)?)?$"
_ODD_DATE: Final = re.compile(r"(\d{4,7})-(\d\d)-(\d\d)( BC)?")
_ODD_TIMESTAMP: Final = re.compile(
    r"(\d{4,6})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?:\+00)?( BC)?"
)


def _read_dates(strings: AnyArray) -> Parsed:
    return cast_or_convert(strings, pa.date32(), pa.int32(), _ORDINARY, _odd_date)


def _read_timestamps(arrow_type: pa.DataType, strings: AnyArray) -> Parsed:
    return cast_or_convert(strings, arrow_type, pa.int64(), _ORDINARY, _odd_timestamp)


def _odd_date(text: str) -> int | None:
    if text in _INFINITIES:
        return DATE_INFINITY if text == "infinity" else -DATE_INFINITY
    match = _ODD_DATE.fullmatch(text)
    if match is None:
        return None
    year, month, day, bc = match.groups()
    days = days_of(_year(year, bc), int(month), int(day))
    return days if abs(days) < DATE_INFINITY else None


def _odd_timestamp(text: str) -> int | None:
    if text in _INFINITIES:
        return TIMESTAMP_INFINITY if text == "infinity" else -TIMESTAMP_INFINITY
    match = _ODD_TIMESTAMP.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, bc = match.groups()
    days = days_of(_year(year, bc), int(month), int(day))
    seconds = (int(hour) * 60 + int(minute)) * 60 + int(second)
    micros = days * _DAY_US + seconds * 1_000_000 + int((fraction or "0").ljust(6, "0"))
    # Postgres counts from 2000, so its last 30 years are past the end of a count from 1970.
    return micros if abs(micros) < TIMESTAMP_INFINITY else None


def _year(year: str, bc: str | None) -> int:
    return int(year) if bc is None else 1 - int(year)


def _read_times(strings: AnyArray) -> Parsed:
    """Arrow has no cast from text to a time of day, but one by way of that time on a day."""
    moments = _compute.binary_join_element_wise(
        ascii_scalar("1970-01-01", strings.type), strings, ascii_scalar(" ", strings.type)
    )
    read = cast_or_convert(moments, pa.timestamp("us"), pa.int64(), _ORDINARY, _odd_time)
    array = read.array.view(pa.int64()).view(pa.time64("us"))
    if read.odd is None:
        return Parsed(array)
    texts: Any = strings.take(read.odd.places)
    return Parsed(array, Odd(read.odd.places, texts.cast(pa.string())))


def _odd_time(moment: str) -> int | None:
    return _DAY_US if moment.endswith(" 24:00:00") else _odd_timestamp(moment)


_INFINITE_INTERVALS: Final = tuple(
    Edge(text, "null; DuckDB's INTERVAL is finite", is_odd=True) for text in _INFINITIES
)


def _read_intervals(strings: AnyArray) -> Parsed:
    """Texts as DuckDB takes them: it has no plus before what follows something negative."""
    strings = valid_text(strings).array
    is_odd = _compute.is_in(strings, pa.array(_INFINITIES, strings.type))
    held = strings
    if _compute.match_substring(strings, "+").true_count:
        held = _compute.replace_substring(strings, "+", "")
    if not is_odd.true_count:
        return Parsed(held.cast(pa.string()))
    finite = _compute.if_else(is_odd, None, held)
    return Parsed(finite.cast(pa.string()), odd_where(strings, is_odd))


# -- from ADBC ---------------------------------------------------------------------------------

#: From 1970-01-01 to 2000-01-01: ADBC adds this to Postgres' numbers, also to those for infinity.
_EPOCH_US: Final = 946_684_800_000_000
_EPOCH_DAYS: Final = 10_957
#: 4714-11-24 BC, before which Postgres has no timestamp and no date.
_FIRST_TIMESTAMP_US: Final = -210_866_803_200_000_000
_FIRST_DATE_DAYS: Final = _FIRST_TIMESTAMP_US // _DAY_US


def _unwrap(
    number: type[np.int32] | type[np.int64],
    epoch: int,
    infinity: int,
    first: int,
    text_of: Callable[[int], str],
    array: AnyArray,
) -> Parsed:
    """Undo an addition of `epoch` that went past the largest number.

    Postgres' infinities are the largest and the smallest number. All that is below `first`, which
    no value is, went round; it is an infinity, or too late for a count from 1970. So is the moment
    whose number stands for infinity here.
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    count = len(array)
    buffer: Any = array.buffers()[1]
    values: Any = np.frombuffer(buffer, number)[array.offset : array.offset + count]
    if not count or (values.min() >= first and values.max() < infinity):
        return Parsed(array)
    is_valid = array.is_valid().to_numpy(zero_copy_only=False)
    largest = int(np.iinfo(number).max)
    is_positive = values == -largest - 2 + epoch
    is_negative = values == -largest - 1 + epoch
    is_round = (values < first) & ~is_positive & ~is_negative
    is_odd = (is_round | (values == infinity)) & is_valid
    fixed = np.where(is_positive, infinity, np.where(is_negative, -infinity, values))
    integers: Any = pa.array(fixed.astype(number), mask=~is_valid | is_odd)
    places = np.flatnonzero(is_odd)
    if not len(places):
        return Parsed(integers.view(array.type))
    texts = [
        text_of(int(value) + (2 * (largest + 1) if value < first else 0))
        for value in values[places]
    ]
    return Parsed(integers.view(array.type), Odd(places, pa.array(texts, pa.string())))


# -- to text -----------------------------------------------------------------------------------


def _print_date(days: int) -> str:
    if abs(days) == DATE_INFINITY:
        return "infinity" if days > 0 else "-infinity"
    date_, era = _print_day(days)
    return date_ + era


def _print_timestamp(zone: str, micros: int) -> str:
    if abs(micros) == TIMESTAMP_INFINITY:
        return "infinity" if micros > 0 else "-infinity"
    return _print_moment(zone, micros)


def _print_moment(zone: str, micros: int) -> str:
    days, time_us = divmod(micros, _DAY_US)
    date_, era = _print_day(days)
    return f"{date_} {_print_time(time_us)}{zone}{era}"


def _print_time(micros: int) -> str:
    seconds, fraction = divmod(micros, 1_000_000)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{fraction:06}".rstrip("0") if fraction else text


def _print_day(days: int) -> tuple[str, str]:
    year, month, day = civil(days)
    return f"{1 - year if year <= 0 else year:04}-{month:02}-{day:02}", " BC" if year <= 0 else ""


def _print_numbers(
    number: pa.DataType, text_of: Callable[[int], str], array: AnyArray
) -> list[str | None]:
    numbers: Any = array.cast(number)
    return [None if value is None else text_of(value) for value in numbers.to_pylist()]


# -- JSON --------------------------------------------------------------------------------------


def timestamp_to_json(microseconds: int) -> str:
    """Microseconds since 1970-01-01 UTC as an ISO 8601 text with its offset, ``+00:00``."""
    return _timestamp_json_of(microseconds) + "+00:00"


def _date_to_json(value: date | int | str) -> str:
    """Python's date, the word for an infinity, or days since 1970-01-01 beyond Python's dates."""
    if isinstance(value, str):
        return value
    return _date_json_of(value) if isinstance(value, int) else value.isoformat()


def _time_to_json(value: time | str) -> str:
    return value if isinstance(value, str) else value.isoformat()


def _timestamp_to_json(value: datetime | int | str) -> str:
    if isinstance(value, str):
        return value
    return _timestamp_json_of(value) if isinstance(value, int) else value.isoformat()


def _timestamptz_to_json(value: datetime | int | str) -> str:
    return timestamp_to_json(value) if isinstance(value, int) else _timestamp_to_json(value)


def _date_json_of(days: int) -> str:
    try:
        return date.fromordinal(days + _EPOCH_DAY).isoformat()
    except (ValueError, OverflowError):
        year, month, day = civil(days)
        return f"{year:+07d}-{month:02d}-{day:02d}"


def _timestamp_json_of(microseconds: int) -> str:
    days, of_day = divmod(microseconds, _DAY_US)
    clock = (datetime.min + timedelta(microseconds=of_day)).time()
    return f"{_date_json_of(days)}T{clock.isoformat()}"


_EXPANDED: Final = re.compile(r"([+-]\d{6,})-(\d\d)-(\d\d)(?:T([0-9:.]+)(?:\+00:00)?)?")


def _date_from_json(text: str) -> date | int | str:
    if text in _INFINITIES:
        return text
    return _expanded(text)[0] if text[0] in "+-" else date.fromisoformat(text)


def _time_from_json(text: str) -> time | str:
    return text if text == "24:00:00" else time.fromisoformat(text)


def _timestamp_from_json(text: str) -> datetime | int | str:
    if text in _INFINITIES:
        return text
    if text[0] not in "+-":
        return datetime.fromisoformat(text)
    days, clock = _expanded(text)
    since_midnight = datetime.combine(_EPOCH, clock) - _EPOCH
    return days * _DAY_US + since_midnight // _MICROSECOND


def _expanded(text: str) -> tuple[int, time]:
    """Days since 1970-01-01, and the time of day, of a text with an expanded year."""
    match = _EXPANDED.fullmatch(text)
    if match is None:
        raise ValueError("not a date with an expanded year")
    days = days_of(int(match[1]), int(match[2]), int(match[3]))
    return days, time.fromisoformat(match[4] or "00:00")


# -- rows --------------------------------------------------------------------------------------


def _timestamp_row(
    oid: int, name: str, zone: str, arrow: pa.DataType, json: str, edges: tuple[str, ...]
) -> BuiltIn:
    return BuiltIn(
        oid=oid,
        name=name,
        reads=partial(as_timestamps, zone),
        aliases=("timestamptz",) if zone else ("timestamp",),
        form=Form(
            arrow,
            partial(_read_timestamps, arrow),
            to_json=_timestamptz_to_json if zone else _timestamp_to_json,
            from_json=_timestamp_from_json,
            print=partial(_print_numbers, pa.int64(), partial(_print_timestamp, zone)),
            spelling="timestamptz" if zone else "timestamp",
            json=json,
        ),
        adbc=partial(
            _unwrap,
            np.int64,
            _EPOCH_US,
            TIMESTAMP_INFINITY,
            _FIRST_TIMESTAMP_US,
            partial(_print_moment, zone),
        ),
        # Selected by a destination that reads text, of every row; format() takes far longer.
        output=CAST,
        is_ascii=True,
        bound="length",
        edges=(
            Edge("infinity"),
            Edge("-infinity"),
            Edge(f"4714-11-24 00:00:00{zone} BC"),
            Edge(f"294247-01-10 04:00:54.775806{zone}"),
            *(
                Edge(
                    f"{text}{zone}",
                    "null; a count of microseconds since 1970 ends in January 294247",
                    is_odd=True,
                )
                for text in ("294247-01-10 04:00:54.775807", "294276-12-31 23:59:59.999999")
            ),
            *(Edge(f"{text}{zone}") for text in edges),
        ),
    )


ROWS: Final = (
    BuiltIn(
        oid=oids.DATE,
        name="date",
        reads=as_dates,
        form=Form(
            pa.date32(),
            _read_dates,
            to_json=_date_to_json,
            from_json=_date_from_json,
            print=partial(_print_numbers, pa.int32(), _print_date),
            spelling="date",
            json='`"2024-05-01"`; `"infinity"`, `"-infinity"`',
        ),
        adbc=partial(_unwrap, np.int32, _EPOCH_DAYS, DATE_INFINITY, _FIRST_DATE_DAYS, _print_date),
        is_ascii=True,
        edges=(
            Edge("infinity"),
            Edge("-infinity"),
            Edge("4714-11-24 BC"),
            Edge("5874897-12-31"),
            Edge("0001-01-01"),
        ),
    ),
    BuiltIn(
        oid=oids.TIME,
        name="time without time zone",
        form=Form(
            pa.time64("us"),
            _read_times,
            to_json=_time_to_json,
            from_json=_time_from_json,
            print=partial(_print_numbers, pa.int64(), _print_time),
            spelling="time",
            json='`"12:00:00.500000"`, up to `"24:00:00"`',
        ),
        adbc=Parsed,
        is_ascii=True,
        bound="length",
        edges=(
            Edge("00:00:00"),
            Edge("24:00:00"),
            Edge("23:59:59.999999"),
            Edge("12:00:00.5"),
        ),
    ),
    _timestamp_row(
        oids.TIMESTAMP,
        "timestamp without time zone",
        "",
        pa.timestamp("us"),
        '`"2024-05-01T12:00:00"`; `"infinity"`, `"-infinity"`',
        ("2024-02-29 12:34:56.789", "1969-12-31 23:59:59.999999"),
    ),
    _timestamp_row(
        oids.TIMESTAMPTZ,
        "timestamp with time zone",
        "+00",
        pa.timestamp("us", "UTC"),
        '`"2024-05-01T12:00:00+00:00"`, always in UTC; the infinities',
        ("2024-02-29 12:34:56", "10000-01-01 00:00:00"),
    ),
    printed(
        1266,
        "time with time zone",
        "12:00:00+02",
        "24:00:00-15:59:59",
        "00:00:00+15:59:59",
        "23:59:59.999999+05:30",
        bound="length",
        own=own_text("TIME WITH TIME ZONE"),
    ),
    printed(
        1186,
        "interval",
        "1 year 2 mons -3 days +04:05:06.7",
        "00:00:00",
        "-00:00:00.000001",
        "-178956970 years -8 mons -2147483648 days -2562047788:00:54.775807",
        *(edge.text for edge in _INFINITE_INTERVALS),
        own=OwnType(
            form=Form(pa.string(), _read_intervals, duckdb="INTERVAL"),
            edges=_INFINITE_INTERVALS,
            # Equal where they are as long, if a day is 24 hours, and a month 30 days.
            in_keys=False,
        ),
    ),
)
