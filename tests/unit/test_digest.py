"""Rows hash alike exactly where their values are equal."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from etl_dagster.values.digest import hash_rows, hash_values

#: Values of a type, each different from the others.
DIFFERENT: list[tuple[pa.DataType, list[Any]]] = [
    (pa.bool_(), [True, False, None]),
    (pa.int16(), [0, 1, -1, None]),
    (pa.uint64(), [0, 2**64 - 1, None]),
    (pa.float64(), [0.0, -0.0, 1.5, float("nan"), float("inf"), None]),
    (pa.string(), ["", "a", "b", "ab", "ba", "a" * 300, "é", None]),
    (pa.binary(), [b"", b"\0", b"\0\0", b"\1\0", None]),
    (pa.binary(2), [b"ab", b"ba", None]),
    (pa.decimal128(20, 3), [Decimal("1.000"), Decimal("-1.000"), Decimal("0.001"), None]),
    (pa.decimal256(60, 3), [Decimal("1.000"), Decimal(10**50), None]),
    (pa.date32(), [dt.date(2024, 1, 1), dt.date(1, 1, 1), None]),
    (pa.time64("us"), [dt.time(1), dt.time(2), None]),
    (pa.timestamp("us", "UTC"), [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2), None]),
    (pa.list_(pa.int32()), [[], [1], [1, 2], [2, 1], [None], [None, None], None]),
    (pa.list_(pa.string()), [["a", "b"], ["ab"], ["", "ab"], None]),
    (pa.struct([("a", pa.int32()), ("b", pa.int32())]), [{"a": 1, "b": 2}, {"a": 2, "b": 1}, None]),
    (pa.map_(pa.string(), pa.string()), [[], [("a", "b")], [("b", "a")], [("a", None)], None]),
]


@pytest.mark.parametrize(("type_", "values"), DIFFERENT, ids=lambda each: str(each)[:30])
def test_values_that_differ_have_different_hashes(type_: pa.DataType, values: list[Any]) -> None:
    assert len(set(hash_values(pa.array(values, type_)).tolist())) == len(values)


@pytest.mark.parametrize(("type_", "values"), DIFFERENT, ids=lambda each: str(each)[:30])
def test_a_hash_does_not_depend_on_where_a_value_stands(
    type_: pa.DataType, values: list[Any]
) -> None:
    """A slice shares its buffers with the whole, and the two sides are cut differently."""
    array = pa.array(values * 3, type_)
    whole = hash_values(array)
    assert np.array_equal(whole[2:-1], hash_values(array[2:-1]))
    assert np.array_equal(whole[: len(values)], whole[-len(values) :])
    assert len(hash_values(array[:0])) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1, None], pa.int16()), pa.array([1, None], pa.int64())),
        (pa.array(["a", None]), pa.array(["a", None]).dictionary_encode()),
        (pa.array(["a", None]), pa.array(["a", None], pa.large_string())),
        (pa.array([[1], None]), pa.array([[1], None], pa.large_list(pa.int16()))),
        (
            pa.array([Decimal("1.5")], pa.decimal128(9, 1)),
            pa.array([Decimal("1.5")], pa.decimal256(70, 1)),
        ),
    ],
    ids=lambda each: str(each.type),
)
def test_equal_values_hash_alike_in_another_layout(one: Any, other: Any) -> None:
    assert np.array_equal(hash_values(one), hash_values(other))


def test_the_hash_of_a_row_depends_on_which_column_has_which_value() -> None:
    rows = pa.record_batch({"a": ["x", "y", None], "b": ["y", "x", None]})
    hashes = hash_rows(rows)
    assert len(set(hashes.tolist())) == 3
    assert np.array_equal(hash_rows(rows, ["a"])[:1], hash_rows(rows, ["b"])[1:2])
