"""Keys are printed so that Postgres, and our own parsing, read the same values."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.values import oids
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.printing import print_keys
from etl_dagster.values.reading import arrow_type, parse_text


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
    ("type_oid", "text", "printed"),
    [
        (oids.DATE, "0044-03-15 BC", "0044-03-15 BC"),
        (oids.DATE, "0001-12-31 BC", "0001-12-31 BC"),
        (oids.DATE, "4714-11-24 BC", "4714-11-24 BC"),
        (oids.DATE, "12024-02-29", "12024-02-29"),
        (oids.DATE, "-infinity", "-infinity"),
        (oids.TIMESTAMP, "infinity", "infinity"),
        (oids.TIMESTAMP, "0044-03-15 12:00:00.5 BC", "0044-03-15 12:00:00.500000+00 BC"),
        (oids.TIMESTAMPTZ, "2024-02-29 23:59:59.999999+00", "2024-02-29 23:59:59.999999+00"),
        (oids.TIME, "24:00:00", "24:00:00.000000"),
        (oids.TIME, "07:08:09.000001", "07:08:09.000001"),
    ],
)
def test_odd_dates_and_times(type_oid: int, text: str, printed: str) -> None:
    values, lost = parse_text(column(type_oid), pa.array([text]))

    assert lost == 0
    assert print_keys(column(type_oid), values) == [printed]


def test_not_a_number_is_the_only_number_that_a_decimal_lacks() -> None:
    money = column(oids.NUMERIC, (10 << 16 | 2) + 4)
    values, _ = parse_text(money, pa.array(["NaN", "1.50"]))

    assert print_keys(money, values) == ["NaN", "1.50"]


@given(st.integers(-2_440_000, 2_000_000_000))
def test_every_date_is_read_back(days: int) -> None:
    date = column(oids.DATE)
    values = pa.array([days], pa.int32()).cast(arrow_type(date))

    read, lost = parse_text(date, pa.array(print_keys(date, values)))

    assert lost == 0
    assert read.cast(pa.int32()).to_pylist() == [days]
