"""One stream for many readers: what each gets, who waits for whom, and where one joins."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from etl_dagster.errors import SourceUnreachable
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.fan_out.tee import Branch, Tee
from tests.support.waiting import wait_until
from tests.unit import wire

ORDERS = 7
RELATION = Relation(ORDERS, "public", "orders", "d", (RelationColumn("id", 23, -1, True),))
SCHEMA = TableSchema(ORDERS, "public", "orders", (ColumnSchema("id", 23, base_type_oid=23),))


def begin(lsn: int) -> bytes:
    return wire.xlog_data(wire.begin(lsn), wal_end=lsn)


def commit(lsn: int) -> bytes:
    return wire.xlog_data(wire.commit(lsn, lsn + 10), wal_end=lsn + 10)


def insert(value: int) -> bytes:
    return wire.xlog_data(wire.insert(ORDERS, [str(value)]))


DESCRIBED = wire.xlog_data(wire.relation(RELATION))


def give(tee: Tee, *frames: bytes) -> None:
    """Have the connection bring these frames."""
    left = [(len(frame), memoryview(frame)) for frame in frames]

    def get() -> tuple[int, memoryview]:
        return left.pop(0) if left else (0, memoryview(b""))

    while left:
        assert tee.drain(get) in (0, 1)
    tee.drain(get)


class Reader:
    """A session that reads a branch."""

    def __init__(self, branch: Branch, *, max_rows: int = 1000) -> None:
        self.branch = branch
        self.session = ReplicationSession(max_rows=max_rows)
        branch.reads_into(self.session)
        branch.open()

    def ids(self) -> list[int]:
        """The values of the rows that were read since the last call."""
        events = self.batch()
        return [row["id"] for row in _rows(events)]

    def batch(self) -> EventBatch:
        while self.branch.read(0):
            pass
        return self.session.take_batch().decode(lambda relation, lsn: SCHEMA, {ORDERS: Lsn(0)}, 0)


@contextlib.contextmanager
def asking(reader: Reader) -> Iterator[None]:
    """Its thread waits for more meanwhile."""
    waiting = threading.Thread(target=reader.branch.read, args=[60.0])
    waiting.start()
    try:
        wait_until(lambda: reader.branch.is_asking)
        yield
    finally:
        reader.branch.interrupt()
        waiting.join()


def _rows(events: EventBatch) -> list[dict[str, int]]:
    return [dict(event.row) for event in events if hasattr(event, "row")]


@pytest.fixture
def tee() -> Tee:
    return Tee(Lsn(100), buffer_bytes=4000)


def test_every_branch_gets_every_frame(tee: Tee) -> None:
    readers = [Reader(tee.branch(is_started=False)) for _ in range(3)]

    give(tee, begin(200), DESCRIBED, insert(1), insert(2), commit(200))

    assert [reader.ids() for reader in readers] == [[1, 2], [1, 2], [1, 2]]
    assert [reader.branch.start_lsn for reader in readers] == [Lsn(100)] * 3
    assert tee.reached == Lsn(210)


def test_a_joining_branch_begins_between_two_transactions_and_knows_the_tables(tee: Tee) -> None:
    tee.branch(is_started=False)
    give(tee, begin(200), DESCRIBED, insert(1))
    joining = tee.branch(is_started=True)
    assert not joining.wait_placed(0)

    give(tee, insert(2), commit(200), begin(300), insert(3), commit(300))

    assert joining.wait_placed(0)
    assert joining.start_lsn == Lsn(210)
    reader = Reader(joining)
    assert reader.ids() == [3]


def test_a_joining_branch_has_its_place_at_once_where_nothing_is_open(tee: Tee) -> None:
    placed: list[Lsn] = []
    give(tee, wire.keepalive(500))
    joining = tee.branch(is_started=True, on_placed=placed.append)
    assert placed == []

    give(tee)

    assert placed == [Lsn(500)]
    assert joining.phase == "open"


def test_a_full_batch_is_reported_and_the_rest_follows(tee: Tee) -> None:
    reader = Reader(tee.branch(is_started=False), max_rows=2)
    give(tee, begin(200), DESCRIBED, insert(1), insert(2), insert(3), commit(200))

    assert reader.branch.read(0)
    assert reader.session.row_count == 2
    reader.session.take_batch()
    assert reader.ids() == [3]


def test_time_is_counted_while_one_branch_wants_more_and_another_has_no_room() -> None:
    tee = Tee(Lsn(100), buffer_bytes=4000, clock=itertools.count().__next__)
    slow, quick = (Reader(tee.branch(is_started=False)) for _ in range(2))
    give(tee, begin(200), DESCRIBED, *map(insert, range(30)), commit(200))
    assert quick.ids() == list(range(30))

    with asking(quick):
        assert not tee.wait_for_room(0)
    assert (slow.branch.held_up_s, slow.branch.asked_s) == (1, 0)
    assert (quick.branch.held_up_s, quick.branch.asked_s) == (0, 1)

    assert slow.ids() == list(range(30))
    assert tee.wait_for_room(0)


def test_a_branch_that_does_not_ask_for_more_waits_for_no_other() -> None:
    """It hangs, and the one that works through what it was given is not at fault."""
    tee = Tee(Lsn(100), buffer_bytes=4000, clock=itertools.count().__next__)
    slow, hung = (Reader(tee.branch(is_started=False)) for _ in range(2))
    give(tee, begin(200), DESCRIBED, *map(insert, range(30)), commit(200))
    hung.ids()

    assert not tee.wait_for_room(0)
    assert slow.branch.held_up_s == hung.branch.asked_s == 0


def test_the_connection_is_told_to_stop_reading_once_a_branch_is_full(tee: Tee) -> None:
    """It continues while bytes arrive, and a quick server would fill the memory."""
    reader = Reader(tee.branch(is_started=False))
    give(tee, begin(200), DESCRIBED, *map(insert, range(30)))
    nothing = (0, memoryview(b""))
    assert tee.drain(lambda: nothing) == 1

    reader.batch()
    assert tee.drain(lambda: nothing) == 0


def test_a_branch_ahead_of_its_reader_is_dropped_and_not_waited_for(tee: Tee) -> None:
    ahead = tee.branch(is_started=False, is_ahead=True)
    assert ahead.is_alive
    give(tee, begin(200), DESCRIBED, *map(insert, range(30)), commit(200))

    assert ahead.is_lost
    assert not ahead.take_over()
    assert tee.wait_for_room(0)


def test_a_branch_ahead_of_its_reader_keeps_everything_since_its_place_until_the_reader_comes(
    tee: Tee,
) -> None:
    ahead = tee.branch(is_started=False, is_ahead=True)
    give(tee, begin(200), DESCRIBED, insert(1), commit(200))

    assert ahead.take_over()
    assert Reader(ahead).ids() == [1]


def test_a_closed_branch_ends_and_holds_up_nothing(tee: Tee) -> None:
    closed = tee.branch(is_started=False)
    give(tee, begin(200), DESCRIBED, *map(insert, range(30)), commit(200))

    closed.close()

    assert closed.is_over
    assert tee.wait_for_room(0)


@pytest.mark.parametrize(
    "use",
    [lambda branch: branch.read(0), lambda branch: branch.open(), lambda b: b.wait_placed(0)],
)
def test_when_the_connection_ends_every_branch_fails_with_it(
    tee: Tee, use: Callable[[Branch], object]
) -> None:
    branch = tee.branch(is_started=False).reads_into(ReplicationSession())
    tee.end(SourceUnreachable("the line is cut"))

    with pytest.raises(SourceUnreachable, match="the line is cut"):
        use(branch)
    assert branch.is_lost


def test_an_interrupt_ends_a_read_that_waits(tee: Tee) -> None:
    reader = Reader(tee.branch(is_started=False))
    reader.branch.interrupt()

    assert reader.branch.read(60) is False


def test_the_connection_answers_the_servers_requests(tee: Tee) -> None:
    give(tee, wire.keepalive(500, reply_requested=True))

    assert tee.take_reply_request()
    assert not tee.take_reply_request()
    assert tee.last_wal_end == Lsn(500)
    assert tee.reached == Lsn(500)


def test_inside_of_a_transaction_a_keepalive_is_not_a_place(tee: Tee) -> None:
    give(tee, begin(200), DESCRIBED, wire.keepalive(500))

    assert tee.reached == Lsn(100)
