"""Transactions that Postgres sends while they are in progress, given on once they have committed.

With `streaming`, a transaction that outgrows logical_decoding_work_mem comes in segments, with
others and ordinary transactions between them, before it is known whether it commits. Here it
becomes what it would have been without: Begin, its messages, Commit, at its place in the order of
commits. So the code that reads after this sees no difference.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from etl_dagster.errors import DecodeError
from etl_dagster.lsn import Lsn
from etl_dagster.protocol.frames import (
    KEEPALIVE_TAG,
    XLOG_DATA_HEADER,
    XLOG_DATA_TAG,
    decode_keepalive,
)
from etl_dagster.protocol.in_progress import SPOOL_SIZES, Spool, SpoolSizes, TransactionInProgress
from etl_dagster.protocol.pgoutput import (
    StreamAbort,
    StreamCommit,
    decode_origin,
    decode_stream_abort,
    decode_stream_commit,
    decode_stream_start,
)
from etl_dagster.protocol.receiver import RELATION, STREAMED, Receiver
from etl_dagster.protocol.row_frames import RowFrames

_HEADER: Final = XLOG_DATA_HEADER.size
_BEGIN: Final = struct.Struct("!cQqI")
_COMMIT: Final = struct.Struct("!cBQQq")
_NOTHING: Final = (0, memoryview(b""))


class StreamedTransactions:
    """Stands before a receiver and drains a connection for it.

    Args:
        open_spool: makes room for one transaction's messages.
        sends_empty: whether the server also sends the Begin and Commit of a transaction that
            changes nothing of ours, as before Postgres 15.
    """

    def __init__(
        self,
        receiver: Receiver,
        open_spool: Callable[[], Spool],
        *,
        sends_empty: bool,
        sizes: SpoolSizes = SPOOL_SIZES,
    ) -> None:
        receiver.expect_streamed()
        self._receiver = receiver
        self._open_spool = open_spool
        self._sends_empty = sends_empty
        self._sizes = sizes
        self._transactions: dict[int, TransactionInProgress] = {}
        #: The one whose segment is being received.
        self._segment: TransactionInProgress | None = None
        #: The committed one that is being given on, what is left of it, and which of its frames
        #: have been given on in part.
        self._committed: TransactionInProgress | None = None
        self._left: Iterator[RowFrames | memoryview] = iter(())
        self._rows: RowFrames | None = None
        self._frame: Iterator[tuple[int, memoryview]] = iter(())
        self._descriptions = _Descriptions(receiver)
        self._wal_end = 0
        self._reply_requested = False

    @property
    def count(self) -> int:
        """Transactions of which something is kept."""
        return len(self._transactions)

    @property
    def last_wal_end(self) -> Lsn:
        """How far the server's WAL reached when it sent the last frame."""
        return max(self._receiver.last_wal_end, Lsn(self._wal_end))

    def take_reply_request(self) -> bool:
        """Whether the server asked for a status update since the last call."""
        requested, self._reply_requested = self._reply_requested, False
        return self._receiver.take_reply_request() or requested

    def drain(self, get: Callable[[], tuple[int, memoryview]]) -> int:
        """As `ReplicationSession.drain`.

        Raises:
            DecodeError: the bytes are not pgoutput.
            SpoolError: a transaction in progress can't be kept.
        """
        while True:
            if self._committed is not None:
                if (status := self._give_on()) != 0:
                    return status
                self._end_committed(self._committed)
            elif self._segment is not None:
                if (status := self._receive_segment(self._segment, get)) <= 0:
                    return status
            else:
                if (status := self._receiver.drain(get)) != STREAMED:
                    return status
                self._message(self._receiver.not_taken)

    def close(self) -> None:
        """Forget all transactions."""
        for transaction in self._transactions.values():
            transaction.close()
        self._transactions.clear()
        self._segment = self._committed = None

    # -- segments --------------------------------------------------------------------------------

    def _receive_segment(
        self, segment: TransactionInProgress, get: Callable[[], tuple[int, memoryview]]
    ) -> int:
        """Take frames up to the segment's end; 1 there, else 0 or -1 as `get` did."""
        while True:
            length, frame = segment.take_rows(get)
            if length <= 0:
                return length
            if frame[0] == KEEPALIVE_TAG:
                keepalive = decode_keepalive(frame)
                self._reply_requested |= keepalive.reply_requested
                self._wal_end = max(self._wal_end, keepalive.wal_end.offset)
                continue
            if frame[0] != XLOG_DATA_TAG:
                raise DecodeError(f"a frame with the unknown tag {chr(frame[0])!r}", offset=0)
            match chr(frame[_HEADER]) if length > _HEADER else "":
                case "R" | "Y" | "T" | "M":
                    segment.take(frame, self._descriptions.next_number(frame))
                case "O":
                    # The one message without a transaction's ID. It only has to be well-formed.
                    decode_origin(frame[_HEADER + 1 :])
                case "E":
                    self._note_wal_end(frame)
                    segment.end_segment()
                    self._segment = None
                    return 1
                case tag:
                    raise DecodeError(
                        f"a message with the tag {tag!r} inside of a transaction in progress",
                        offset=0,
                    )

    # -- what is said of them --------------------------------------------------------------------

    def _message(self, frame: bytes) -> None:
        self._note_wal_end(frame)
        body = frame[_HEADER + 1 :]
        match chr(frame[_HEADER]):
            case "S":
                started = decode_stream_start(body)
                if started.is_first:
                    self._forget(started.xid)
                    made = TransactionInProgress(started.xid, self._open_spool, self._sizes)
                    self._transactions[started.xid] = made
                self._segment = self._known(started.xid)
            case "c":
                self._commit(frame, decode_stream_commit(body))
            case "A":
                self._abort(decode_stream_abort(body))
            case _:
                raise DecodeError("a Stream Stop message without a Stream Start", offset=0)

    def _abort(self, abort: StreamAbort) -> None:
        if abort.subxid == abort.xid:
            self._forget(abort.xid)
        elif abort.xid in self._transactions:
            self._transactions[abort.xid].roll_back(abort.subxid)

    def _commit(self, frame: bytes, commit: StreamCommit) -> None:
        transaction = self._known(commit.xid)
        if not transaction.count and not self._sends_empty:
            self._forget(commit.xid)
            return
        self._committed = transaction
        self._left = self._messages(transaction, frame, commit)

    def _messages(
        self, transaction: TransactionInProgress, frame: bytes, commit: StreamCommit
    ) -> Iterator[RowFrames | memoryview]:
        header = frame[:_HEADER]
        lsn, time_us = commit.commit_lsn.offset, commit.commit_time_us
        begin = header + _BEGIN.pack(b"B", lsn, time_us, commit.xid)
        yield memoryview(begin)
        newer = self._descriptions.newer_than(transaction)
        yield from transaction.messages()
        for described in newer:
            yield memoryview(described)
        end = header + _COMMIT.pack(b"C", 0, lsn, commit.end_lsn.offset, time_us)
        yield memoryview(end)

    def _give_on(self) -> int:
        """Give on what is left of the committed transaction; 0 at its end, else as `drain`."""
        while True:
            if self._rows is not None and self._receiver.take_rows(self._rows):
                return 1
            self._rows = None
            if (status := self._receiver.drain(partial(next, self._frame, _NOTHING))) != 0:
                return status
            match next(self._left, None):
                case None:
                    return 0
                case RowFrames() as rows:
                    self._rows = rows
                case frame:
                    self._frame = iter([(len(frame), frame)])

    def _end_committed(self, transaction: TransactionInProgress) -> None:
        self._committed = None
        self._descriptions.given_on(transaction)
        self._forget(transaction.xid)

    def _known(self, xid: int) -> TransactionInProgress:
        found = self._transactions.get(xid)
        if found is None:
            raise DecodeError(
                f"a message about transaction {xid}, whose beginning was not sent", offset=1
            )
        return found

    def _forget(self, xid: int) -> None:
        if (found := self._transactions.pop(xid, None)) is not None:
            found.close()

    def _note_wal_end(self, frame: bytes | memoryview) -> None:
        self._wal_end = max(self._wal_end, XLOG_DATA_HEADER.unpack_from(frame)[2])


class _Descriptions:
    """Which Relation message of a table the server sent last.

    The server describes a table again only after it has changed, to ordinary transactions and to
    each transaction in progress; and what one in progress was told counts for all once that has
    committed. What comes next is in the form that was sent last, though it may be given on first:
    another transaction may have described the table while this one was in progress.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._number = 0
        #: By table, what the receiver was told, with its number in the order of sending.
        self._told: dict[int, tuple[int, bytes]] = {}

    def next_number(self, frame: memoryview) -> int:
        """The number of a message that is inside of a transaction in progress."""
        if frame[_HEADER] == RELATION and len(frame) >= _HEADER + 9:
            # What the receiver has been told directly meanwhile was sent before.
            self._look(int.from_bytes(frame[_HEADER + 5 : _HEADER + 9], "big"))
            self._number += 1
        return self._number

    def _look(self, table_id: int) -> tuple[int, bytes] | None:
        frame = self._receiver.relation_frame(table_id)
        told = self._told.get(table_id)
        if frame is not None and (told is None or told[1] is not frame):
            self._number += 1
            told = self._told[table_id] = (self._number, frame)
        return told

    def newer_than(self, transaction: TransactionInProgress) -> list[bytes]:
        """Frames that describe tables as the server last did, where the transaction differs."""
        frames = []
        for table_id, last in transaction.described.items():
            number, frame = self._look(table_id) or (0, b"")
            if number > last.number and frame[_HEADER + 1 :] != last.body:
                frames.append(frame)
        return frames

    def given_on(self, transaction: TransactionInProgress) -> None:
        """The receiver has been told what the transaction says, and then what is newer."""
        for table_id, last in transaction.described.items():
            frame = self._receiver.relation_frame(table_id)
            if frame is not None:
                before = self._told.get(table_id)
                newest = last.number if before is None else max(before[0], last.number)
                self._told[table_id] = (newest, frame)
