"""From a batch to durable: retries, tables left out, progress after durability."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from random import Random
from typing import Any

import pytest

from etl_dagster.config import RetryConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import (
    BatchTooLarge,
    DestinationError,
    DestinationUnreachable,
    EtlError,
    RowsOutdated,
    TableWriteFailed,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch, InsertEvent, TableRows
from etl_dagster.model.schema import ColumnSchema, TableId, TableSchema
from etl_dagster.model.stores import ApplyWorker
from etl_dagster.protocol.batch import POSTGRES_EPOCH_US, RawBatch
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.delivery import Delivery, Stopped
from etl_dagster.runtime.halving import halves
from etl_dagster.runtime.schemas import SchemaTracker, destination_metadata
from etl_dagster.source.columns import TableToday
from etl_dagster.source.types import TypeCatalog
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import batch
from etl_dagster.testing.random_changes import RandomSource, random_transactions
from tests.unit import wire

ORDERS, VISITS = 1, 2
FROM_THE_START = {ORDERS: Lsn(0), VISITS: Lsn(0)}


def schema(table_id: TableId) -> TableSchema:
    column = ColumnSchema("id", 23, primary_key_ordinal=1, is_identity=True, base_type_oid=23)
    return TableSchema(table_id, "public", f"table_{table_id}", (column,))


class Flaky(MemoryDestination):
    """Raises what it is told to, then works."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []
        self.written = 0
        self.durable: Future[None] | None = None

    def write_events(self, events: EventBatch) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        super().write_events(events)
        self.written += 1
        return self.durable


class Small(Flaky):
    """Takes no more than some changes in one piece, and some values not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 3
        self.refused: set[int] = set()
        self.error: Callable[[], Exception] = lambda: BatchTooLarge("no memory is left")
        self.sizes: list[int] = []

    def write_events(self, events: EventBatch) -> Any:
        self.sizes.append(events.row_count)
        ids = {event.row["id"] for event in events if isinstance(event, InsertEvent)}
        if events.row_count > self.limit or ids & self.refused:
            raise self.error()
        return super().write_events(events)


class Side:
    """A delivery with a store, a destination, and a stream made by hand."""

    def __init__(self, destination: Flaky | None = None) -> None:
        self.store = MemoryStore()
        self.destination = destination or Flaky()
        self.stop = threading.Event()
        self.durable: list[Lsn | None] = []
        self.failed: list[tuple[TableId, str]] = []
        self.outdated: list[tuple[TableId, str]] = []
        self._session = ReplicationSession()
        self._lsn = 1000
        for table_id in FROM_THE_START:
            self.store.store_table_schema(schema(table_id))
            self.store.store_destination_table_metadata(
                table_id, destination_metadata(schema(table_id), "applied")
            )
            self.destination.write_table_rows(schema(table_id), TableRows("copy"))
        self.delivery = Delivery(
            self.destination,
            self.store,
            ApplyWorker(),
            SchemaTracker(
                self.store,
                lambda table_id: TableToday(schema(table_id)),
                lambda oids: TypeCatalog({}),
            ),
            RetryConfig(initial_delay_ms=1, max_delay_ms=2, max_attempts=3),
            stop=self.stop,
            on_durable=lambda lsn, events: self.durable.append(lsn),
            on_table_error=self._table_failed,
            on_outdated=lambda table_id, reason: self.outdated.append((table_id, reason)),
            name="delivery under test",
        )

    def _table_failed(self, table_id: TableId, error: EtlError) -> None:
        self.failed.append((table_id, error.reason))

    def transaction(self, *rows: tuple[TableId, int]) -> RawBatch:
        self._lsn += 100
        messages = [wire.begin(self._lsn)]
        for table_id in {table_id for table_id, _ in rows}:
            column = RelationColumn("id", 23, -1, True)
            messages.append(
                wire.relation(Relation(table_id, "public", f"table_{table_id}", "d", (column,)))
            )
        messages += [wire.insert(table_id, [str(value)]) for table_id, value in rows]
        messages.append(wire.commit(self._lsn, self._lsn + 50))
        for message in messages:
            self._session.feed(wire.xlog_data(message))
        return self._session.take_batch()

    def ids(self, table_id: TableId) -> list[int]:
        return [row["id"] for row in self.destination.rows(f"public.table_{table_id}")]

    @property
    def progress(self) -> Lsn | None:
        return self.store.get_replication_progress(ApplyWorker())


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    side.delivery.start()
    yield side
    side.stop.set()
    side.delivery.finish()


def test_batches_are_written_in_order_and_progress_follows(side: Side) -> None:
    side.delivery.put(side.transaction((ORDERS, 1), (VISITS, 5)), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 2)), FROM_THE_START)
    side.delivery.flush()

    assert (side.ids(ORDERS), side.ids(VISITS)) == ([1, 2], [5])
    assert side.durable == [Lsn(1150), Lsn(1250)]
    assert side.progress == Lsn(1250)


def test_progress_waits_until_the_destination_says_durable(side: Side) -> None:
    side.destination.durable = Future()
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    while not side.destination.written:
        side.stop.wait(0.001)
    assert side.progress is None

    side.destination.durable.set_result(None)
    side.delivery.flush()

    assert side.progress == Lsn(1150)


def test_a_write_that_returns_something_else_is_not_taken_for_durable(side: Side) -> None:
    """Such as the coroutine of an ``async def``, which nobody runs."""
    side.destination.durable = "done"  # type: ignore[assignment]
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)

    with pytest.raises(DestinationError, match="returned a str"):
        side.delivery.flush()
    assert side.progress is None


def test_a_stop_while_a_write_is_waited_for_is_no_failure_of_it(side: Side) -> None:
    """It isn't counted among the tries, of which it might be the last."""
    side.destination.failures = [OSError("odd")] * 3
    side.destination.durable = Future()  # never done
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    while not side.destination.written:
        side.stop.wait(0.001)
    side.stop.set()
    side.delivery.finish()

    side.delivery.raise_failure()


def test_the_oldest_commit_that_is_not_durable_is_known(side: Side) -> None:
    side.destination.durable = Future()
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 2)), FROM_THE_START)
    # The stream made by hand commits at the beginning of Postgres' time.
    assert side.delivery.oldest_commit_time_us == POSTGRES_EPOCH_US

    side.destination.durable.set_result(None)
    side.delivery.flush()

    assert side.delivery.oldest_commit_time_us is None


def test_a_write_that_waiting_may_cure_is_tried_again(side: Side) -> None:
    side.destination.failures = [DestinationUnreachable("away"), OSError("odd")]
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    side.delivery.flush()

    assert side.ids(ORDERS) == [1]
    assert side.progress == Lsn(1150)


@pytest.mark.parametrize(
    ("failures", "kind", "match"),
    [
        ([DestinationError("never again")], DestinationError, "never again"),
        ([DestinationUnreachable("away")] * 9, DestinationUnreachable, "away"),
        ([OSError("a value of a row")] * 9, DestinationError, "failed 3 times: OSError"),
    ],
)
def test_a_write_that_fails_for_good_ends_the_delivery_without_progress(
    side: Side, failures: list[Exception], kind: type[Exception], match: str
) -> None:
    side.destination.failures = list(failures)
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    with pytest.raises(kind, match=match):
        side.delivery.flush()
    assert side.progress is None


def test_a_table_that_fails_is_left_out_and_the_others_go_on(side: Side) -> None:
    side.destination.failures = [TableWriteFailed(ORDERS, "no orders today")]
    side.delivery.put(side.transaction((ORDERS, 1), (VISITS, 5)), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 2), (VISITS, 6)), FROM_THE_START)
    side.delivery.flush()

    assert (side.ids(ORDERS), side.ids(VISITS)) == ([], [5, 6])
    assert side.failed == [(ORDERS, "no orders today")]
    assert side.progress == Lsn(1250)


def test_a_table_whose_rows_the_destination_cannot_bring_up_to_date_is_copied_again(
    side: Side,
) -> None:
    side.destination.failures = [RowsOutdated(ORDERS, "it has another key")]
    side.delivery.put(side.transaction((ORDERS, 1), (VISITS, 5)), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 2)), FROM_THE_START | {ORDERS: Lsn(1200)})
    side.delivery.flush()

    assert (side.ids(ORDERS), side.ids(VISITS)) == ([2], [5])
    assert (side.failed, side.outdated) == ([], [(ORDERS, "it has another key")])


def test_a_table_that_was_left_out_is_written_again_after_its_next_copy(side: Side) -> None:
    side.destination.failures = [TableWriteFailed(ORDERS, "no orders today")]
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 2)), FROM_THE_START | {ORDERS: Lsn(1200)})
    side.delivery.flush()

    assert side.ids(ORDERS) == [2]


def test_transactions_before_a_tables_lsn_are_somebody_elses(side: Side) -> None:
    first, second = side.transaction((ORDERS, 1)), side.transaction((ORDERS, 2))
    side.delivery.put(first, {ORDERS: Lsn(1200)})
    side.delivery.put(second, {ORDERS: Lsn(1200)})
    side.delivery.flush()

    assert side.ids(ORDERS) == [2]
    assert side.progress == Lsn(1250)


def test_a_full_queue_holds_the_reader_up_until_it_is_told_to_stop(side: Side) -> None:
    side.destination.durable = Future()  # never done
    batches: Callable[[], RawBatch] = lambda: side.transaction((ORDERS, 1))  # noqa: E731
    for _ in range(3):  # one being written, two waiting
        side.delivery.put(batches(), FROM_THE_START)
    timer = threading.Timer(0.05, side.stop.set)
    timer.start()
    with pytest.raises(Stopped):
        side.delivery.put(batches(), FROM_THE_START)


# -- batches that are too large ------------------------------------------------------------------


@pytest.fixture
def small() -> Iterator[tuple[Side, Small]]:
    destination = Small()
    side = Side(destination)
    side.delivery.start()
    yield side, destination
    side.stop.set()
    side.delivery.finish()


@pytest.mark.parametrize("error", [lambda: BatchTooLarge("no memory is left"), MemoryError])
def test_a_batch_that_is_too_large_is_halved_until_it_fits(
    small: tuple[Side, Small], error: Callable[[], Exception]
) -> None:
    side, destination = small
    destination.error = error
    rows = [(ORDERS, number) for number in range(5)] + [(VISITS, number) for number in range(6)]
    side.delivery.put(side.transaction(*rows), FROM_THE_START)
    side.delivery.flush()

    assert (side.ids(ORDERS), side.ids(VISITS)) == ([*range(5)], [*range(6)])
    assert (side.failed, side.progress) == ([], Lsn(1150))
    assert side.durable == [Lsn(1150)]


def test_a_single_change_that_is_too_large_stops_its_table_only(
    small: tuple[Side, Small],
) -> None:
    side, destination = small
    destination.refused = {7}
    rows = [(ORDERS, 1), (VISITS, 1), (ORDERS, 7), (VISITS, 2), (ORDERS, 2)]
    side.delivery.put(side.transaction(*rows), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 3), (VISITS, 3)), FROM_THE_START)
    side.delivery.flush()

    assert (side.ids(ORDERS), side.ids(VISITS)) == ([1], [1, 2, 3])
    assert side.failed == [(ORDERS, "one change alone is too large: no memory is left")]
    assert side.progress == Lsn(1250)


def test_what_was_refused_once_is_cut_before_it_is_sent_until_larger_pieces_succeed(
    small: tuple[Side, Small],
) -> None:
    side, destination = small
    rows = [(ORDERS, number) for number in range(6)]
    side.delivery.put(side.transaction(*rows), FROM_THE_START)
    side.delivery.flush()
    assert destination.sizes == [6, 3, 3]

    destination.limit = 100
    for first in range(10, 100, 10):
        rows = [(ORDERS, first + number) for number in range(6)]
        side.delivery.put(side.transaction(*rows), FROM_THE_START)
    side.delivery.flush()

    assert destination.sizes[3:5] == [3, 3]
    assert destination.sizes[-1] == 6


def test_halves_do_the_same_as_the_whole() -> None:
    """Cut down to single changes, across tables, truncates and changes of schema."""
    source = RandomSource()
    source.run(random_transactions(Random(7)))
    whole = batch(source.stream.changes)
    pieces = [whole]
    while any(halves(piece) for piece in pieces):
        pieces = [half for piece in pieces for half in halves(piece) or (piece,)]

    assert [event for piece in pieces for event in piece] == list(whole)
    assert len(pieces) == len(source.stream.changes)
    ends = [piece.commit_end_lsn for piece in pieces if piece.commit_end_lsn is not None]
    assert ends == sorted(ends)
    assert ends[-1] == whole.commit_end_lsn
