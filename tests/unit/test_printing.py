"""Keys are printed so that Postgres, and our own parsing, read the same values."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.values import oids
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.forms import arrow_type
from etl_dagster.values.printing import print_keys
from etl_dagster.values.text import parse


def column(type_oid: int, type_modifier: int = -1) -> ColumnSchema:
    return ColumnSchema(
        name="c",
        type_oid=type_oid,
        type_modifier=type_modifier,
        type_name="",
        attnum=1,
        nullable=False,
        primary_key_ordinal=1,
        is_identity=True,
        base_type_oid=type_oid,
    )


@pytest.mark.parametrize(
    ("type_oid", "text"),
    [
        (oids.DATE, "0044-03-15 BC"),
        (oids.DATE, "0001-12-31 BC"),
        (oids.DATE, "4714-11-24 BC"),
        (oids.DATE, "12024-02-29"),
        (oids.DATE, "-infinity"),
        (oids.TIMESTAMP, "infinity"),
        (oids.TIMESTAMP, "0044-03-15 12:00:00.5 BC"),
        (oids.TIMESTAMPTZ, "0044-03-15 12:00:00.05+00 BC"),
        (oids.TIMESTAMPTZ, "2024-02-29 23:59:59.999999+00"),
        (oids.TIME, "24:00:00"),
        (oids.TIME, "07:08:09.000001"),
    ],
)
def test_dates_and_times_are_printed_as_postgres_prints_them(type_oid: int, text: str) -> None:
    parsed = parse(column(type_oid), pa.array([text]))

    assert parsed.odd is None
    assert print_keys(column(type_oid), parsed.array) == [text]


def test_not_a_number_is_the_only_number_that_a_decimal_lacks() -> None:
    money = column(oids.NUMERIC, (10 << 16 | 2) + 4)
    parsed = parse(money, pa.array(["NaN", "1.50"]))

    assert print_keys(money, parsed.array) == ["NaN", "1.50"]


@given(st.integers(-2_440_000, 2_000_000_000))
def test_every_date_is_read_back(days: int) -> None:
    date = column(oids.DATE)
    values = pa.array([days], pa.int32()).cast(arrow_type(date))

    read = parse(date, pa.array(print_keys(date, values)))

    assert read.odd is None
    assert read.array.cast(pa.int32()).to_pylist() == [days]
