"""Values without parts: what is cast at once is what is read one by one; odd ones are the same."""

from __future__ import annotations

import calendar
import struct
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl_dagster.values import oids
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.forms import arrow_type, form_of
from etl_dagster.values.python import to_objects
from etl_dagster.values.registry import REGISTRY
from etl_dagster.values.strings import decode_stored
from etl_dagster.values.text import parse
from etl_dagster.values.types import Enum
from tests.unit import slow_casts

Twin = Callable[[str], Any]
few = settings(max_examples=40)

# -- texts as Postgres prints them ---------------------------------------------------------------


def _integers(bits: int, *, signed: bool = True) -> st.SearchStrategy[str]:
    first, end = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    return st.integers(first, end - 1).map(str)


def _printed_float(number: float) -> str:
    """The shortest digits that are this number; of float4, those that NumPy finds."""
    if number != number:
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "Infinity" if number > 0 else "-Infinity"
    return str(number).removesuffix(".0")


_FLOATS = st.floats().map(_printed_float)
_FLOATS4 = st.floats(width=32).map(np.float32).map(_printed_float)
_DECIMALS = st.just("NaN") | st.decimals(-(10**9), 10**9, places=2).map(lambda n: format(n, "f"))
_WIDE = st.integers(-(10**60) + 1, 10**60 - 1).map(lambda n: format(Decimal(f"{n}e-20"), "f"))
_BYTES = st.binary(max_size=20).map(lambda value: "\\x" + value.hex())
_UNPRINTABLE = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
_TEXTS = st.text(_UNPRINTABLE, max_size=8)


@st.composite
def _days(draw: st.DrawFn, *, last_year: int, first_year: int = -4712) -> tuple[str, str]:
    """A date, and its era. The year before 1 is 1 BC, and all are Gregorian."""
    ordinary = st.integers(1900, 2100)
    year = draw(ordinary | st.integers(first_year, last_year) | st.sampled_from([0, 1, 9999]))
    month = draw(st.integers(1, 12))
    # Python's calendar ends with year 9999; it is the same again after 400 years.
    length = calendar.monthrange(2000 + year % 400, month)[1]
    day = draw(st.integers(1, length) | st.just(length))
    shown, era = (year, "") if year > 0 else (1 - year, " BC")
    return f"{shown:04}-{month:02}-{day:02}", era


_INFINITIES = st.sampled_from(["infinity", "-infinity"])
_DATES = _INFINITIES | _days(last_year=5_874_896).map("".join)
_CLOCKS = st.builds(
    lambda hour, minute, second, micros: (
        f"{hour:02}:{minute:02}:{second:02}" + (f".{micros:06}".rstrip("0") if micros else "")
    ),
    st.integers(0, 23),
    st.integers(0, 59),
    st.integers(0, 59),
    st.just(0) | st.integers(0, 999_999),
)


def _moments(zone: str) -> st.SearchStrategy[str]:
    days = _days(last_year=294_276) | _days(first_year=294_245, last_year=294_276)
    ends = [f"294247-01-10 04:00:54.77580{digit}{zone}" for digit in "5678"]
    made = st.builds(lambda day, time: f"{day[0]} {time}{zone}{day[1]}", days, _CLOCKS)
    return made | _INFINITIES | st.sampled_from(ends)


def _money(precision: int, scale: int) -> int:
    return ((precision << 16) | scale) + 4


CASTS: dict[str, tuple[ColumnSchema, st.SearchStrategy[str], Twin]] = {
    "boolean": (ColumnSchema("c", oids.BOOL), st.sampled_from("tf"), slow_casts.boolean),
    "smallint": (ColumnSchema("c", oids.INT2), _integers(16), int),
    "integer": (ColumnSchema("c", oids.INT4), _integers(32), int),
    "bigint": (ColumnSchema("c", oids.INT8), _integers(64), int),
    "oid": (ColumnSchema("c", oids.OID), _integers(32, signed=False), int),
    "real": (ColumnSchema("c", oids.FLOAT4), _FLOATS4, slow_casts.float4),
    "double precision": (ColumnSchema("c", oids.FLOAT8), _FLOATS, slow_casts.float8),
    "numeric(12,2)": (
        ColumnSchema("c", oids.NUMERIC, _money(12, 2)),
        _DECIMALS,
        slow_casts.decimal,
    ),
    "numeric(60,20)": (ColumnSchema("c", oids.NUMERIC, _money(60, 20)), _WIDE, slow_casts.decimal),
    "bytea": (ColumnSchema("c", oids.BYTEA), _BYTES, slow_casts.bytea),
    "date": (ColumnSchema("c", oids.DATE), _DATES, slow_casts.day),
    "time": (ColumnSchema("c", oids.TIME), _CLOCKS | st.just("24:00:00"), slow_casts.clock),
    "timestamp": (ColumnSchema("c", oids.TIMESTAMP), _moments(""), slow_casts.moment),
    "timestamptz": (ColumnSchema("c", oids.TIMESTAMPTZ), _moments("+00"), slow_casts.moment),
    "enum": (
        ColumnSchema("c", 70_000, type=Enum(70_000, "public.mood", ("sad",)), nested="native"),
        _TEXTS,
        str,
    ),
}

_NUMBERS = {pa.date32(): pa.int32(), pa.time64("us"): pa.int64(), pa.timestamp("us"): pa.int64()}


def _values(array: pa.Array[Any]) -> list[Any]:
    """As a twin gives them."""
    kind: Any = array.type
    if pa.types.is_floating(kind):
        code = "<f" if kind == pa.float32() else "<d"
        return [None if v is None else struct.pack(code, v) for v in array.to_pylist()]
    if pa.types.is_timestamp(kind):
        kind = pa.timestamp("us")
    return array.view(_NUMBERS[kind]).to_pylist() if kind in _NUMBERS else array.to_pylist()


def _assert_as_one_by_one(column: ColumnSchema, texts: list[str | None], twin: Twin) -> None:
    expected: list[Any] = []
    odd: dict[int, str] = {}
    for place, text in enumerate(texts):
        try:
            expected.append(None if text is None else twin(text))
        except slow_casts.Odd:
            expected.append(None)
            odd[place] = str(text)
    for kind in (pa.string(), pa.large_string()):
        # A part of a longer array begins somewhere in its buffers.
        array: Any = pa.array(["?", *texts, "?"], kind).slice(1, len(texts))
        parsed = parse(column, array)
        # Arrow's own times end before 24:00:00.
        parsed.array.validate(full="24:00:00" not in texts)
        assert parsed.array.type == arrow_type(column)
        assert _values(parsed.array) == expected
        found = parsed.odd
        assert odd == (
            {}
            if found is None
            else dict(zip(found.places.tolist(), found.texts.to_pylist(), strict=True))
        )


@pytest.mark.parametrize("name", CASTS)
@few
@given(data=st.data())
def test_casting_a_column_at_once_gives_the_same_as_one_text_at_a_time(
    name: str, data: st.DataObject
) -> None:
    column, texts, twin = CASTS[name]

    _assert_as_one_by_one(column, data.draw(st.lists(st.none() | texts, max_size=12)), twin)


_AS_PRINTED = [
    row for row in REGISTRY.values() if form_of(ColumnSchema("c", row.oid)).arrow == pa.string()
]


@settings(max_examples=5)
@given(texts=st.lists(st.none() | _TEXTS, max_size=8))
def test_values_held_as_printed_are_what_was_printed(texts: list[str | None]) -> None:
    """Money, bits, intervals, times with a zone, UUIDs, JSON, networks and all the others."""
    for row in _AS_PRINTED:
        edges: list[str | None] = [edge.text for edge in row.edges]

        _assert_as_one_by_one(ColumnSchema("c", row.oid), edges + texts, str)


def test_every_type_has_a_twin() -> None:
    """A type with a cast of its own needs a line above."""
    with_twin = {column.type_oid for column, _, _ in CASTS.values()}

    assert REGISTRY.keys() - {row.oid for row in _AS_PRINTED} <= with_twin


# -- texts as databases keep them ----------------------------------------------------------------

_CODECS = ["utf-8", "cp1252", "euc_jp", "gb18030"]
#: Of several encodings, and of none.
_KEPT = st.one_of(
    st.binary(max_size=12) | st.just(b"\\\x7f\xff"),
    _TEXTS.map(lambda text: text.encode("utf-8")),
    st.text('aä¥あ漢я\\"', max_size=6).map(lambda text: text.encode("euc_jp", "ignore")),
    st.text('aä¥あ漢я\\"', max_size=6).map(lambda text: text.encode("gb18030", "ignore")),
)


@pytest.mark.parametrize("codec", _CODECS)
@few
@given(values=st.lists(st.none() | _KEPT, max_size=10), is_json=st.booleans())
def test_decoding_texts_of_an_encoding_at_once_gives_the_same_as_one_by_one(
    codec: str, values: list[bytes | None], is_json: bool
) -> None:
    decode = partial(slow_casts.stored, codec=codec, is_json=is_json)
    both = [None if value is None else decode(value) for value in values]
    for kind in (pa.binary(), pa.large_binary()):
        array: Any = pa.array([b"\xff", *values], kind).slice(1)
        strings = array.view(pa.string() if kind == pa.binary() else pa.large_string())

        parsed = decode_stored(strings, codec, is_json=is_json)

        parsed.array.validate(full=True)
        assert parsed.array.to_pylist() == [None if each is None else each[0] for each in both]
        odd = {place: each[1] for place, each in enumerate(both) if each and each[1] is not None}
        found = parsed.odd
        assert odd == (
            {}
            if found is None
            else dict(zip(found.places.tolist(), found.texts.to_pylist(), strict=True))
        )


# -- what ADBC reads -----------------------------------------------------------------------------

#: From 1970 to 2000, which the driver adds.
_DAYS, _MICROS = 10_957, 946_684_800_000_000


@pytest.mark.parametrize(
    ("type_oid", "bits", "epoch", "first", "twin"),
    [
        (oids.DATE, 32, _DAYS, -2_451_545, slow_casts.day),
        (oids.TIMESTAMP, 64, _MICROS, -211_813_488_000_000_000, slow_casts.moment),
        (oids.TIMESTAMPTZ, 64, _MICROS, -211_813_488_000_000_000, slow_casts.moment),
    ],
)
@few
@given(data=st.data())
def test_adbc_reads_the_value_whose_text_the_stream_sends(
    type_oid: int, bits: int, epoch: int, first: int, twin: Twin, data: st.DataObject
) -> None:
    """Postgres counts from 2000, and its first and last numbers are infinities."""
    largest = 2 ** (bits - 1) - 1
    infinities = {largest: largest, -largest - 1: -largest}
    # Postgres' last timestamp; its last date is far from the end of the numbers.
    end = 9_223_371_331_200_000_000 - 1 if bits == 64 else 2_145_031_948 - epoch
    ends = [*infinities, first, end, min(largest - epoch, end)]
    values = st.integers(first, end) | st.integers(max(first, end - 2 * epoch), end)
    numbers = data.draw(st.lists(st.none() | st.sampled_from(ends) | values, max_size=12))
    read = [None if n is None else slow_casts.as_adbc_adds(n, epoch, bits) for n in numbers]
    column = ColumnSchema("c", type_oid)
    number: Any = pa.int32() if bits == 32 else pa.int64()
    array = pa.array([0, *read], number).view(arrow_type(column)).slice(1)
    adbc = REGISTRY[type_oid].adbc
    assert adbc is not None

    parsed = adbc(array)

    expected = [None if n is None else infinities.get(n, n + epoch) for n in numbers]
    too_late = {
        place: value
        for place, (n, value) in enumerate(zip(numbers, expected, strict=True))
        if value is not None and n not in infinities and value >= largest
    }
    assert parsed.array.view(number).to_pylist() == [
        None if place in too_late else value for place, value in enumerate(expected)
    ]
    found = parsed.odd
    assert too_late.keys() == (set() if found is None else set(found.places.tolist()))
    for text in [] if found is None else found.texts.to_pylist():
        with pytest.raises(slow_casts.Odd):
            twin(text)


def test_the_twins_calendar_agrees_with_pythons() -> None:
    for day in (date(1, 1, 1), date(1900, 2, 28), date(2000, 2, 29), date(9999, 12, 31)):
        assert slow_casts.day(day.isoformat()) == (day - date(1970, 1, 1)).days
    assert slow_casts.day("0001-12-31 BC") == slow_casts.day("0001-01-01") - 1
    assert slow_casts.day("4714-11-24 BC") == -2_440_588
    assert to_objects(pa.array([-2_440_588], pa.int32()).view(pa.date32())) == [-2_440_588]
