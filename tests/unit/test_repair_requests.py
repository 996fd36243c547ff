"""Requests for repairs by several processes, and waiting for what becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from etl_dagster.runtime.repair_requests import (
    RepairOutcome,
    await_repairs,
    forget_repairs,
    keep_outcome,
    note_repairs,
    wanted_repairs,
)
from etl_dagster.stores.memory import MemoryStore

ORDERS, ITEMS = 16_384, 16_385


def awaited(store: MemoryStore, requests: Mapping[int, str], *steps: Callable[[], object]) -> Any:
    """What becomes of the requests; at each look, the next of the steps is done."""
    left = iter(steps)

    def on_look() -> None:
        step = next(left, None)
        if step is None:
            pytest.fail("it still waits")
        step()

    lease = store.acquire_lease("apply")
    assert lease is not None
    return await_repairs(store, requests, on_look=on_look)


def test_the_first_requester_gets_the_outcome_of_a_later_request_for_the_same_table() -> None:
    store = MemoryStore()
    first = note_repairs(store, [ORDERS], "asked")

    def is_asked_again_and_done() -> None:
        later = note_repairs(store, [ORDERS], "asked")
        keep_outcome(store, ORDERS, RepairOutcome(later[ORDERS], "ranges", missing=3))

    found = awaited(store, first, is_asked_again_and_done, lambda: None)
    assert found[ORDERS].missing == 3


def test_a_request_that_a_reset_withdraws_ends_in_a_copy() -> None:
    store = MemoryStore()
    requests = note_repairs(store, [ORDERS], "asked")

    found = awaited(store, requests, lambda: forget_repairs(store, [ORDERS]), lambda: None)
    assert found[ORDERS].by == "copy"
    assert found[ORDERS].reason == "the request was withdrawn, as by a reset"


def test_neither_of_two_concurrent_requests_is_lost() -> None:
    """All of them are in one note, which each of the two reads and writes."""

    class Shared(MemoryStore):
        other: threading.Thread | None = None

        def get_note(self, key: str) -> Mapping[str, Any] | None:
            found = super().get_note(key)
            if self.other is None:
                self.other = threading.Thread(target=note_repairs, args=(self, [ITEMS], "asked"))
                self.other.start()
                self.other.join(0.3)  # it may write now, and must not
            return found

    store = Shared()
    note_repairs(store, [ORDERS], "asked")
    assert store.other is not None
    store.other.join()

    assert wanted_repairs(store, [ORDERS, ITEMS]).keys() == {ORDERS, ITEMS}
