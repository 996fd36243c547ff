"""A destination that fails on purpose does so as planned, and else acts as the one it wraps."""

from __future__ import annotations

import doctest
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

import etl_dagster.testing.faulty
from etl_dagster.destinations.duckdb import DuckDBDestination
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import BatchTooLarge, DestinationUnreachable
from etl_dagster.model.destination import (
    Capabilities,
    CopiesManyTables,
    Destination,
    Interruptible,
    offered,
)
from etl_dagster.model.events import EventBatch, TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.many import copying_many
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing import FaultyDestination
from etl_dagster.testing.changes import ORDERS, Transactions, batch, end_of_copy, insert, order
from etl_dagster.testing.faulty import Call, Delay, Fault, Hang, LoseAnswer, Refuse, at_random


@pytest.fixture
def destination() -> FaultyDestination:
    return FaultyDestination(MemoryDestination())


def changes() -> EventBatch:
    return batch(Transactions().commit(insert(ORDERS, **order(1))))


def written(destination: FaultyDestination) -> int:
    return len(destination.inner.changelog)  # type: ignore[attr-defined]


def test_the_examples_of_the_docstring_hold() -> None:
    assert doctest.testmod(etl_dagster.testing.faulty).attempted
    assert doctest.testmod(etl_dagster.testing.faulty).failed == 0


def test_without_a_fault_everything_passes(destination: FaultyDestination) -> None:
    assert isinstance(destination, Destination)
    destination.startup(MemoryStore())
    destination.write_events(changes())

    assert written(destination) == 1
    assert destination.rows("public.orders") == [order(1)]
    assert destination.faults == []


def test_a_refused_call_writes_nothing(destination: FaultyDestination) -> None:
    destination.fail_next("write_events", Refuse(BatchTooLarge("one is too many")), after=1)
    destination.write_events(changes())
    with pytest.raises(BatchTooLarge, match="one is too many"):
        destination.write_events(changes())

    assert written(destination) == 1
    assert [(call.number, call.row_count) for call, _ in destination.faults] == [(1, 1)]
    assert destination.faults[0][0].table_ids == {ORDERS.id}


def test_a_call_whose_answer_is_lost_has_written_everything(
    destination: FaultyDestination,
) -> None:
    destination.fail_next("write_events", LoseAnswer())
    with pytest.raises(DestinationUnreachable, match="lost its answer"):
        destination.write_events(changes())

    assert written(destination) == 1


class Later:
    """Writes when the test says so."""

    name = "later"
    capabilities = Capabilities(offers=frozenset())

    def __init__(self) -> None:
        self.results: list[Future[None]] = []

    def startup(self, store: object) -> None: ...

    def drop_table_for_copy(self, schema: TableSchema) -> None: ...

    def shutdown(self) -> None: ...

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> Future[None]:
        return self._later()

    def write_events(self, events: EventBatch) -> Future[None]:
        return self._later()

    def _later(self) -> Future[None]:
        self.results.append(Future())
        return self.results[-1]


@pytest.mark.parametrize("failure", [None, BatchTooLarge("its own")])
def test_an_answer_is_lost_only_once_the_write_is_durable(
    failure: Exception | None,
) -> None:
    inner = Later()
    destination = FaultyDestination(inner)
    destination.fail_next("write_table_rows", LoseAnswer())
    result = destination.write_table_rows(ORDERS, end_of_copy("copy-1", 0))
    assert result is not None
    assert not result.done()
    if failure is None:
        inner.results[0].set_result(None)
    else:
        inner.results[0].set_exception(failure)

    assert isinstance(result.exception(0), type(failure or DestinationUnreachable("")))


def test_a_cancelled_write_whose_answer_is_lost_ends_with_the_lost_answer() -> None:
    """Its caller would wait forever otherwise: a cancelled future has no exception to pass on."""
    inner = Later()
    destination = FaultyDestination(inner)
    destination.fail_next("write_table_rows", LoseAnswer())
    result = destination.write_table_rows(ORDERS, end_of_copy("copy-1", 0))
    assert result is not None
    inner.results[0].cancel()

    assert isinstance(result.exception(0), DestinationUnreachable)


def hanging(destination: FaultyDestination) -> tuple[threading.Thread, list[BaseException]]:
    destination.fail_next("write_events", Hang())
    failures: list[BaseException] = []

    def write() -> None:
        try:
            destination.write_events(changes())
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    while not destination.faults:
        thread.join(0.01)
    assert thread.is_alive()
    return thread, failures


def test_a_call_that_hangs_is_carried_out_when_it_is_released(
    destination: FaultyDestination,
) -> None:
    thread, failures = hanging(destination)
    destination.release()
    thread.join(30)

    assert not thread.is_alive()
    assert not failures
    assert written(destination) == 1


@pytest.mark.parametrize("end", ["interrupt", "shutdown"])
def test_a_call_that_hangs_fails_when_the_pipeline_ends(
    destination: FaultyDestination, end: str
) -> None:
    thread, failures = hanging(destination)
    getattr(destination, end)()
    thread.join(30)

    assert not thread.is_alive()
    assert [type(failure) for failure in failures] == [DestinationUnreachable]
    assert written(destination) == 0


def test_a_random_plan_is_the_same_for_the_same_seed_in_any_order() -> None:
    calls = [
        Call(method, number, row_count=1)
        for method in ("write_events", "write_table_rows")
        for number in range(200)
    ]

    def chosen(seed: int, order: Sequence[Call]) -> dict[Call, Fault | None]:
        plan = at_random(seed, refuse=0.1, lose_answer=0.1, delay=0.1)
        return {call: plan(call) for call in order}

    first = chosen(7, calls)
    assert {type(fault) for fault in first.values()} == {Refuse, LoseAnswer, Delay, type(None)}
    assert chosen(7, calls[::-1]) == first
    assert chosen(8, calls) != first


def test_a_random_plan_spares_the_start() -> None:
    plan = at_random(1, refuse=1, lose_answer=0, delay=0)

    assert plan(Call("startup", 0)) is None
    assert plan(Call("write_events", 0, row_count=0)) is None
    assert plan(Call("write_events", 1, row_count=1)) == Refuse()


def test_it_takes_many_copies_at_once_if_the_wrapped_destination_does(
    destination: FaultyDestination, tmp_path: Path
) -> None:
    assert copying_many(destination) is None
    assert offered(destination, CopiesManyTables) is None
    many = FaultyDestination(DuckDBDestination(tmp_path / "x.duckdb"))
    assert copying_many(many) is many
    many.fail_next("write_whole_tables", Refuse())
    with pytest.raises(DestinationUnreachable):
        many.write_whole_tables([])


def test_it_declares_what_the_wrapped_destination_declares_and_that_it_can_be_interrupted() -> None:
    assert FaultyDestination(Later()).capabilities.offers == {Interruptible}
    assert FaultyDestination(MemoryDestination()).capabilities.offers is None
