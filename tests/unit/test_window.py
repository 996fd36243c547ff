"""Writes in flight: of different tables, within bounds, and progress only past what is durable."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import (
    BatchTooLarge,
    DestinationError,
    DestinationUnreachable,
    Superseded,
    TableWriteFailed,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch, InsertEvent, TableChanges
from etl_dagster.model.schema import TableId
from etl_dagster.runtime.streaming.inbox import Inbox
from etl_dagster.runtime.streaming.window import BegunWrite, Window
from etl_dagster.table_name import TableName
from etl_dagster.testing.changes import ORDERS as ORDERS_SCHEMA
from etl_dagster.testing.changes import VISITS as VISITS_SCHEMA
from etl_dagster.testing.changes import Transactions, batch, insert, order
from tests.support.deliveries import FROM_THE_START, ITEMS, ORDERS, PAYMENTS, VISITS, Side
from tests.support.waiting import PATIENCE_S, wait_until


class Call:
    """One write that the destination was asked for."""

    def __init__(self, destination: MemoryDestination, events: EventBatch) -> None:
        self._destination = destination
        self.events = events
        self.future: Future[None] = Future()

    @property
    def tables(self) -> list[TableId]:
        return sorted(self.events.tables)

    def complete(self) -> None:
        MemoryDestination.write_events(self._destination, self.events)
        self.future.set_result(None)

    def fail(self, error: Exception) -> None:
        self.future.set_exception(error)


class Scripted(MemoryDestination):
    """Takes every batch at once, and is done with it when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def write_events(self, events: EventBatch) -> Any:
        self.calls.append(Call(self, events))
        return self.calls[-1].future

    def call(self, number: int) -> Call:
        """The write with this number, from 0 on, once it has begun."""
        wait_until(lambda: len(self.calls) > number)
        return self.calls[number]


class Noticed(dict[TableId, Lsn]):
    """From where on tables are applied; records when the delivery takes the batch it is for."""

    def __init__(self, apply_from: Mapping[TableId, Lsn]) -> None:
        super().__init__(apply_from)
        self.is_taken = threading.Event()

    def items(self) -> Any:
        self.is_taken.set()
        return super().items()


THREE = {"max_in_flight": 3, "max_queued": 10}


@pytest.fixture
def side() -> Iterator[Side[Scripted]]:
    side = Side(Scripted(), THREE)
    side.delivery.start()
    yield side
    side.stop.set()
    side.delivery.finish()


def begin(side: Side[Scripted], *tables: TableId) -> list[Call]:
    """Have one batch for each of the tables in flight."""
    first = len(side.destination.calls)
    for table_id in tables:
        side.delivery.put(side.transaction((table_id, 1)), FROM_THE_START)
    return [side.destination.call(first + number) for number in range(len(tables))]


# -- in order ------------------------------------------------------------------------------------


def test_progress_passes_only_what_is_durable_from_the_beginning(side: Side[Scripted]) -> None:
    first, second, third = begin(side, ORDERS, VISITS, ITEMS)

    third.complete()
    second.complete()
    assert (side.progress, side.durable, side.delivery.is_idle) == (None, [], False)
    first.complete()
    side.delivery.flush()

    assert side.durable == [Lsn(1150), Lsn(1250), Lsn(1350)]
    assert side.progress == Lsn(1350)


def test_a_batch_waits_while_its_table_is_being_written(side: Side[Scripted]) -> None:
    [first] = begin(side, ORDERS)
    side.delivery.put(side.transaction((ORDERS, 2), (VISITS, 2)), FROM_THE_START)
    first.complete()
    second = side.destination.call(1)

    assert side.ids(ORDERS) == [1]
    second.complete()
    side.delivery.flush()
    assert (side.ids(ORDERS), side.ids(VISITS)) == ([1, 2], [2])


def test_the_oldest_commit_that_is_not_durable_is_that_of_the_oldest_write(
    side: Side[Scripted],
) -> None:
    first, second = begin(side, ORDERS, VISITS)
    second.complete()
    assert side.delivery.oldest_commit_time_us is not None

    first.complete()
    side.delivery.flush()

    assert side.delivery.oldest_commit_time_us is None


def test_one_write_at_a_time_is_the_default() -> None:
    side = Side(Scripted(), {"max_queued": 10})
    side.delivery.start()
    [first] = begin(side, ORDERS)
    side.delivery.put(side.transaction((VISITS, 1)), FROM_THE_START)
    first.complete()
    second = side.destination.call(1)

    assert side.progress == Lsn(1150), "the second began before the first was dealt with"
    second.complete()
    side.delivery.flush()
    side.delivery.finish()


# -- failures ------------------------------------------------------------------------------------


def test_a_write_that_fails_in_the_middle_is_retried_in_its_turn(side: Side[Scripted]) -> None:
    first, second, third = begin(side, ORDERS, VISITS, ITEMS)

    second.fail(DestinationUnreachable("away"))
    third.complete()
    first.complete()
    again = side.destination.call(3)
    assert again.tables == [VISITS]
    assert side.progress == Lsn(1150)
    again.complete()
    side.delivery.flush()

    assert (side.ids(VISITS), side.ids(ITEMS)) == ([1], [1])
    assert side.progress == Lsn(1350)


def test_a_table_that_refuses_is_left_out_of_its_own_write_only(side: Side[Scripted]) -> None:
    [first] = begin(side, ORDERS)
    side.delivery.put(side.transaction((VISITS, 1), (ITEMS, 1)), FROM_THE_START)
    second = side.destination.call(1)
    [third] = begin(side, PAYMENTS)

    second.fail(TableWriteFailed(VISITS, "no visits today"))
    for call in (third, first):
        call.complete()
    again = side.destination.call(3)
    assert again.tables == [ITEMS]
    again.complete()
    side.delivery.put(side.transaction((VISITS, 2), (ITEMS, 2)), FROM_THE_START)
    last = side.destination.call(4)
    assert last.tables == [ITEMS]
    last.complete()
    side.delivery.flush()

    assert side.failed == [(VISITS, "no visits today")]
    assert (side.ids(ORDERS), side.ids(ITEMS), side.ids(PAYMENTS)) == ([1], [1, 2], [1])
    assert side.progress == Lsn(1450)


def test_a_write_that_is_too_large_is_halved_in_its_turn(side: Side[Scripted]) -> None:
    [first] = begin(side, ORDERS)
    side.delivery.put(side.transaction((VISITS, 1), (VISITS, 2)), FROM_THE_START)
    second = side.destination.call(1)

    second.fail(BatchTooLarge("no memory is left"))
    first.complete()
    for number in (2, 3):
        half = side.destination.call(number)
        assert half.events.row_count == 1
        half.complete()
    side.delivery.flush()

    assert side.ids(VISITS) == [1, 2]
    assert side.progress == Lsn(1250)


def test_what_fails_for_good_ends_the_delivery_once_the_rest_is_over(side: Side[Scripted]) -> None:
    """The stream that comes next writes the same tables: it must not be overtaken."""
    first, second, third = begin(side, ORDERS, VISITS, ITEMS)

    second.fail(DestinationError("never again"))
    first.complete()
    with pytest.raises(DestinationError, match="never again"):
        side.delivery.flush()
    assert side.delivery.is_running
    third.complete()
    side.delivery.finish()

    assert side.progress == Lsn(1150)


def test_a_superseded_process_does_not_wait_for_its_oldest_write(
    side: Side[Scripted],
) -> None:
    first, _, third = begin(side, ORDERS, VISITS, ITEMS)

    third.fail(Superseded("epoch 1 was followed by epoch 2"))
    with pytest.raises(Superseded):
        side.delivery.flush()

    assert not first.future.done()
    assert side.progress is None


def test_a_failure_of_an_earlier_copy_does_not_count_against_the_current_one(
    side: Side[Scripted],
) -> None:
    [before] = begin(side, ORDERS)
    apply_from = Noticed(FROM_THE_START | {ORDERS: Lsn(1200)})
    side.delivery.put(side.transaction((ORDERS, 2)), apply_from)
    assert apply_from.is_taken.wait(PATIENCE_S)
    before.fail(TableWriteFailed(ORDERS, "no orders today"))

    since = side.destination.call(1)
    since.complete()
    side.delivery.flush()

    assert side.ids(ORDERS) == [2]


class Moody(MemoryDestination):
    """Answers from several threads, in any order; a part of the writes fails once."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._pool = ThreadPoolExecutor(4)
        self._choosing = threading.Lock()
        self._failed: set[int] = set()
        self.outcomes: Counter[str] = Counter()

    def write_events(self, events: EventBatch) -> Any:
        steps = [step for steps in events.tables.values() for step in steps]
        first = min(int(s.commit_lsns[0]) for s in steps if isinstance(s, TableChanges))
        with self._choosing:
            outcome = self._random.choice(("done", "before", "after", "too large"))
            if first in self._failed:
                outcome = "done"
            elif outcome != "done":
                self._failed.add(first)
            self.outcomes[outcome] += 1
        return self._pool.submit(self._write, events, outcome)

    def _write(self, events: EventBatch, outcome: str) -> None:
        if outcome == "too large":
            raise BatchTooLarge("no memory is left")
        if outcome != "before":
            super().write_events(events)
        if outcome != "done":
            raise DestinationUnreachable("away")

    def shutdown(self) -> None:
        self._pool.shutdown()


@pytest.mark.parametrize("seed", range(3))
def test_every_row_arrives_once_whatever_happens_to_each_write(seed: int) -> None:
    """A later write of a table that got ahead would have an earlier one skipped when it comes."""
    random = Random(seed)
    destination = Moody(Random(seed + 100))
    side = Side(destination, {"max_in_flight": 3, "max_queued": 10})
    side.delivery.start()
    sent: dict[TableId, list[int]] = {table_id: [] for table_id in FROM_THE_START}
    for number in range(150):
        tables = random.sample(sorted(sent), random.choice((1, 1, 1, 2)))
        side.delivery.put(side.transaction(*((t, number) for t in tables)), FROM_THE_START)
        for table_id in tables:
            sent[table_id].append(number)
    side.delivery.flush()
    side.delivery.finish()
    destination.shutdown()

    arrived: dict[TableId, list[int]] = {table_id: [] for table_id in sent}
    for event in destination.changelog:
        assert isinstance(event, InsertEvent)
        arrived[event.schema.id].append(event.row["id"])
    assert arrived == sent
    assert side.durable == [Lsn(1150 + 100 * number) for number in range(150)]
    assert destination.outcomes.keys() == {"done", "before", "after", "too large"}


# -- a stop --------------------------------------------------------------------------------------


def test_a_stop_leaves_what_is_in_flight_and_keeps_progress_of_what_is_durable(
    side: Side[Scripted],
) -> None:
    first, _, third = begin(side, ORDERS, VISITS, ITEMS)
    first.complete()
    third.complete()
    wait_until(lambda: side.progress == Lsn(1150))

    side.stop.set()
    side.delivery.finish()

    side.delivery.raise_failure()
    assert not side.delivery.is_running
    assert side.progress == Lsn(1150)


# -- names ---------------------------------------------------------------------------------------


class OneRename:
    """A table has a new name, which the stream takes over once it has passed an LSN."""

    def __init__(self, table_id: TableId, lsn: Lsn) -> None:
        self._lsn = lsn
        self._due = {table_id: TableName("public", "renamed")}

    def take(self, reached: Lsn) -> Mapping[TableId, TableName]:
        return self._due if reached >= self._lsn else {}

    def done(self, taken: Mapping[TableId, TableName]) -> None:
        self._due = {}

    def described(self, table_id: TableId, name: TableName) -> None: ...


def test_a_rename_is_written_when_nothing_else_is_in_flight() -> None:
    side = Side(Scripted(), THREE, OneRename(VISITS, Lsn(1150)))
    side.delivery.start()
    first, second = begin(side, ORDERS, VISITS)
    first.complete()
    wait_until(lambda: side.progress == Lsn(1150))
    apply_from = Noticed(FROM_THE_START)
    side.delivery.put(side.transaction((ITEMS, 1)), apply_from)
    wait_until(lambda: apply_from.is_taken.is_set() or len(side.destination.calls) > 2)
    assert len(side.destination.calls) == 2
    second.complete()
    side.destination.call(2).complete()
    side.destination.call(3).complete()
    side.delivery.flush()
    side.delivery.finish()

    assert [call.tables for call in side.destination.calls] == [
        [ORDERS],
        [VISITS],
        [VISITS],
        [ITEMS],
    ]
    assert side.destination.rows("public.renamed") == [{"id": 1}]


# -- what fits -----------------------------------------------------------------------------------


def orders(count: int = 1) -> EventBatch:
    return batch(Transactions().commit(*(insert(ORDERS_SCHEMA, **order(n)) for n in range(count))))


def visits() -> EventBatch:
    return batch(Transactions().commit(insert(VISITS_SCHEMA, page="/", at=1)))


def test_a_window_has_room_for_other_tables_only() -> None:
    window = Window(3, 1024**2)
    window.add(BegunWrite(orders(), begun=Future()))

    assert window.has_room_for(visits())
    assert not window.has_room_for(orders())


def test_a_window_holds_no_more_writes_than_its_limit() -> None:
    window = Window(2, 1024**2)
    window.add(BegunWrite(orders(), begun=Future()))
    assert not window.is_full
    window.add(BegunWrite(visits(), begun=Future()))

    assert window.is_full
    assert not window.has_room_for(batch([]))


def test_the_rows_of_all_writes_stay_within_the_bytes() -> None:
    large, small = orders(100), visits()
    window = Window(9, large.row_bytes + small.row_bytes - 1)
    assert window.has_room_for(large), "one is written however large it is"
    window.add(BegunWrite(large, begun=Future()))
    assert not window.has_room_for(small)
    window.remove_oldest()

    window = Window(9, large.row_bytes + small.row_bytes)
    window.add(BegunWrite(large, begun=Future()))
    assert window.has_room_for(small)


def test_nothing_more_begins_before_a_failure_is_dealt_with() -> None:
    failed: Future[None] = Future()
    failed.set_exception(DestinationUnreachable("away"))
    window = Window(3, 1024**2)
    window.add(BegunWrite(orders(), begun=failed))

    assert not window.has_room_for(visits())


def test_a_reader_of_an_inbox_can_be_woken() -> None:
    inbox: Inbox[int] = Inbox(1)
    inbox.wake()
    assert inbox.get(60) is None

    assert inbox.put(1, 0)
    assert not inbox.put(2, 0)
    assert inbox.get(60) == 1
    assert not inbox.wait_finished(0)
    inbox.done()
    assert inbox.wait_finished(0)


def test_an_inbox_lets_the_next_item_in_as_soon_as_there_is_room() -> None:
    inbox: Inbox[int] = Inbox(1)
    inbox.put(1, 0)
    thread = threading.Thread(target=lambda: inbox.put(2, 60))
    thread.start()

    assert [inbox.get(60), inbox.get(60)] == [1, 2]
    thread.join()
