"""Pauses between tries double up to a limit, differ by chance, and end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from etl_dagster.backoff import Backoff, doubled_s


class Clock:
    """Moves when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def always(value: float) -> Callable[[], float]:
    return lambda: value


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0, rand=always(1.0))
    assert [backoff.next_delay_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.attempt == 5


def test_jitter_takes_up_to_half_of_a_pause_away() -> None:
    assert Backoff(8, 60, rand=always(0.0)).next_delay_s() == 4.0
    assert Backoff(8, 60, rand=always(0.5)).next_delay_s() == 6.0


def test_a_longest_pause_below_the_first_one_wins() -> None:
    assert Backoff(8, 2, rand=always(1.0)).next_delay_s() == 2.0


@pytest.mark.parametrize("attempt", [100, 1_100, 10**9])
def test_however_often_something_failed_the_pause_can_be_computed(attempt: int) -> None:
    """A float overflows after 1,024 doublings: 17 hours, at one try a minute."""
    assert doubled_s(2.0, 60.0, attempt) == 60.0


def test_progress_resets_to_the_first_pause() -> None:
    backoff = Backoff(1, 60, max_attempts=2, rand=always(1.0))
    backoff.next_delay_s()
    assert not backoff.is_exhausted
    backoff.next_delay_s()
    assert backoff.is_exhausted
    backoff.reset()
    assert not backoff.is_exhausted
    assert backoff.next_delay_s() == 1.0


def test_no_pause_ends_after_the_deadline() -> None:
    clock = Clock()
    backoff = Backoff(1, 60, give_up_after_s=10, clock=clock, rand=always(1.0))
    pauses = []
    while not backoff.is_exhausted:
        pauses.append(backoff.next_delay_s())
        clock.now += pauses[-1]
    # The next one would be 8 s, and end at 15.
    assert pauses == [1.0, 2.0, 4.0]
    backoff.reset()
    assert not backoff.is_exhausted


def test_a_slow_attempt_uses_up_the_time_too() -> None:
    clock = Clock()
    backoff = Backoff(1, 60, give_up_after_s=10, clock=clock)
    clock.now += 9.5
    assert backoff.is_exhausted


def test_without_limits_it_never_ends() -> None:
    backoff = Backoff(1, 2)
    for _ in range(2_000):
        backoff.next_delay_s()
    assert not backoff.is_exhausted
