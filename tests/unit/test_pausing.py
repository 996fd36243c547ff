"""Pauses of several processes at a time are all kept."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etl_dagster.runtime.copying.pausing import (
    ask_for_copies,
    asked_at,
    pause_copies,
    paused_tables,
    resume_copies,
)
from etl_dagster.stores.memory import MemoryStore
from tests.support.waiting import PATIENCE_S


class Overlapping(MemoryStore):
    """A reader of a note waits while another one reads it."""

    def __init__(self) -> None:
        super().__init__()
        self._both = threading.Barrier(2)

    def get_note(self, key: str) -> Mapping[str, Any] | None:
        note = super().get_note(key)
        try:
            self._both.wait(0.1)
        except threading.BrokenBarrierError:
            self._both.reset()
        return note


def test_two_pauses_at_once_are_both_kept() -> None:
    store = Overlapping()
    with ThreadPoolExecutor(2) as both:
        for done in [both.submit(pause_copies, store, [table_id]) for table_id in (1, 2)]:
            done.result(PATIENCE_S)
    assert paused_tables(store).keys() == {1, 2}


def test_a_pause_while_another_table_is_resumed_is_kept() -> None:
    store = Overlapping()
    pause_copies(store, [1])
    with ThreadPoolExecutor(2) as both:
        jobs = [both.submit(resume_copies, store, [1]), both.submit(pause_copies, store, [2])]
        for done in jobs:
            done.result(PATIENCE_S)
    assert paused_tables(store).keys() == {2}


def test_two_requests_for_copies_at_once_are_both_kept() -> None:
    store = Overlapping()
    with ThreadPoolExecutor(2) as both:
        for done in [both.submit(ask_for_copies, store, [table_id]) for table_id in (1, 2)]:
            done.result(PATIENCE_S)
    assert asked_at(store).keys() == {1, 2}
