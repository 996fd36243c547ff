"""Which destination is set aside: the one that is waited for, and only past the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etl_dagster.lsn import Lsn
from etl_dagster.runtime.fan_out.budget import Budget, DestinationReader, Findings
from etl_dagster.runtime.fan_out.pacing import PACE

END = Lsn(10_000)
HELD_UP, STANDSTILL = int(PACE.held_up_s), int(PACE.standstill_s)


def has(
    durable: int,
    *,
    written: int = 0,
    is_writing: bool = False,
    held_up_s: float = 0.0,
    asked_s: float = 0.0,
    is_aside: bool = False,
) -> DestinationReader:
    return DestinationReader(Lsn(durable), written, is_writing, held_up_s, asked_s, is_aside)


def look(budget: Budget, now_s: float, **readers: DestinationReader | int) -> list[str]:
    """Those to be set aside; each reader, or what it has made durable."""
    return list(findings(budget, now_s, **readers).slow)


def findings(budget: Budget, now_s: float, **readers: DestinationReader | int) -> Findings:
    made = {name: has(it) if isinstance(it, int) else it for name, it in readers.items()}
    return budget.look(made, END, now_s)


@pytest.fixture
def budget() -> Budget:
    return Budget(1_000, PACE)


def test_a_destination_that_the_others_wait_for_is_set_aside_past_the_budget(
    budget: Budget,
) -> None:
    for second in range(HELD_UP + 1):
        waited = 0.9 * second
        quick, slow = has(9_500, asked_s=waited), has(8_900, held_up_s=waited)
        assert look(budget, 100 + second, quick=quick, slow=slow) == []
    quick, slow = has(9_500, asked_s=5.4), has(8_900, held_up_s=5.4)
    assert look(budget, 101 + HELD_UP, quick=quick, slow=slow) == ["slow"]


def test_a_destination_that_was_late_for_a_moment_is_not_taken_for_the_slow_one(
    budget: Budget,
) -> None:
    """Of two that begin to read a large transaction, either may be the first that is waited for."""
    assert look(budget, 100, quick=5_000, slow=5_000) == []
    quick, slow = has(5_000, held_up_s=0.9), has(5_000, asked_s=0.9)
    assert look(budget, 101, quick=quick, slow=slow) == []
    found = []
    for second in range(HELD_UP + 2):
        slow = has(5_000, asked_s=0.9, held_up_s=second)
        found = look(budget, 102 + second, quick=replace(quick, asked_s=second), slow=slow)
    assert found == ["slow"]


def test_in_the_middle_of_a_large_transaction_the_destination_waited_for_is_set_aside(
    budget: Budget,
) -> None:
    """None has made anything of it durable yet, but one completes batches of it."""
    for second in range(HELD_UP + 2):
        quick = has(5_000, written=second, is_writing=True, asked_s=second)
        found = look(budget, 100 + second, quick=quick, hung=has(5_000, held_up_s=second))
    assert found == ["hung"]


def test_a_destination_that_is_itself_past_the_budget_still_counts_as_waiting(
    budget: Budget,
) -> None:
    """Both read the same transaction, and only one got a position before its end."""
    for second in range(HELD_UP + 2):
        found = look(
            budget,
            100 + second,
            quick=has(5_000, asked_s=second),
            hung=has(9_500, held_up_s=second),
        )
    assert found == ["hung"]


def test_a_destination_that_hangs_but_still_reads_cannot_get_a_slow_one_set_aside(
    budget: Budget,
) -> None:
    """It has room for some batches before it stops reading; until then it waits for the others."""
    for second in range(60):
        hung = has(5_000, written=7, is_writing=True, asked_s=second)
        slow = has(5_000, written=second, is_writing=True, held_up_s=second)
        assert look(budget, 100 + second, hung=hung, slow=slow) == []


def test_a_destination_that_hangs_just_after_a_batch_cannot_get_a_slow_one_set_aside(
    budget: Budget,
) -> None:
    for second in range(60):
        hung = has(5_000, written=min(second, 2), is_writing=True, asked_s=second)
        slow = has(5_000, written=second // 3, is_writing=True, held_up_s=second)
        assert look(budget, 100 + second, hung=hung, slow=slow) == []


def test_a_destination_that_hangs_far_ahead_cannot_get_a_slow_one_set_aside(budget: Budget) -> None:
    """It has more than the other one, which works and gets there eventually."""
    for second in range(3 * STANDSTILL):
        hung = has(8_000, written=7, is_writing=True)
        slow = has(5_000 + second, written=second, is_writing=True)
        assert look(budget, 100 + second, hung=hung, slow=slow) == []


def test_neither_of_two_that_hang_gets_the_other_set_aside(budget: Budget) -> None:
    for second in range(3 * STANDSTILL):
        first = has(5_000, written=7, is_writing=True, asked_s=second)
        second_one = has(4_000, written=7, is_writing=True, held_up_s=second)
        assert look(budget, 100 + second, first=first, second=second_one) == []


def test_a_working_destination_is_not_set_aside_for_what_a_third_one_waits_for(
    budget: Budget,
) -> None:
    """The hung one is the one without room; the slow one just reads less quickly."""
    for second in range(HELD_UP + 2):
        found = look(
            budget,
            100 + second,
            quick=has(5_000, written=second, asked_s=second),
            slow=has(5_000, written=second // 2, is_writing=True),
            hung=has(5_000, is_writing=True, held_up_s=second),
        )
    assert found == ["hung"]


def test_a_destination_within_the_budget_is_waited_for(budget: Budget) -> None:
    for now_s in (0, 50, 100, 150):
        quick, slow = has(9_500, asked_s=now_s), has(9_100, held_up_s=now_s)
        assert look(budget, 100 + now_s, quick=quick, slow=slow) == []


def test_a_destination_that_hangs_is_set_aside_even_if_no_other_waits_for_it(
    budget: Budget,
) -> None:
    """Little of the WAL is of published tables: no buffer fills, but the slot keeps it all."""
    assert look(budget, 100, quick=9_990, slow=5_000) == []
    assert look(budget, 99 + STANDSTILL, quick=9_990, slow=5_000) == []
    assert look(budget, 100 + STANDSTILL, quick=9_990, slow=5_000) == ["slow"]


def test_a_destination_that_follows_a_step_later_is_not_at_fault(budget: Budget) -> None:
    """They move in the same steps, and one of them is always a step ahead."""
    for turn in range(10):
        ahead, after = 1_000 + 100 * turn, 900 + 100 * turn
        assert look(budget, 100 + 10 * turn, first=ahead, second=after) == []


def test_none_is_set_aside_if_all_are_equally_late_or_there_is_only_one(
    budget: Budget,
) -> None:
    assert look(budget, 100, first=2_000, second=2_000) == []
    assert look(budget, 200, first=2_000, second=2_000) == []
    assert look(budget, 300, first=2_000) == []
    assert look(budget, 400, first=2_000) == []


def test_two_slow_destinations_are_both_set_aside_and_the_quickest_never(budget: Budget) -> None:
    look(budget, 100, quick=9_000, slow=2_000, slower=1_000)
    assert look(budget, 120, quick=9_000, slow=2_000, slower=1_000) == ["slow", "slower"]


def test_two_destinations_that_wait_for_each_other_are_not_both_set_aside(budget: Budget) -> None:
    """One has read more and is waited for in what it has made durable; the other has no room."""
    for second in range(STANDSTILL + 1):
        reading = has(2_000 + second, written=second, is_writing=True, asked_s=second)
        full = has(5_000 + second, written=second, is_writing=True, held_up_s=second)
        found = look(budget, 100 + second, reading=reading, full=full)
    assert found == ["reading"]


def test_the_last_destination_at_the_slot_is_compared_with_those_set_aside(
    budget: Budget,
) -> None:
    """They have recovered, and come back to a slot that it holds back."""
    aside = has(9_900, is_aside=True)
    look(budget, 100, left=5_000, aside=aside)
    assert look(budget, 100 + STANDSTILL, left=5_000, aside=aside) == ["left"]


def test_a_destination_set_aside_is_not_set_aside_again_and_blames_none_that_is_ahead(
    budget: Budget,
) -> None:
    aside = has(3_000, is_aside=True)
    for second in range(60):
        assert look(budget, 100 + second, left=5_000, aside=aside) == []


def test_a_destination_past_the_budget_that_stays_is_reported_until_it_is_within(
    budget: Budget,
) -> None:
    assert findings(budget, 100, left=5_000).tolerated == {}
    told = findings(budget, 100 + PACE.tolerated_s, left=5_000).tolerated
    assert list(told) == ["left"]
    assert "max_slot_wal_keep_size" in told["left"]
    assert findings(budget, 200, left=9_500).tolerated == {}
    assert findings(budget, 201, left=5_000).tolerated == {}


def test_a_destination_that_returns_is_judged_from_the_beginning(budget: Budget) -> None:
    look(budget, 100, quick=9_990, slow=5_000)
    look(budget, 110, quick=9_990)
    assert look(budget, 120, quick=9_990, slow=5_000) == []
