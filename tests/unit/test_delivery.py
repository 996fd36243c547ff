"""From a batch to durable: retries, tables left out, progress after durability."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from random import Random
from typing import Any

import pytest

from etl_dagster.errors import (
    BatchTooLarge,
    DestinationError,
    DestinationUnreachable,
    RowsOutdated,
    SourceRestored,
    TableWriteFailed,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch, InsertEvent, TransactionMark
from etl_dagster.protocol.batch import POSTGRES_EPOCH_US, RawBatch
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.streaming.halving import halves
from etl_dagster.testing.changes import batch
from etl_dagster.testing.random_changes import RandomSource, random_transactions
from tests.support.deliveries import FROM_THE_START, ORDERS, VISITS, Flaky, Side
from tests.support.waiting import wait_until


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


@pytest.fixture
def side() -> Iterator[Side[Flaky]]:
    side = Side(Flaky())
    side.delivery.start()
    yield side
    side.stop.set()
    side.delivery.finish()


def test_batches_are_written_in_order_and_progress_follows(side: Side[Flaky]) -> None:
    side.delivery.put(side.transaction((ORDERS, 1), (VISITS, 5)), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 2)), FROM_THE_START)
    side.delivery.flush()

    assert (side.ids(ORDERS), side.ids(VISITS)) == ([1, 2], [5])
    assert side.durable == [Lsn(1150), Lsn(1250)]
    assert side.progress == Lsn(1250)


def test_what_a_batch_did_is_reported_before_its_progress_is_stored(side: Side[Flaky]) -> None:
    for number in (1, 2):
        side.delivery.put(side.transaction((ORDERS, number)), FROM_THE_START)
        side.delivery.flush()

    assert side.progress_when_written == [None, Lsn(1150)]


def test_progress_waits_until_the_destination_says_durable(side: Side[Flaky]) -> None:
    side.destination.durable = Future()
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    wait_until(lambda: bool(side.destination.written))
    assert side.progress is None

    side.destination.durable.set_result(None)
    side.delivery.flush()

    assert side.progress == Lsn(1150)


def test_a_write_that_returns_something_else_is_not_taken_for_durable(side: Side[Flaky]) -> None:
    """Such as the coroutine of an ``async def``, which is not run."""
    side.destination.durable = "done"  # type: ignore[assignment]
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)

    with pytest.raises(DestinationError, match="returned a str"):
        side.delivery.flush()
    assert side.progress is None


def test_a_stop_while_waiting_for_a_write_does_not_fail_the_write(side: Side[Flaky]) -> None:
    """It isn't counted as a try; it might be the last one."""
    side.destination.failures = [OSError("odd")] * 3
    side.destination.durable = Future()  # never done
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    wait_until(lambda: bool(side.destination.written))
    side.stop.set()
    side.delivery.finish()

    side.delivery.raise_failure()


def test_the_oldest_commit_that_is_not_durable_is_known(side: Side[Flaky]) -> None:
    side.destination.durable = Future()
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 2)), FROM_THE_START)
    # The stream made by hand commits at the beginning of Postgres' time.
    assert side.delivery.oldest_commit_time_us == POSTGRES_EPOCH_US

    side.destination.durable.set_result(None)
    side.delivery.flush()

    assert side.delivery.oldest_commit_time_us is None


def test_a_write_that_may_succeed_later_is_retried(side: Side[Flaky]) -> None:
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
    side: Side[Flaky], failures: list[Exception], kind: type[Exception], match: str
) -> None:
    side.destination.failures = list(failures)
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    with pytest.raises(kind, match=match):
        side.delivery.flush()
    assert side.progress is None


def test_a_table_that_fails_is_left_out_and_the_others_continue(side: Side[Flaky]) -> None:
    side.destination.failures = [TableWriteFailed(ORDERS, "no orders today")]
    side.delivery.put(side.transaction((ORDERS, 1), (VISITS, 5)), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 2), (VISITS, 6)), FROM_THE_START)
    side.delivery.flush()

    assert (side.ids(ORDERS), side.ids(VISITS)) == ([], [5, 6])
    assert side.failed == [(ORDERS, "no orders today")]
    assert side.progress == Lsn(1250)


def test_a_table_whose_rows_the_destination_cannot_bring_up_to_date_is_copied_again(
    side: Side[Flaky],
) -> None:
    side.destination.failures = [RowsOutdated(ORDERS, "it has another key")]
    side.delivery.put(side.transaction((ORDERS, 1), (VISITS, 5)), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 2)), FROM_THE_START | {ORDERS: Lsn(1200)})
    side.delivery.flush()

    assert (side.ids(ORDERS), side.ids(VISITS)) == ([2], [5])
    assert (side.failed, side.outdated) == ([], [(ORDERS, "it has another key")])


def test_a_table_that_was_left_out_is_written_again_after_its_next_copy(side: Side[Flaky]) -> None:
    side.destination.failures = [TableWriteFailed(ORDERS, "no orders today")]
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 2)), FROM_THE_START | {ORDERS: Lsn(1200)})
    side.delivery.flush()

    assert side.ids(ORDERS) == [2]


def test_transactions_before_a_tables_lsn_are_foreign(side: Side[Flaky]) -> None:
    first, second = side.transaction((ORDERS, 1)), side.transaction((ORDERS, 2))
    side.delivery.put(first, {ORDERS: Lsn(1200)})
    side.delivery.put(second, {ORDERS: Lsn(1200)})
    side.delivery.flush()

    assert side.ids(ORDERS) == [2]
    assert side.progress == Lsn(1250)


def test_a_full_queue_holds_up_the_reader_until_a_stop(side: Side[Flaky]) -> None:
    side.destination.durable = Future()  # never done

    def batches() -> RawBatch:
        return side.transaction((ORDERS, 1))

    for _ in range(3):  # one being written, two waiting
        side.delivery.put(batches(), FROM_THE_START)
    timer = threading.Timer(0.05, side.stop.set)
    timer.start()
    with pytest.raises(Stopped):
        side.delivery.put(batches(), FROM_THE_START)


class Held(Flaky):
    """Writes only once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.is_writing = threading.Event()
        self.may_write = threading.Event()

    def write_events(self, events: EventBatch) -> Any:
        self.is_writing.set()
        self.may_write.wait()
        return super().write_events(events)


def test_a_flush_that_a_stop_ends_is_not_taken_for_durable() -> None:
    """A table sync worker would hand its table over without what was left in the queue."""
    side = Side(Held())
    side.delivery.start()
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    side.destination.is_writing.wait()
    side.delivery.put(side.transaction((ORDERS, 2)), FROM_THE_START)
    side.stop.set()
    side.destination.may_write.set()
    wait_until(lambda: not side.delivery.is_running)

    with pytest.raises(Stopped):
        side.delivery.flush()
    assert (side.ids(ORDERS), side.progress) == ([1], Lsn(1150))


# -- a transaction that must come again ----------------------------------------------------------

#: What `Side.transaction` brings first.
FIRST = TransactionMark(Lsn(1100), 1, POSTGRES_EPOCH_US)


def test_a_stream_that_brings_the_expected_transaction_is_applied() -> None:
    side = Side(Flaky(), expected=FIRST)
    side.delivery.start()
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    side.delivery.put(side.transaction((ORDERS, 2)), FROM_THE_START)
    side.delivery.finish()
    side.delivery.raise_failure()

    assert side.ids(ORDERS) == [1, 2]


@pytest.mark.parametrize(
    "expected",
    [FIRST._replace(xid=2), FIRST._replace(commit_time_us=1), FIRST._replace(commit_lsn=Lsn(1099))],
    ids=["another transaction", "another time", "passed over"],
)
def test_a_stream_with_another_history_is_refused_before_anything_is_written(
    expected: TransactionMark,
) -> None:
    side = Side(Flaky(), expected=expected)
    side.delivery.start()
    side.delivery.put(side.transaction((ORDERS, 1)), FROM_THE_START)
    with pytest.raises(SourceRestored, match="is applied, but the source now sends transaction 1"):
        side.delivery.flush()

    assert (side.ids(ORDERS), side.progress) == ([], None)


def test_an_idle_stream_that_passes_the_expected_transaction_is_refused() -> None:
    side = Side(Flaky(), expected=FIRST)
    side.delivery.start()
    side.delivery.put_progress(Lsn(1101))
    with pytest.raises(SourceRestored, match="now sends nothing up to 0/44D"):
        side.delivery.flush()

    assert side.progress is None


def test_the_expected_transaction_may_come_without_rows() -> None:
    """Then no batch is written for it."""
    side = Side(Flaky(), expected=FIRST)
    side.delivery.start()
    side.delivery.put_progress(Lsn(1150), side.transaction())
    side.delivery.finish()
    side.delivery.raise_failure()

    assert side.progress == Lsn(1150)
    assert side.destination.written == 0


def test_another_transaction_without_rows_in_its_place_is_refused() -> None:
    side = Side(Flaky(), expected=FIRST._replace(xid=2))
    side.delivery.start()
    side.delivery.put_progress(Lsn(1150), side.transaction())
    with pytest.raises(SourceRestored, match="now sends transaction 1 at"):
        side.delivery.flush()

    assert side.progress is None


# -- batches that are too large ------------------------------------------------------------------


@pytest.fixture
def small() -> Iterator[tuple[Side[Small], Small]]:
    destination = Small()
    side = Side(destination)
    side.delivery.start()
    yield side, destination
    side.stop.set()
    side.delivery.finish()


@pytest.mark.parametrize("error", [lambda: BatchTooLarge("no memory is left"), MemoryError])
def test_a_batch_that_is_too_large_is_halved_until_it_fits(
    small: tuple[Side[Small], Small], error: Callable[[], Exception]
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
    small: tuple[Side[Small], Small],
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


def test_after_a_refusal_batches_are_cut_before_sending_until_larger_pieces_succeed(
    small: tuple[Side[Small], Small],
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
