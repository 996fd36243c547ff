"""From the text that Postgres prints to Arrow, where it matters what the text is."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.model.schema import ColumnSchema
from etl_dagster.values import oids
from etl_dagster.values.forms import arrow_type
from etl_dagster.values.parsed import Odd
from etl_dagster.values.python import to_dicts
from etl_dagster.values.registry import REGISTRY
from etl_dagster.values.text import parse


def _column(type_oid: int, type_modifier: int = -1, base: int = 0) -> ColumnSchema:
    return ColumnSchema("c", type_oid, type_modifier, base_type_oid=base)


def _numeric(precision: int, scale: int) -> ColumnSchema:
    return _column(oids.NUMERIC, (precision << 16 | scale & 0x7FF) + 4)


def _parsed(column: ColumnSchema, *texts: str | None) -> tuple[list[Any], int]:
    parsed = parse(column, pa.array(texts, pa.string()))
    parsed.array.validate(full=True)
    assert parsed.array.type == arrow_type(column)
    values = parsed.array.to_pylist()
    # A value that became null is reported as odd, with its own text.
    lost = [place for place, text in enumerate(texts) if text is not None and values[place] is None]
    odd = parsed.odd or Odd(np.empty(0, np.int64), pa.array([], pa.string()))
    assert odd.places.tolist() == lost
    assert odd.texts.to_pylist() == [texts[place] for place in lost]
    return values, parsed.odd_count


def _numbers(column: ColumnSchema, kind: pa.DataType, *texts: str | None) -> list[int | None]:
    array = parse(column, pa.array(texts, pa.string())).array
    numbers: Any = array.view(kind)
    return list(numbers.to_pylist())


# -- which type ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (_numeric(12, 2), pa.decimal128(12, 2)),
        (_numeric(38, 0), pa.decimal128(38, 0)),
        (_numeric(39, 5), pa.decimal256(39, 5)),
        (_numeric(77, 5), pa.string()),
        (_numeric(3, -2), pa.decimal128(5, 0)),
        (_numeric(2, 5), pa.decimal128(5, 5)),
        (_column(oids.NUMERIC), pa.string()),
        (_column(oids.TIMESTAMPTZ), pa.timestamp("us", "UTC")),
        (_column(oids.UUID), pa.string()),
        (_column(99999), pa.string()),
        (_column(99999, base=oids.INT4), pa.int32()),
    ],
)
def test_a_column_has_the_type_that_holds_it(column: ColumnSchema, expected: pa.DataType) -> None:
    assert arrow_type(column) == expected


# -- ordinary values -----------------------------------------------------------------------------


def test_ordinary_values_keep_their_meaning() -> None:
    assert _parsed(_column(oids.BOOL), "t", "f", None) == ([True, False, None], 0)
    assert _parsed(_column(oids.INT8), "-1", None) == ([-1, None], 0)
    assert _parsed(_numeric(12, 2), "-1.50", None) == ([Decimal("-1.50"), None], 0)
    assert _parsed(_column(oids.BYTEA), "\\x00ff", None, "\\x") == ([b"\0\xff", None, b""], 0)
    assert _parsed(_column(oids.DATE), "2024-02-29") == ([date(2024, 2, 29)], 0)
    assert _parsed(_column(oids.TIME), "12:00:00.5", None) == ([time(12, 0, 0, 500000), None], 0)
    moment = datetime(2024, 2, 29, 12, 0, 0, 500000)
    assert _parsed(_column(oids.TIMESTAMP), "2024-02-29 12:00:00.5") == ([moment], 0)


@pytest.mark.parametrize("type_oid", [16, 17, 20, 25, 701, 1082, 1083, 1114, 1184, 1700, 2950])
def test_a_column_may_be_empty_or_all_null(type_oid: int) -> None:
    assert _parsed(_column(type_oid)) == ([], 0)
    assert _parsed(_column(type_oid), None, None) == ([None, None], 0)


@given(st.lists(st.none() | st.binary(max_size=40), max_size=20))
def test_bytea_is_the_bytes_it_was_printed_from(values: list[bytes | None]) -> None:
    texts = [None if value is None else "\\x" + value.hex() for value in values]

    assert _parsed(_column(oids.BYTEA), *texts) == (values, 0)


# -- odd values ----------------------------------------------------------------------------------


def test_infinity_is_duckdbs_number_for_it() -> None:
    texts = ["infinity", "2000-01-01", None, "-infinity"]

    days = _numbers(_column(oids.DATE), pa.int32(), *texts)
    assert days == [oids.DATE_INFINITY, 10957, None, -oids.DATE_INFINITY]
    texts[1] = "2000-01-01 00:00:00"
    micros = _numbers(_column(oids.TIMESTAMP), pa.int64(), *texts)
    assert micros == [oids.TIMESTAMP_INFINITY, 946_684_800_000_000, None, -oids.TIMESTAMP_INFINITY]


@given(st.dates())
def test_a_date_among_odd_ones_is_the_date(value: date) -> None:
    odd = f"{value.year + 10000:05}-{value:%m-%d}"

    ordinary, later = _numbers(_column(oids.DATE), pa.int32(), value.isoformat(), odd)
    assert ordinary is not None
    assert later is not None
    # The Gregorian calendar repeats after 400 years of 146,097 days.
    assert (date.fromordinal(ordinary + 719_163), later - ordinary) == (value, 25 * 146_097)


def test_years_before_christ_have_no_year_0() -> None:
    days = _numbers(_column(oids.DATE), pa.int32(), "0001-12-31 BC", "0001-01-01")

    assert days[1] is not None
    assert days[0] == days[1] - 1


def test_a_timestamp_after_294247_is_null_and_counted() -> None:
    column = _column(oids.TIMESTAMPTZ)

    assert _parsed(column, "294276-12-31 23:59:59.999999+00", None) == ([None, None], 1)


def test_not_a_number_in_a_decimal_is_null_and_counted() -> None:
    assert _parsed(_numeric(12, 2), "NaN", "1.00", None, "-Infinity") == (
        [None, Decimal("1.00"), None, None],
        2,
    )


def test_a_number_too_wide_is_null_and_counted() -> None:
    """As after a change of type that the schema in force doesn't know yet."""
    assert _parsed(_numeric(3, 2), "123.45", "1.23") == ([None, Decimal("1.23")], 1)
    assert _parsed(_column(oids.INT4), "9999999999", "1", None) == ([None, 1, None], 1)


def test_midnight_at_the_end_of_the_day_is_not_midnight_at_its_beginning() -> None:
    micros = _numbers(_column(oids.TIME), pa.int64(), "24:00:00", "00:00:00", None)

    assert micros == [86_400_000_000, 0, None]


@pytest.mark.parametrize("type_oid", [20, 23, 701, 1082, 1083, 1114, 1184, 17])
def test_text_that_no_server_prints_is_null_and_counted(type_oid: int) -> None:
    assert _parsed(_column(type_oid), "nonsense", None, "") == ([None, None, None], 2)


def test_bytes_that_are_not_utf8_are_escaped_and_counted() -> None:
    """A database in SQL_ASCII keeps any byte, whatever the client's encoding is."""
    broken = pa.array([b"a\xffb", b"fine", None], pa.binary()).view(pa.string())

    parsed = parse(_column(oids.TEXT), broken)

    assert parsed.array.to_pylist() == ["a\\xffb", "fine", None]
    assert parsed.odd is not None
    assert (parsed.odd.places.tolist(), parsed.odd.texts.to_pylist()) == ([0], ["a\\xFFb"])


# -- Python objects ------------------------------------------------------------------------------


def test_rows_as_objects_have_text_for_infinity_and_numbers_beyond_python() -> None:
    days = parse(_column(oids.DATE), pa.array(["infinity", "12024-01-01", "2024-01-01"]))
    batch = pa.RecordBatch.from_arrays([days.array], names=["c"])

    assert to_dicts(batch) == [{"c": "infinity"}, {"c": 3_672_148}, {"c": date(2024, 1, 1)}]


# -- ADBC ----------------------------------------------------------------------------------------


def test_infinities_that_adbc_wrapped_are_unwrapped() -> None:
    epoch = 946_684_800_000_000
    wrapped = pa.array(
        [2**63 - 1 + epoch - 2**64, -(2**63) + epoch, None, 5, 9223371331199999999 + epoch - 2**64]
    )

    read = REGISTRY[oids.TIMESTAMP].adbc
    assert read is not None
    fixed = read(wrapped.view(pa.timestamp("us")))

    assert fixed.odd is not None
    assert fixed.odd.places.tolist() == [4]
    assert fixed.odd.texts.to_pylist() == ["294276-12-31 23:59:59.999999"]
    assert fixed.array.view(pa.int64()).to_pylist() == [
        oids.TIMESTAMP_INFINITY,
        -oids.TIMESTAMP_INFINITY,
        None,
        5,
        None,
    ]


def test_part_of_an_array_is_unwrapped_like_the_whole() -> None:
    wrapped = pa.array([1, 2**31 - 1 + 10957 - 2**32, 3], pa.int32()).view(pa.date32())

    read = REGISTRY[oids.DATE].adbc
    assert read is not None
    fixed = read(wrapped.slice(1))

    assert fixed.array.view(pa.int32()).to_pylist() == [oids.DATE_INFINITY, 3]
