"""The repair job asks for repairs, waits for them, and tells what became of each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from etl_dagster.integrations.dagster.checks.comparisons import ComparedTable
from etl_dagster.integrations.dagster.jobs.repairs import Repaired, repair
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Ready
from etl_dagster.runtime.comparing.comparison import Comparison
from etl_dagster.runtime.repair_requests import (
    RangeDifference,
    RepairOutcome,
    keep_outcome,
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


class AnsweringStore(MemoryStore):
    """Has the outcome of a repair as soon as that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        #: By table.
        self.outcomes: dict[int, Any] = {}

    def put_note(self, key: str, payload: Mapping[str, Any]) -> None:
        super().put_note(key, payload)
        if key == "repairs":
            for table_id, outcome in self.outcomes.items():
                if (request := payload.get(str(table_id))) is not None:
                    keep_outcome(self, table_id, RepairOutcome(request["id"], **outcome))


class Shop:
    """A pipeline of four tables, whose workers answer requests as the test says."""

    def __init__(self, *compared: ComparedTable) -> None:
        self.store = AnsweringStore()
        self.compared = compared or COMPARED
        self.store.update_table_replication_states([(n, Ready(Lsn(1))) for n in range(1, 5)])
        self.lease = self.store.acquire_lease("apply")
        self.lines: list[str] = []

    def answers(self, outcomes: dict[int, Any]) -> None:
        self.store.outcomes = outcomes

    def repair(self, *, dry_run: bool = False, wait_s: float = 60.0) -> Repaired:
        @contextlib.contextmanager
        def get_store() -> Iterator[MemoryStore]:
            yield self.store

        parts: Any = SimpleNamespace(get_store=get_store)
        return repair(
            parts,
            None,
            dry_run=dry_run,
            wait_s=wait_s,
            tell=self.lines.append,
            compare=lambda *_: self.compared,
        )


@pytest.fixture
def shop() -> Shop:
    return Shop()


def states(shop: Shop) -> list[str]:
    found = shop.store.get_table_replication_states()
    return [type(found[number]).__name__ for number in sorted(found)]


def test_a_dry_run_asks_for_nothing(shop: Shop) -> None:
    done = shop.repair(dry_run=True)

    assert states(shop) == ["Ready"] * 4
    assert [each.name for each in done.differing] == ["public.orders", "public.visits"]
    assert done.facts["repairs"].records[0].data["repaired by"] == ""


def test_each_table_that_differs_is_repaired_and_told_of(shop: Shop) -> None:
    shop.answers({1: BY_RANGES, 3: BY_COPY})
    done = shop.repair()

    assert states(shop) == ["Init", "Ready", "Init", "Ready"]
    orders, visits = (record.data for record in done.facts["repairs"].records)
    # What was replaced, and not what was found a moment before.
    assert (orders["repaired by"], orders["rows missing"], orders["ranges"]) == ("ranges", 2, "7")
    assert (visits["repaired by"], visits["why a copy"]) == ("copy", "it has no key")
    assert "public.visits: copied as a whole, since it has no key" in shop.lines
    # A table that never rests fails the run once the others are done.
    assert (done.failure or "").startswith("could not be settled: public.events")


def test_repairs_that_are_not_waited_for_are_named_and_no_failure() -> None:
    shop = Shop(COMPARED[0])
    done = shop.repair(wait_s=0)

    assert (done.left, done.failure) == (["public.orders"], None)
    assert states(shop)[0] == "Init"


def test_a_wait_that_takes_too_long_or_for_no_process_fails() -> None:
    shop = Shop(COMPARED[0])
    assert "took longer than" in (shop.repair(wait_s=0.01).failure or "")

    assert shop.lease is not None
    shop.lease.release()
    done = shop.repair()
    assert "no process runs the pipeline" in (done.failure or "")
    assert done.left == ["public.orders"]


def test_tables_that_could_not_be_compared_are_named() -> None:
    """A run that succeeds must not look as if it had compared them."""
    found = ComparedTable("public.orders", 1, None, "Not compared: it is not streamed now (init).")
    done = Shop(found).repair()

    assert done.failure is None
    assert done.facts["not_compared"] == ["public.orders"]


def test_the_log_of_the_repair_does_not_advise_to_run_the_repair() -> None:
    advice = "The rows differ.\n\nWhat to do: Run the pipeline's repair job."
    shop = Shop(ComparedTable("public.orders", 1, FOUND, advice))
    shop.answers({1: BY_RANGES})
    shop.repair()

    assert shop.lines[0] == "public.orders: The rows differ."
