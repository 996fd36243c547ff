"""The repair job asks for repairs, waits for them, and tells what became of each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from etl_dagster.errors import InvalidState, StoreUnreachable
from etl_dagster.integrations.dagster.checks.comparisons import ComparedTable
from etl_dagster.integrations.dagster.jobs.repairs import Repaired, repair
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Errored, ManualRetry, Ready
from etl_dagster.runtime.comparing.comparison import Comparison
from etl_dagster.runtime.comparing.eligible import Eligible
from etl_dagster.runtime.comparing.left import why_left
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
        "public.events",
        4,
        Comparison("unsettled", reason="it never rests"),
        "Not settled.",
        InvalidState("unsettled: it never rests", solution="Again later."),
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
        self.fails: dict[int, Errored] = {}
        #: Whether its server is gone, or is so once a repair is waited for.
        self.is_lost = False
        self.is_lost_while_waiting = False

    def get_note(self, key: str) -> Mapping[str, Any] | None:
        if self.is_lost:
            raise StoreUnreachable("the server is gone")
        return super().get_note(key)

    def put_note(self, key: str, payload: Mapping[str, Any]) -> None:
        super().put_note(key, payload)
        if key == "repairs":
            for table_id, outcome in self.outcomes.items():
                if (request := payload.get(str(table_id))) is not None:
                    keep_outcome(self, table_id, RepairOutcome(request["id"], **outcome))

    def load_table_replication_states(self) -> int:
        self.is_lost = self.is_lost_while_waiting
        self.update_table_replication_states(list(self.fails.items()))
        return super().load_table_replication_states()


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
    # As the command ends with exit code 1.
    assert set(done.failures) == {"public.orders", "public.visits", "public.events"}


def test_each_table_that_differs_is_repaired_and_reported(shop: Shop) -> None:
    shop.answers({1: BY_RANGES, 3: BY_COPY})
    done = shop.repair()

    assert states(shop) == ["Init", "Ready", "Init", "Ready"]
    orders, visits = (record.data for record in done.facts["repairs"].records)
    # What was replaced, and not what was found a moment before.
    assert (orders["repaired by"], orders["rows missing"], orders["ranges"]) == ("ranges", 2, "7")
    assert (visits["repaired by"], visits["why a copy"]) == ("copy", "it has no key")
    assert "public.visits: copied as a whole, since it has no key" in shop.lines
    # A table that never rests fails the run once the others are done.
    assert str(done.failure) == (
        "not compared, or not repaired: 1 of 4 tables\n  public.events: unsettled: it never rests"
    )
    assert done.failure is not None
    assert done.failure.solution == "Again later."


def test_repairs_that_are_not_waited_for_are_named_and_do_not_fail_the_run() -> None:
    shop = Shop(COMPARED[0])
    done = shop.repair(wait_s=0)

    assert (done.left, done.failure) == (["public.orders"], None)
    assert states(shop)[0] == "Init"


def test_a_wait_that_takes_too_long_or_for_no_process_fails() -> None:
    shop = Shop(COMPARED[0])
    assert "took longer than" in str(shop.repair(wait_s=0.01).failure)

    assert shop.lease is not None
    shop.lease.release()
    done = shop.repair()
    assert "no process runs the pipeline" in str(done.failure)
    assert done.left == ["public.orders"]


def test_a_repair_that_fails_does_not_keep_the_run_from_waiting_for_the_others(shop: Shop) -> None:
    shop.answers({1: BY_RANGES})
    shop.store.fails[3] = Errored("the disk is full", "Free it.", ManualRetry())
    done = shop.repair()

    assert "public.orders" in done.outcomes
    assert "  public.visits: the repair failed: the disk is full" in str(done.failure)
    assert done.failure is not None
    assert "Free it." in done.failure.solution


@pytest.mark.parametrize(
    ("reason", "is_by_choice", "is_named", "is_left"),
    [
        ("it is not streamed now (init)", False, False, True),
        ("its mode is append", True, False, False),
        ("its mode is append", True, True, True),
    ],
)
def test_a_table_that_was_not_compared_fails_the_run_unless_its_settings_exclude_it(
    reason: str, is_by_choice: bool, is_named: bool, is_left: bool
) -> None:
    """A run that succeeds must not look as if it had compared the table."""
    table = Eligible("public.people", 2, None, reason, is_by_choice)
    left = why_left(table, None, is_named=is_named)
    shop = Shop(ComparedTable("public.people", 2, None, "Not compared.", left), COMPARED[0])
    shop.answers({1: BY_RANGES})
    done = shop.repair()

    assert list(done.failures) == ["public.people"] * is_left
    assert [each.name for each in done.not_compared] == ["public.people"]
    # What can be repaired is, in any case.
    assert done.outcomes
    if is_left:
        assert f"1 of 2 tables\n  public.people: not compared: {reason}" in str(done.failure)


def test_the_run_shows_why_a_table_has_no_result_and_nothing_behind_a_link() -> None:
    """Dagster shows a list as "[Show JSON]", and a table as it is."""
    by_choice = ComparedTable("public.log", 5, None, "Not compared: its mode is append.")
    shop = Shop(*COMPARED, by_choice)
    shop.answers({1: BY_RANGES})
    shop.store.fails[3] = Errored("the disk is full", "Free it.", ManualRetry())
    facts = shop.repair().facts

    assert {name: value for name, value in facts.items() if isinstance(value, int)} == {
        "tables": 5,
        "tables_equal": 1,
        "tables_differing": 2,
        "tables_without_result": 3,
    }
    assert not [name for name, value in facts.items() if isinstance(value, list | dict)]
    assert [tuple(each.data.values()) for each in facts["without_result"].records] == [
        ("public.events", "unsettled", "it never rests", "Again later."),
        ("public.log", "not compared", "its mode is append.", ""),
        ("public.visits", "not seen to end", "the repair failed: the disk is full", "Free it."),
    ]


def test_the_advice_names_the_tables_that_each_part_is_for(shop: Shop) -> None:
    shop.store.fails = {n: Errored("the disk is full", "Free it.", ManualRetry()) for n in (1, 3)}
    failure = shop.repair().failure

    assert failure is not None
    assert failure.solution == (
        "public.events: Again later.\npublic.orders, public.visits: Free it."
    )


def test_a_store_that_is_lost_during_the_wait_leaves_what_the_run_has_found(shop: Shop) -> None:
    shop.answers({1: BY_RANGES})
    shop.store.is_lost_while_waiting = True
    done = shop.repair()

    assert [each.name for each in done.differing] == done.left == ["public.orders", "public.visits"]
    assert "  public.visits: the server is gone" in str(done.failure)


def test_a_store_that_is_lost_before_a_repair_is_asked_for_fails_that_table(shop: Shop) -> None:
    shop.store.is_lost = True
    done = shop.repair()

    assert set(done.failures) == {"public.orders", "public.visits", "public.events"}
    assert states(shop) == ["Ready"] * 4
    without = [tuple(each.data.values())[:3] for each in done.facts["without_result"].records]
    assert without[1] == ("public.orders", "not requested", "the server is gone")


def test_the_log_of_the_repair_does_not_advise_to_run_the_repair() -> None:
    advice = "The rows differ.\n\nWhat to do: Run the pipeline's repair job."
    shop = Shop(ComparedTable("public.orders", 1, FOUND, advice))
    shop.answers({1: BY_RANGES})
    shop.repair()

    assert shop.lines[0] == "public.orders: The rows differ."
