"""Which destination is set aside: the one that is waited for, and only past the budget."""

from __future__ import annotations

from etl_dagster.lsn import Lsn
from etl_dagster.runtime.fan_out.budget import Budget, Reader
from etl_dagster.runtime.fan_out.pacing import PACE

END = Lsn(10_000)


def look(budget: Budget, now_s: float, **durable: int | tuple[int, float]) -> list[str]:
    """Each reader by what it has, and perhaps for how long others waited for it."""
    readers = {}
    for name, has in durable.items():
        lsn, held_up_s = has if isinstance(has, tuple) else (has, 0.0)
        readers[name] = Reader(Lsn(lsn), held_up_s)
    return list(budget.look(readers, END, now_s))


def test_one_that_the_others_wait_for_is_set_aside_past_the_budget() -> None:
    budget = Budget(1_000, PACE)
    assert look(budget, 100, quick=9_500, slow=(8_900, 0.0)) == []
    for second in range(1, 6):
        assert look(budget, 100 + second, quick=9_500, slow=(8_900, 0.9 * second)) == []
    assert look(budget, 106, quick=9_500, slow=(8_900, 5.4)) == ["slow"]


def test_one_that_was_late_for_a_moment_is_not_taken_for_the_slow_one() -> None:
    """Of two that begin to read a large transaction, either may be the first that is waited for."""
    budget = Budget(1_000, PACE)
    assert look(budget, 100, quick=5_000, slow=5_000) == []
    assert look(budget, 101, quick=(5_000, 0.9), slow=5_000) == []
    for second in range(2, 7):
        assert look(budget, 100 + second, quick=(5_000, 0.9), slow=(5_000, second)) == []
    assert look(budget, 107, quick=(5_000, 0.9), slow=(5_000, 7.0)) == ["slow"]


def test_in_the_middle_of_a_large_transaction_the_one_that_is_waited_for_is_set_aside() -> None:
    """None has made anything of it durable yet."""
    budget = Budget(1_000, PACE)
    found = [look(budget, 100 + s, quick=5_000, slow=(5_000, 0.9 * s)) for s in range(8)]
    assert found[-1] == ["slow"]


def test_one_within_the_budget_is_waited_for() -> None:
    budget = Budget(1_000, PACE)
    assert look(budget, 100, quick=9_500, slow=(9_100, 0.0)) == []
    assert look(budget, 200, quick=9_500, slow=(9_100, 99.0)) == []


def test_one_that_stands_still_is_set_aside_even_if_nobody_waits_for_it() -> None:
    """Little of the WAL is of published tables: no buffer fills, but the slot keeps it all."""
    budget = Budget(1_000, PACE)
    assert look(budget, 100, quick=9_990, slow=5_000) == []
    assert look(budget, 114, quick=9_990, slow=5_000) == []
    assert look(budget, 115, quick=9_990, slow=5_000) == ["slow"]


def test_one_that_gets_where_the_others_were_is_not_at_fault() -> None:
    """They move in the same steps, and one of them is always a step ahead."""
    budget = Budget(1_000, PACE)
    for turn in range(10):
        ahead, after = 1_000 + 100 * turn, 900 + 100 * turn
        assert look(budget, 100 + 10 * turn, first=ahead, second=after) == []


def test_where_all_are_behind_alike_or_there_is_one_alone_none_is_set_aside() -> None:
    budget = Budget(1_000, PACE)
    assert look(budget, 100, first=2_000, second=2_000) == []
    assert look(budget, 200, first=2_000, second=2_000) == []
    assert look(budget, 300, first=2_000) == []
    assert look(budget, 400, first=2_000) == []


def test_two_that_are_slow_are_both_set_aside_and_the_quickest_never() -> None:
    budget = Budget(1_000, PACE)
    look(budget, 100, quick=9_000, slow=2_000, slower=1_000)
    assert look(budget, 120, quick=9_000, slow=2_000, slower=1_000) == ["slow", "slower"]
