"""A copy whose run is canceled ends soon; if a server doesn't answer, it is left where it is."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from etl_dagster.integrations.dagster.copies.copy_ending import end_copy
from etl_dagster.integrations.dagster.outcome import Outcome
from etl_dagster.integrations.dagster.timing import DAGSTER_TIMING
from tests.support.waiting import PATIENCE_S

#: A copy that ends is waited for; one that doesn't is given up at once.
PATIENT = replace(
    DAGSTER_TIMING,
    cancelled_s=PATIENCE_S,
    given_up_s=PATIENCE_S,
    writing_s=PATIENCE_S,
    writing_of_orphan_s=PATIENCE_S,
)


class Worker:
    """Ends once it is given up, or has written; one that ignores both ends with the test."""

    def __init__(self, *, is_writing: bool = False, heeds: bool = True) -> None:
        self.end = threading.Event()
        self.is_given_up = False
        self._is_writing, self._heeds = is_writing, heeds

    def run(self) -> None:
        self.end.wait()

    @property
    def is_writing(self) -> bool:
        if self._is_writing and self._heeds:
            # What it writes is written a moment later.
            self.end.set()
        return self._is_writing

    def give_up(self) -> None:
        self.is_given_up = True
        if self._heeds:
            self.end.set()


def ended(worker: Worker, **seconds: float) -> tuple[bool, bool]:
    """Whether its end was waited for, and whether it was given up."""
    outcome = Outcome(worker.run)
    timing = replace(PATIENT, **seconds)
    is_over = end_copy("public.orders", worker, outcome, timing, is_orphan=False)
    worker.end.set()
    return is_over, worker.is_given_up


def test_a_copy_that_ends_by_itself_is_waited_for() -> None:
    worker = Worker()
    worker.end.set()
    assert ended(worker) == (True, False)


def test_a_write_that_is_under_way_is_waited_for() -> None:
    assert ended(Worker(is_writing=True), cancelled_s=0.0) == (True, False)


def test_a_write_that_does_not_end_is_waited_for_no_longer_than_it_may_take() -> None:
    worker = Worker(is_writing=True, heeds=False)
    is_over, is_given_up = ended(worker, cancelled_s=0.0, writing_s=0.0, given_up_s=0.0)
    assert (is_over, is_given_up) == (False, True)


def test_a_copy_that_waits_for_the_source_is_told_to_stop_waiting() -> None:
    assert ended(Worker(), cancelled_s=0.0) == (True, True)


def test_a_copy_that_waits_for_a_silent_server_is_left_where_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As by a crash of the process: what was durable stays, and its lease ends with the store."""
    assert ended(Worker(heeds=False), cancelled_s=0.0, given_up_s=0.0) == (False, True)
    assert "repeats what was under way" in caplog.text
