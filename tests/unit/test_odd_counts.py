"""What copies bring that types can't hold is counted once, for the process that runs the stream."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyPlan
from etl_dagster.model.states import Ready
from etl_dagster.runtime.showing.metrics import Metrics
from etl_dagster.runtime.tables.odd_counts import CopyOddCounts, HandedOver, copied_odd
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    ORDERS,
    Transactions,
    Unheld,
    batch,
    delete,
    insert,
    order,
)

NAN = Unheld("NaN")
FIRST, SECOND = Lsn(100), Lsn(200)


class Counting(MemoryDestination):
    def count_rows(self) -> dict[str, int]:
        return {}

    def count_odd_values(self) -> dict[str, dict[str, int]]:
        return {}


def plan(replay_from: Lsn) -> CopyPlan:
    return CopyPlan(f"copy at {replay_from}", (), {}, replay_from, datetime.now(UTC))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_a_chunk_that_is_copied_once_more_counts_once(store: MemoryStore) -> None:
    for worker in (CopyOddCounts(store, MemoryDestination()) for _ in range(2)):
        worker.add_chunk(1, FIRST, 0, {"amount": 2})
        worker.add_chunk(1, FIRST, 1, {"amount": 1, "at": 1})
        worker.add_chunk(1, FIRST, 2, {})

    assert copied_odd(store, 1, plan(FIRST)) == {"amount": 3, "at": 1}


def test_values_streamed_before_the_hand_over_are_added_except_deleted_ones(
    store: MemoryStore,
) -> None:
    worker, stream = CopyOddCounts(store, MemoryDestination()), Transactions()
    worker.add_chunk(ORDERS.id, FIRST, 0, {"amount": 2})
    for number in (1, 2):
        events = batch(
            stream.commit(
                insert(ORDERS, **order(number, amount=NAN)),
                insert(ORDERS, **order(number + 10)),
                delete(ORDERS, id=9, amount=NAN),
            )
        )
        worker.add_stream(events, FIRST)

    assert copied_odd(store, ORDERS.id, plan(FIRST)) == {"amount": 4}


def test_a_new_copy_starts_counting_at_zero(store: MemoryStore) -> None:
    worker = CopyOddCounts(store, MemoryDestination())
    worker.add_chunk(1, FIRST, 0, {"amount": 2})
    assert copied_odd(store, 1, plan(SECOND)) == {}

    worker.add_chunk(1, SECOND, 0, {"at": 1})
    assert copied_odd(store, 1, plan(SECOND)) == {"at": 1}


def test_nothing_is_kept_for_a_destination_that_counts_by_itself(store: MemoryStore) -> None:
    CopyOddCounts(store, Counting()).add_chunk(1, FIRST, 0, {"amount": 2})

    assert copied_odd(store, 1, plan(FIRST)) == {}


def test_each_hand_over_is_looked_up_once(store: MemoryStore) -> None:
    CopyOddCounts(store, MemoryDestination()).add_chunk(1, FIRST, 0, {"amount": 2})
    for table_id in (1, 2):
        store.store_copy_plan(table_id, plan(FIRST))
    handed_over = HandedOver(store)
    states = {table_id: Ready(FIRST) for table_id in (1, 2)}

    assert handed_over.look(states) == {1: {"amount": 2}, 2: {}}
    assert handed_over.look(states) == {}
    assert handed_over.look({1: Ready(SECOND), 2: Ready(FIRST)}) == {1: {"amount": 2}}


def test_the_streams_count_ends_with_another_copy() -> None:
    metrics = Metrics()
    stream = Transactions(first_lsn=150)
    metrics.add(batch(stream.commit(insert(ORDERS, **order(1, amount=NAN)))))
    counts = metrics.table(ORDERS.id)

    metrics.copied(ORDERS.id, {}, FIRST)
    assert counts.odd_streamed == {"amount": 1}
    metrics.copied(ORDERS.id, {"amount": 7}, SECOND)
    assert (counts.odd_copied, counts.odd_streamed) == ({"amount": 7}, {})
