"""Positions in the write-ahead log."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import etl_dagster.lsn
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.position import Position

offsets = st.integers(0, 2**64 - 1)


@given(offsets)
def test_an_lsn_survives_its_own_notation(offset: int) -> None:
    assert Lsn.parse(str(Lsn(offset))) == Lsn(offset)


@given(offsets, offsets)
def test_lsns_order_as_their_offsets(one: int, other: int) -> None:
    """Comparing the text would put 0/FFFFFFFF behind 1/0."""
    assert (Lsn.parse(str(Lsn(one))) < Lsn.parse(str(Lsn(other)))) == (one < other)


def test_postgres_notation_is_read_in_either_case() -> None:
    assert Lsn.parse("16/b374d848") == Lsn.parse("16/B374D848") == Lsn(0x16_B374D848)


@pytest.mark.parametrize(
    "text",
    ["", "0", "/", "0/", "/0", "0/0 ", " 0/0", "0/0\n", "g/0", "0/123456789", "0/0/0", "-1/0"],
)
def test_a_text_that_is_not_an_lsn_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="16/B374D848"):
        Lsn.parse(text)


def test_zero_is_before_everything() -> None:
    assert str(LSN_ZERO) == "0/0"
    assert Lsn(1) > LSN_ZERO


def test_just_before_lies_between_two_transactions() -> None:
    """A table whose position this is has every earlier commit and nothing of this one."""
    position = Position.just_before(Lsn(100))

    assert Position(Lsn(99), 10**9) < position < Position(Lsn(100), 0)


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(etl_dagster.lsn).failed == 0
