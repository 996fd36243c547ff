"""The check of wording finds what it should, and leaves idiomatic English alone."""

from __future__ import annotations

import pytest

from tests.support.plain_english import findings

NO, BODY, AGAIN = "no", "body", "an" + "ew"


@pytest.mark.parametrize(
    "line",
    [
        f"orders is {NO} table",
        f"These are {NO} rows",
        f"some{BODY}'s file",
        f"No{BODY} reads it",
        f"the copy begins {AGAIN}",
        "men" + "d it",
        "who" + "ever comes first",
        "the copy goes" + " on",
        "be" + "side the file",
        "a user is told" + " so",
        f"def test_orders_is_{NO}_table() -> None:",
        "    async def test_the_copy_goes" + "_on() -> None:",
        "All of it was in" + " vain.",
        "def test_a_worker_that_stands" + "_still() -> None:",
    ],
)
def test_wording_to_avoid_is_found(line: str) -> None:
    assert [number for number, _, _ in findings(f"fine\n{line}\n")] == [2]


@pytest.mark.parametrize(
    "line",
    [
        "There is no table",
        "there are no rows",
        "It is no longer needed",
        "recommended",
        'account = "nobody"',
        "somebody_else = 1",
        "def test_there_is_no_table() -> None:",
        "case is gone ON CONFLICT",
    ],
)
def test_good_wording_is_not_reported(line: str) -> None:
    assert not [*findings(line)]
