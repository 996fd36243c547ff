"""Several destinations are waited for to the end, whatever one of them does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import pytest

from etl_dagster.errors import (
    DestinationError,
    DestinationsFailed,
    DestinationUnreachable,
    SourceReplaced,
)
from etl_dagster.runtime.fan_out.waiting import wait_for_each

NO_ANSWER = DestinationUnreachable("no answer")
#: How a wait for a pipeline ends: what it returns, or raises.
Outcome = bool | Exception


class Scripted:
    """A destination, and its pipeline: each wait for it takes the next step of the script."""

    is_running = True

    def __init__(self, *script: Outcome | Callable[[Scripted], Outcome]) -> None:
        self.script = list(script)
        self.failure: BaseException | None = None
        self.ended_with: Exception | None = None
        self.waits = 0
        self.pipeline = self

    def wait(self, timeout_s: float | None = None) -> bool:
        if self.ended_with is not None:
            raise self.ended_with
        return False

    def wait_until_caught_up(self, timeout_s: float | None = None) -> bool:
        self.waits += 1
        step = self.script.pop(0)
        outcome = step if isinstance(step, bool | Exception) else step(self)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def ends(failure: Exception) -> Callable[[Scripted], Outcome]:
    """The pipeline ends with this, and so its destination has failed."""

    def step(scripted: Scripted) -> Outcome:
        scripted.failure = scripted.ended_with = failure
        return failure

    return step


def wait(members: Mapping[str, Scripted], timeout_s: float | None = None) -> bool:
    return wait_for_each(
        members, stop=threading.Event(), done=threading.Event(), timeout_s=timeout_s
    )


def test_all_are_waited_for() -> None:
    left, right = Scripted(True), Scripted(True)
    assert wait({"left": left, "right": right})
    assert (left.waits, right.waits) == (1, 1)


def test_the_others_catch_up_before_the_failed_ones_are_reported() -> None:
    members = {
        "archive": Scripted(ends(NO_ANSWER)),
        "lake": Scripted(True),
        "search": Scripted(ends(DestinationError("no space", solution="Make room."))),
        "warehouse": Scripted(True),
    }
    with pytest.raises(DestinationsFailed) as raised:
        wait(members)

    assert [each.waits for each in members.values()] == [1, 1, 1, 1]
    failed = raised.value
    assert failed.reason == "archive failed: no answer; search failed: no space"
    assert failed.solution == f"archive: {NO_ANSWER.solution}\nsearch: Make room."
    assert [*failed.failures] == ["archive", "search"]
    assert not failed.retryable


def test_a_single_failure_keeps_its_own_solution() -> None:
    members = {"left": Scripted(ends(NO_ANSWER)), "right": Scripted(True)}
    with pytest.raises(DestinationsFailed) as raised:
        wait(members)

    assert raised.value.solution == NO_ANSWER.solution
    assert raised.value.retryable


def test_a_destination_that_works_again_by_then_is_waited_for_again() -> None:
    left = Scripted(ends(NO_ANSWER), True)

    def start_again(_: Scripted) -> Outcome:
        left.failure = left.ended_with = None
        return True

    assert wait({"left": left, "right": Scripted(start_again)})
    assert left.waits == 2


def test_a_pipeline_that_is_started_again_at_once_is_not_a_failure() -> None:
    """As one that is copied again: its destination has not failed."""

    def is_left_behind(scripted: Scripted) -> Outcome:
        scripted.ended_with = DestinationError("left behind")
        return scripted.ended_with

    assert wait({"left": Scripted(is_left_behind, True), "right": Scripted(True)})


def test_an_error_that_waiting_cannot_cure_is_raised() -> None:
    with pytest.raises(SourceReplaced):
        wait({"left": Scripted(SourceReplaced("another cluster")), "right": Scripted()})


def test_a_foreign_error_is_named_without_its_message() -> None:
    members = {"left": Scripted(ends(ValueError("a row's value"))), "right": Scripted(True)}
    with pytest.raises(DestinationsFailed) as raised:
        wait(members)

    assert raised.value.reason == "left failed: ValueError"


def test_at_the_timeout_the_failed_ones_are_reported() -> None:
    left = Scripted()
    left.failure = NO_ANSWER
    with pytest.raises(DestinationsFailed, match="left failed"):
        wait({"left": left, "right": Scripted()}, timeout_s=0.0)

    assert not wait({"left": Scripted(), "right": Scripted()}, timeout_s=0.0)


def test_the_end_of_all_ends_the_wait() -> None:
    stop, done = threading.Event(), threading.Event()
    stop.set()
    assert not wait_for_each({"left": Scripted(False)}, stop=stop, done=done, timeout_s=None)
    done.set()
    assert not wait_for_each({"left": Scripted()}, stop=stop, done=done, timeout_s=None)
