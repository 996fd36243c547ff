"""The repair job asks for repairs, waits for them, and tells what became of each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from etl_dagster.integrations.dagster import repairs
from etl_dagster.integrations.dagster.comparisons import ComparedTable
from etl_dagster.integrations.dagster.repairs import Repaired, repair
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Ready
from etl_dagster.runtime.comparing.comparison import Comparison
from etl_dagster.runtime.repair_requests import (
    RangeDifference,
    RepairOutcome,
    keep_outcome,
    request_repairs,
)
from etl_dagster.stores.memory import MemoryStore

FOUND = Comparison("different", Lsn(50), 10, 9, missing=1, ranges=(RangeDifference(3, missing=1),))
COMPARED = (
    ComparedTable("public.orders", 1, FOUND, "The rows differ."),
    ComparedTable("public.people", 2, Comparison("equal", Lsn(51), 2, 2), "The same."),
    ComparedTable("public.visits", 3, FOUND, "The rows differ."),
    ComparedTable(
        "public.events", 4, Comparison("unsettled", reason="it never rests"), "Not settled."
    ),
)
BY_RANGES = {"by": "ranges", "lsn": Lsn(60), "missing": 2, "ranges": (RangeDifference(7, 2),)}
BY_COPY = {"by": "copy", "reason": "it has no key"}


class Shop:
    """A pipeline of four tables, whose workers answer requests as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *compared: ComparedTable) -> None:
        self.store = MemoryStore()
        self.store.update_table_replication_states([(n, Ready(Lsn(1))) for n in range(1, 5)])
        self.lease = self.store.acquire_lease("apply")
        self.lines: list[str] = []
        monkeypatch.setattr(repairs, "compare_tables", lambda *_: iter(compared or COMPARED))

    def answers(self, monkeypatch: pytest.MonkeyPatch, outcomes: dict[int, Any]) -> None:
        ask: Callable[..., Any] = request_repairs

        def request(store: Any, table_ids: list[int]) -> Any:
            requests = ask(store, table_ids)
            for table_id, request_id in requests.items():
                if table_id in outcomes:
                    outcome = RepairOutcome(request_id, **outcomes[table_id])
                    keep_outcome(store, table_id, outcome)
            return requests

        monkeypatch.setattr(repairs, "request_repairs", request)

    def repair(self, *, dry_run: bool = False, wait_s: float = 60.0) -> Repaired:
        @contextlib.contextmanager
        def get_store() -> Iterator[MemoryStore]:
            yield self.store

        parts: Any = SimpleNamespace(get_store=get_store)
        return repair(parts, None, dry_run=dry_run, wait_s=wait_s, tell=self.lines.append)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(monkeypatch)


def states(shop: Shop) -> list[str]:
    found = shop.store.get_table_replication_states()
    return [type(found[number]).__name__ for number in sorted(found)]


def test_a_dry_run_asks_for_nothing(shop: Shop) -> None:
    done = shop.repair(dry_run=True)

    assert states(shop) == ["Ready"] * 4
    assert [each.name for each in done.differing] == ["public.orders", "public.visits"]
    assert done.facts["repairs"].records[0].data["repaired by"] == ""


def test_each_table_that_differs_is_repaired_and_told_of(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.answers(monkeypatch, {1: BY_RANGES, 3: BY_COPY})
    done = shop.repair()

    assert states(shop) == ["Init", "Ready", "Init", "Ready"]
    orders, visits = (record.data for record in done.facts["repairs"].records)
    # What was replaced, and not what was found a moment before.
    assert (orders["repaired by"], orders["rows missing"], orders["ranges"]) == ("ranges", 2, "7")
    assert (visits["repaired by"], visits["why a copy"]) == ("copy", "it has no key")
    assert "public.visits: copied as a whole, since it has no key" in shop.lines
    # A table that never rests fails the run once the others are done.
    assert (done.failure or "").startswith("could not be settled: public.events")


def test_repairs_that_are_not_waited_for_are_named_and_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop = Shop(monkeypatch, COMPARED[0])
    done = shop.repair(wait_s=0)

    assert (done.left, done.failure) == (["public.orders"], None)
    assert states(shop)[0] == "Init"


def test_a_wait_that_takes_too_long_or_for_no_process_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop = Shop(monkeypatch, COMPARED[0])
    assert "took longer than" in (shop.repair(wait_s=0.01).failure or "")

    assert shop.lease is not None
    shop.lease.release()
    done = shop.repair()
    assert "no process runs the pipeline" in (done.failure or "")
    assert done.left == ["public.orders"]
