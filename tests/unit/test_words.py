"""Lists and sizes read the same everywhere."""

from __future__ import annotations

import pytest

from etl_dagster.words import human_bytes, names


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b", "c"], "a, b, c"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
    ],
)
def test_the_first_names_and_a_count(items: list[str], expected: str) -> None:
    assert names(items, at_most=3) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (-5 * 1024**2, "-5.0 MiB"),
        (3 * 1024**3 // 2, "1.5 GiB"),
        (2000 * 1024**4, "2000.0 TiB"),
    ],
)
def test_a_size_has_one_digit_and_a_binary_unit(count: int, expected: str) -> None:
    assert human_bytes(count) == expected
