"""An end that was asked for comes, whatever waits; a write of the destination is waited for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from etl_dagster.pg.cancelling import Abandoned, unless_stopped
from etl_dagster.runtime.ending import Calls, Ending
from tests.support.waiting import PATIENCE_S, wait_until


class Fixture:
    def __init__(self) -> None:
        self.stop, self.done, self.calls = threading.Event(), threading.Event(), Calls()
        self.asked: list[str] = []
        self.gives_up = threading.Event()
        self.ending = Ending(
            "a pipeline",
            self.stop,
            self.done,
            is_busy=lambda: self.calls.are_under_way,
            after_s=0.0,
            give_up=self.give_up,
            leave=lambda: self.asked.append("leave"),
            last_s=0.0,
        )
        self.ending.start()

    def give_up(self) -> None:
        self.asked.append("give up")
        self.gives_up.set()


def test_an_end_that_waits_too_long_is_reached_all_the_same() -> None:
    fixture = Fixture()
    hangs = threading.Thread(target=threading.Event().wait, daemon=True)
    hangs.start()

    fixture.stop.set()

    assert fixture.done.wait(PATIENCE_S)
    wait_until(lambda: fixture.asked == ["give up", "leave"])
    fixture.ending.join(hangs)  # returns, although the thread doesn't end


def test_an_end_in_time_is_left_alone() -> None:
    fixture = Fixture()
    fixture.done.set()
    fixture.stop.set()
    wait_until(lambda: not _is_alive("ending a pipeline"))
    assert fixture.asked == []


def test_the_end_waits_for_a_write_of_the_destination() -> None:
    fixture = Fixture()
    with fixture.calls.one():
        fixture.stop.set()
        assert not fixture.gives_up.wait(0.3)
        assert not fixture.done.is_set()
    assert fixture.done.wait(PATIENCE_S)


def test_the_end_does_not_wait_for_a_write_that_waits_for_source_rows() -> None:
    fixture, is_silent = Fixture(), threading.Event()

    def silent() -> object:
        is_silent.set()
        threading.Event().wait()
        return None

    def write() -> None:
        with fixture.calls.one():
            list(fixture.calls.reading(iter(silent, 0)))

    threading.Thread(target=write, daemon=True).start()
    assert is_silent.wait(PATIENCE_S)
    fixture.stop.set()
    assert fixture.done.wait(PATIENCE_S)


def test_rows_pass_unchanged_and_the_write_counts_as_under_way_again() -> None:
    calls = Calls()
    with calls.one():
        for row, expected in zip(calls.reading([1, 2]), [1, 2], strict=True):
            assert (row, calls.are_under_way) == (expected, True)
    assert not calls.are_under_way


def test_work_is_done_and_its_failure_is_raised() -> None:
    stop = threading.Event()
    assert unless_stopped(lambda: 1, stop, after_s=0.0, name="work") == 1
    with pytest.raises(TimeoutError, match="its own"):
        unless_stopped(_fail, stop, after_s=0.0, name="work")


def test_work_that_does_not_end_is_left_once_a_stop_is_asked_for() -> None:
    stop, never = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(unless_stopped, never.wait, stop, after_s=0.0, name="work")
        stop.set()
        with pytest.raises(Abandoned):
            waiting.result(PATIENCE_S)
    never.set()


def _fail() -> None:
    raise TimeoutError("its own")


def _is_alive(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())
