"""Transactions in progress come out as if each had been sent once it had committed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.errors import DecodeError, RollbackUnclear
from etl_dagster.lsn import Lsn
from etl_dagster.protocol.alterations import ALTERATION_PREFIX
from etl_dagster.protocol.in_progress import SPOOL_SIZES, SpoolSizes, TransactionInProgress
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.protocol.row_frames import RowFrames
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.protocol.streamed import StreamedTransactions
from etl_dagster.runtime.fan_out.tee import Tee
from tests.unit import wire

A = Relation(1, "public", "a", "d", (RelationColumn("id", 23, -1, True),))
WIDER = Relation(1, "public", "a", "d", (*A.columns, RelationColumn("t", 25, -1, False)))


class MemorySpool:
    """A file's twin."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_closed = False

    def append(self, data: bytes | memoryview) -> None:
        self.data += data

    def cut(self, size: int) -> None:
        del self.data[size:]

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Side:
    """A receiver behind a connection, and the messages that it was given."""

    sends_empty: bool = False
    sizes: SpoolSizes = SPOOL_SIZES
    spools: list[MemorySpool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.receiver = Recorder()
        self.streamed = StreamedTransactions(
            self.receiver, self._spool, sends_empty=self.sends_empty, sizes=self.sizes
        )

    def _spool(self) -> MemorySpool:
        self.spools.append(MemorySpool())
        return self.spools[-1]

    def give(self, *frames: bytes) -> list[bytes]:
        """Have the connection bring these; returns every message so far."""
        waiting = iter([(len(frame), memoryview(frame)) for frame in frames])

        def get() -> tuple[int, memoryview]:
            return next(waiting, (0, memoryview(b"")))

        while self.streamed.drain(get) > 0:
            pass
        return self.receiver.messages


class Recorder(ReplicationSession):
    """A session that also notes each message; its batches are of three rows."""

    def __init__(self) -> None:
        super().__init__(max_rows=3)
        self.messages: list[bytes] = []
        #: When each ended, the first transaction was open or not.
        self.rows_at_once = 0

    def drain(self, get):  # type: ignore[no-untyped-def]
        def noted() -> tuple[int, memoryview]:
            length, frame = get()
            if length > 25 and frame[25] not in b"SEcA":
                self.messages.append(bytes(frame[25:]))
            return length, frame

        status = super().drain(noted)
        self.rows_at_once = max(self.rows_at_once, self.row_count)
        if status == 1:
            self.take_batch()
        return status

    def take_rows(self, rows: RowFrames) -> bool:
        before = self.row_count
        is_full = super().take_rows(rows)
        taken = self.row_count - before
        if taken:
            frames, ends = bytes(self._open.buffer), list(accumulate(self._open.lengths))
            begins = [0, *ends]
            self.messages += [
                frames[begin + 25 : end]
                for begin, end in zip(begins[-taken - 1 : -1], ends[-taken:], strict=True)
            ]
        self.rows_at_once = max(self.rows_at_once, self.row_count)
        if is_full:
            self.take_batch()
        return is_full


def xid_after_tag(message: bytes, xid: int) -> bytes:
    return wire.xlog_data(message[:1] + struct.pack("!I", xid) + message[1:], wal_end=5)


def start(xid: int, *, is_first: bool = True) -> bytes:
    return wire.xlog_data(b"S" + struct.pack("!IB", xid, is_first))


STOP = wire.xlog_data(b"E", wal_end=77)


def stream_commit(xid: int, lsn: int) -> bytes:
    return wire.xlog_data(b"c" + struct.pack("!IBQQq", xid, 0, lsn, lsn + 8, 5))


def abort(xid: int, subxid: int) -> bytes:
    return wire.xlog_data(b"A" + struct.pack("!II", xid, subxid))


def row(value: object) -> bytes:
    return wire.insert(1, [str(value)])


def message(prefix: str, content: bytes = b"[]") -> bytes:
    body = struct.pack("!BQ", 1, 0) + prefix.encode() + b"\0" + struct.pack("!I", len(content))
    return b"M" + body + content


def whole(xid: int, lsn: int, *messages: bytes) -> list[bytes]:
    """What an ordinary transaction consists of."""
    return [
        wire.begin(lsn, time_us=5, xid=xid), *messages, wire.commit(lsn, lsn + 8, time_us=5)
    ]  # fmt: skip


# -- one transaction -----------------------------------------------------------------------------


def test_nothing_is_passed_on_before_the_commit() -> None:
    side = Side()

    given = side.give(start(9), xid_after_tag(wire.relation(A), 9), xid_after_tag(row(1), 9), STOP)
    assert given == []
    assert (side.streamed.count, side.receiver.open_commit_lsn) == (1, None)

    given = side.give(start(9, is_first=False), xid_after_tag(row(2), 9), STOP)
    assert given == []

    given = side.give(stream_commit(9, 100))
    assert given == whole(9, 100, wire.relation(A), row(1), row(2))
    assert (side.streamed.count, side.receiver.last_commit_end) == (0, Lsn(108))


def test_transactions_that_commit_first_come_first() -> None:
    side = Side()
    ordinary = [wire.xlog_data(m) for m in whole(8, 90, wire.relation(A), row("b"))]

    side.give(start(9), xid_after_tag(wire.relation(A), 9), xid_after_tag(row(1), 9), STOP)
    side.give(start(10), xid_after_tag(wire.relation(A), 10), xid_after_tag(row(2), 10), STOP)
    side.give(*ordinary, stream_commit(10, 95))
    given = side.give(stream_commit(9, 100))

    assert given == [
        *whole(8, 90, wire.relation(A), row("b")),
        *whole(10, 95, wire.relation(A), row(2)),
        *whole(9, 100, wire.relation(A), row(1)),
    ]


def test_a_large_transaction_is_passed_on_one_batch_at_a_time() -> None:
    side = Side()
    rows = [xid_after_tag(row(number), 9) for number in range(100)]
    side.give(start(9), xid_after_tag(wire.relation(A), 9), *rows, STOP, stream_commit(9, 100))

    assert len(side.receiver.messages) == 103
    assert side.receiver.rows_at_once == 3


def test_a_rolled_back_transaction_is_forgotten_and_its_disk_space_freed() -> None:
    side = Side(sizes=SpoolSizes(write=10))
    side.give(start(9), xid_after_tag(row(1), 9), STOP)
    assert [spool.is_closed for spool in side.spools] == [False]

    assert side.give(abort(9, 9)) == []
    assert side.streamed.count == 0
    assert [spool.is_closed for spool in side.spools] == [True]


def test_a_rollback_of_a_transaction_that_was_never_sent_changes_nothing() -> None:
    assert Side().give(abort(9, 9), abort(9, 10)) == []


@pytest.mark.parametrize("sends_empty", [False, True])
def test_an_empty_transaction_is_passed_on_if_the_server_sends_them(sends_empty: bool) -> None:
    """Which transaction came last must not depend on how it was sent."""
    side = Side(sends_empty=sends_empty)

    given = side.give(start(9), STOP, stream_commit(9, 100))
    assert given == (whole(9, 100) if sends_empty else [])
    assert side.streamed.count == 0


def test_a_keepalive_inside_a_segment_is_answered() -> None:
    side = Side()
    side.give(start(9), wire.keepalive(500, reply_requested=True), xid_after_tag(row(1), 9))

    assert side.streamed.take_reply_request()
    assert not side.streamed.take_reply_request()
    assert side.streamed.last_wal_end == Lsn(500)


def test_an_origin_has_no_transaction_id() -> None:
    side = Side()
    origin = wire.xlog_data(b"O" + struct.pack("!Q", 0) + b"elsewhere\0")
    given = side.give(start(9), origin, xid_after_tag(row(1), 9), STOP, stream_commit(9, 100))

    assert given == whole(9, 100, row(1))


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([start(9, is_first=False)], "whose beginning was not sent"),
        ([stream_commit(9, 100)], "whose beginning was not sent"),
        ([STOP], "without a Stream Start"),
        ([start(9), start(9)], "inside of a transaction in progress"),
        ([start(9), wire.xlog_data(wire.begin(1))], "inside of a transaction in progress"),
        ([start(9), wire.xlog_data(b"R\0\0")], "ends too early"),
    ],
)
def test_impossible_sequences_are_refused(frames: list[bytes], why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        Side().give(*frames)


# -- how tables look -----------------------------------------------------------------------------


def described(side: Side) -> bytes:
    frame = side.receiver.relation_frame(1)
    assert frame is not None
    return frame[25:]


def test_a_table_ends_as_the_server_last_described_it() -> None:
    """To the server, what it described since, in another transaction, holds for all that follow."""
    side = Side()
    side.give(start(9), xid_after_tag(wire.relation(A), 9), xid_after_tag(row(1), 9), STOP)
    side.give(*map(wire.xlog_data, whole(8, 90, wire.relation(WIDER))))
    given = side.give(stream_commit(9, 100))

    assert given[3:] == whole(9, 100, wire.relation(A), row(1), wire.relation(WIDER))
    assert described(side) == wire.relation(WIDER)


def test_a_table_stays_as_described_by_a_transaction_that_commits_later() -> None:
    side = Side()
    side.give(*map(wire.xlog_data, whole(8, 90, wire.relation(A))))
    side.give(start(9), xid_after_tag(wire.relation(A), 9), xid_after_tag(row(1), 9), STOP)
    side.give(start(10), xid_after_tag(wire.relation(WIDER), 10), xid_after_tag(row(2), 10), STOP)
    side.give(stream_commit(10, 95))
    given = side.give(stream_commit(9, 100))
    assert given[-4:] == [wire.relation(A), row(1), wire.relation(WIDER), whole(9, 100)[-1]]

    side.give(start(11), xid_after_tag(wire.relation(WIDER), 11), xid_after_tag(row(3), 11), STOP)
    side.give(start(12), xid_after_tag(wire.relation(A), 12), xid_after_tag(row(4), 12), STOP)
    side.give(stream_commit(11, 110))
    side.give(stream_commit(12, 120))
    assert described(side) == wire.relation(A)


def test_a_description_is_undone_with_the_savepoint_it_came_with() -> None:
    side = Side()
    side.give(*map(wire.xlog_data, whole(8, 90, wire.relation(A))))
    side.give(start(9), xid_after_tag(row(1), 9))
    side.give(xid_after_tag(wire.relation(WIDER), 10), xid_after_tag(row(2), 10), STOP)
    given = side.give(abort(9, 10), stream_commit(9, 100))

    assert given[3:] == whole(9, 100, row(1))
    assert described(side) == wire.relation(A)


# -- tables that are altered ---------------------------------------------------------------------

ALTERED = xid_after_tag(message(ALTERATION_PREFIX), 9)


def test_an_alteration_inside_a_savepoint_is_undone_with_it() -> None:
    side = Side()
    side.give(start(9), xid_after_tag(row(1), 9), xid_after_tag(row(2), 10), ALTERED, STOP)

    assert side.give(abort(9, 10), stream_commit(9, 100)) == whole(9, 100, row(1))


def test_an_alteration_that_was_followed_by_the_outer_transaction_stays() -> None:
    side = Side()
    side.give(start(9), ALTERED, xid_after_tag(row(1), 9), xid_after_tag(row(2), 10), STOP)

    given = side.give(abort(9, 10), stream_commit(9, 100))
    assert given == whole(9, 100, message(ALTERATION_PREFIX), row(1))


@pytest.mark.parametrize("after", [[], [xid_after_tag(row(2), 10)], [xid_after_tag(row(2), 11)]])
def test_it_is_never_guessed_whether_an_alteration_was_in_the_savepoint(
    after: list[bytes],
) -> None:
    """Messages name the transaction only, not the savepoint that they were written in."""
    side = Side()
    side.give(start(9), xid_after_tag(row(1), 9), ALTERED, *after, STOP)

    with pytest.raises(RollbackUnclear, match="transaction 9 altered a table near a savepoint"):
        side.give(abort(9, 10))


def test_messages_of_others_are_passed_over() -> None:
    side = Side()
    other = xid_after_tag(message("by_another"), 9)
    side.give(start(9), xid_after_tag(row(1), 9), other, xid_after_tag(row(2), 10), STOP)

    side.give(abort(9, 10))


# -- random transactions against an oracle -------------------------------------------------------


@dataclass
class Level:
    """A transaction, or a savepoint inside of one."""

    xid: int | None = None
    #: Savepoints inside of it that were released.
    released: list[int] = field(default_factory=list)
    changes: list[bytes] = field(default_factory=list)


class RandomSource:
    """Transactions with nested savepoints side by side, as a server sends them. What is left of
    each in the end is known by what its levels hold, not by cutting."""

    def __init__(self, random: Random) -> None:
        self._random = random
        # Or just before IDs begin again.
        self._next_xid = random.choice([100, 2**32 - 20])
        self._next_lsn = 1000
        self.frames: list[bytes] = []
        self.expected: list[bytes] = []

    def run(self) -> None:
        running = [self._transaction() for _ in range(self._random.randint(1, 4))]
        while running:
            one = self._random.choice(running)
            if next(one, None) is None:
                running.remove(one)

    def _new_xid(self) -> int:
        self._next_xid = (self._next_xid + 1) % 2**32 or 3
        return self._next_xid

    def _xid(self, levels: list[Level]) -> int:
        """Of the innermost level, which takes one as late as it can, and after the outer ones."""
        for level in levels:
            level.xid = level.xid or self._new_xid()
        assert levels[-1].xid is not None
        return levels[-1].xid

    def _transaction(self) -> Iterator[bool]:
        """Yields between two segments."""
        random = self._random
        levels = [Level()]
        top = self._xid(levels)
        sent: set[int] = set()
        for segment in range(random.randint(1, 5)):
            self.frames.append(start(top, is_first=segment == 0))
            for _ in range(random.randint(0, 8)):
                chance = random.random()
                if chance < 0.6:
                    xid, change = self._xid(levels), self._change()
                    levels[-1].changes.append(change)
                    self.frames.append(xid_after_tag(change, xid))
                    sent.add(xid)
                elif chance < 0.75:
                    levels.append(Level())
                elif len(levels) > 1:
                    inner = levels.pop()
                    ids = [*inner.released, *([inner.xid] if inner.xid else [])]
                    if chance < 0.87:
                        levels[-1].released += ids
                        levels[-1].changes += inner.changes
                    else:
                        aborts = [abort(top, xid) for xid in ids if xid in sent]
                        self.frames += [STOP, *aborts, start(top, is_first=False)]
            self.frames.append(STOP)
            yield True
        if random.random() < 0.2:
            self.frames.append(abort(top, top))
            return
        self._next_lsn += 100
        self.frames.append(stream_commit(top, self._next_lsn))
        if kept := [change for level in levels for change in level.changes]:
            self.expected += whole(top, self._next_lsn, *kept)

    def _change(self) -> bytes:
        number = self._random.randint(0, 999)
        long = wire.insert(1, ["x" * self._random.choice([10, 300])])
        return self._random.choice([row(number), long, wire.truncate([1]), wire.relation(A)])


@given(seed=st.integers(0, 2**32))
def test_random_transactions_come_out_as_though_sent_after_their_commit(seed: int) -> None:
    source = RandomSource(Random(seed))
    source.run()
    side = Side(sizes=SpoolSizes(write=200, kept=50, large=seed % 2 * 1000))
    passed_on = side.give(*source.frames)

    assert passed_on == source.expected
    assert side.streamed.count == 0
    assert all(spool.is_closed for spool in side.spools)


# -- several readers -----------------------------------------------------------------------------


def test_branches_get_whole_transactions() -> None:
    """One that joins while a transaction is in progress gets all of it, and nothing before."""
    tee = Tee(Lsn(50), buffer_bytes=10**6)
    streamed = StreamedTransactions(tee, MemorySpool, sends_empty=False)

    def give(*frames: bytes) -> None:
        waiting = iter([(len(frame), memoryview(frame)) for frame in frames])
        while streamed.drain(lambda: next(waiting, (0, memoryview(b"")))) > 0:
            pass

    first = tee.branch(is_started=False)
    give(start(9), xid_after_tag(wire.relation(A), 9), xid_after_tag(row(1), 9), STOP)
    second = tee.branch(is_started=True)
    give(wire.keepalive(60), stream_commit(9, 100))

    for branch in (first, second):
        session = ReplicationSession()
        branch.reads_into(session).open()
        while branch.read(0):
            pass
        assert (session.row_count, session.last_commit_end) == (1, Lsn(108))


def test_a_cut_reaches_what_is_on_disk() -> None:
    spool = MemorySpool()
    transaction = TransactionInProgress(9, lambda: spool, SpoolSizes(write=1))
    frames = [xid_after_tag(row(1), 9), xid_after_tag(row(2), 10), xid_after_tag(row(3), 10)]
    waiting = iter([(len(frame), memoryview(frame)) for frame in frames])
    transaction.take_rows(lambda: next(waiting, (0, memoryview(b""))))
    before = len(spool.data)

    transaction.roll_back(10)

    assert len(spool.data) < before
    assert transaction.count == 1
    [kept] = transaction.messages()
    assert isinstance(kept, RowFrames)
    assert kept.take(10**6, 10)[0][25:] == row(1)
