"""A batch while it is being received."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from etl_dagster.errors import DecodeError
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import TransactionMark
from etl_dagster.protocol.alterations import Alteration
from etl_dagster.protocol.batch import (
    BEGIN_FRAME,
    COMMIT_FRAME,
    PADDING,
    POSTGRES_EPOCH_US,
    Barrier,
    Content,
    OpenTransaction,
    RawBatch,
    RelationChange,
    TableAlteration,
    TableTruncate,
)
from etl_dagster.protocol.frames import XLOG_DATA_HEADER
from etl_dagster.protocol.pgoutput import Relation, Truncate, decode_begin, decode_commit

_HEADER = XLOG_DATA_HEADER.size


class BatchBuilder:
    """A batch being filled: most messages in one buffer, the few others next to it.

    Args:
        relations: the relations known before the batch, by OID.
        transaction: the one that the batch continues with.
        codec: how the server sends text, as Python calls it; None: UTF-8.
    """

    def __init__(
        self,
        relations: Mapping[int, Relation],
        transaction: OpenTransaction | None,
        codec: str | None = None,
    ) -> None:
        self._codec = codec
        #: Frames of row, Begin and Commit messages, header and all, one after the other, and
        #: their lengths. A transaction of one row is as ordinary as a row.
        self.buffer = bytearray()
        self.lengths: list[int] = []
        #: Bytes of all frames.
        self.size = 0
        self.transaction = transaction
        self._carried = transaction and replace(transaction)
        self._mark_count = 0
        self._relations = relations
        self._barriers: dict[int, list[Barrier]] = defaultdict(list)
        #: Message numbers before which something else took a place in the sequence.
        self._others: list[int] = []
        #: Message numbers before which a table was truncated.
        self._truncates: list[int] = []
        self._alteration_count = 0
        #: The first transaction of which the batch has something.
        self._first = transaction and replace(transaction)
        self._commit_end: int | None = None
        self._last_begin: tuple[int, int, int] | None = None

    @property
    def is_empty(self) -> bool:
        return not self.lengths and not self._others

    @property
    def first_commit_time_us(self) -> int | None:
        """Of the first transaction of which the batch has a row; microseconds since 1970 UTC."""
        return self._first.commit_time_us if self._first is not None and self.row_count else None

    @property
    def row_message_count(self) -> int:
        return len(self.lengths) - self._mark_count

    @property
    def row_count(self) -> int:
        """Row messages, truncated and altered tables."""
        return self.row_message_count + len(self._truncates) + self._alteration_count

    @property
    def transaction_at_end(self) -> OpenTransaction | None:
        """The open transaction as the next batch, which counts from 0, sees it."""
        now = self.transaction
        if now is None:
            return None
        offset = now.ordinal_offset + len(self.lengths)
        return OpenTransaction(
            now.commit_lsn,
            now.commit_time_us,
            offset,
            now.xid,
            alterations=dict(now.alterations),
        )

    # -- filling ---------------------------------------------------------------------------------

    def begin(self, frame: bytes | memoryview) -> None:
        """Take a Begin message in its XLogData frame."""
        if len(frame) != BEGIN_FRAME.size:
            decode_begin(frame[_HEADER + 1 :])  # says what is wrong
        lsn, time_us, xid = BEGIN_FRAME.unpack(frame)
        if self.transaction is not None:
            raise DecodeError("a Begin message inside of a transaction", offset=0)
        self._take_mark(frame)
        self._last_begin = (lsn, xid, time_us)
        time_us += POSTGRES_EPOCH_US
        self.transaction = OpenTransaction(lsn, time_us, -len(self.lengths), xid)
        if self._first is None:
            self._first = replace(self.transaction)

    def commit(self, frame: bytes | memoryview) -> int:
        """Take a Commit message in its XLogData frame; returns its end LSN."""
        if len(frame) != COMMIT_FRAME.size:
            decode_commit(frame[_HEADER + 1 :])
        lsn, end_lsn, _ = COMMIT_FRAME.unpack(frame)
        expected = self._current("Commit").commit_lsn
        if lsn != expected:
            raise DecodeError(
                f"a Commit message for {Lsn(lsn)} in the transaction of {Lsn(expected)}", offset=2
            )
        self._take_mark(frame)
        self._commit_end = end_lsn
        self.transaction = None
        return int(end_lsn)

    def _take_mark(self, frame: bytes | memoryview) -> None:
        self.buffer += frame
        self.lengths.append(len(frame))
        self._mark_count += 1

    def relation(self, relation: Relation) -> None:
        lsn = self._current("Relation").commit_lsn
        sequence = self._take_sequence()
        self._barriers[relation.id].append(
            RelationChange(len(self.lengths), sequence, lsn, relation)
        )

    def alteration(self, alteration: Alteration) -> None:
        transaction = self._current("Message")
        number = transaction.alterations.get(alteration.table_id, 0)
        transaction.alterations[alteration.table_id] = number + 1
        self._barriers[alteration.table_id].append(
            TableAlteration(
                len(self.lengths), self._take_sequence(), transaction.commit_lsn, number, alteration
            )
        )
        self._alteration_count += 1

    def truncate(self, truncate: Truncate) -> None:
        transaction = self._current("Truncate")
        row = len(self.lengths)
        for relation_id in truncate.relation_ids:
            self._barriers[relation_id].append(
                TableTruncate(
                    row,
                    self._take_sequence(),
                    transaction.commit_lsn,
                    transaction.commit_time_us,
                    row + transaction.ordinal_offset,
                    transaction.xid,
                    truncate.cascade,
                    truncate.restart_identity,
                )
            )
            transaction.ordinal_offset += 1
            self._truncates.append(row)

    def _current(self, kind: str) -> OpenTransaction:
        if self.transaction is None:
            raise DecodeError(f"a {kind} message outside of a transaction", offset=0)
        return self.transaction

    def _take_sequence(self) -> int:
        sequence = len(self.lengths) + len(self._others)
        self._others.append(len(self.lengths))
        return sequence

    def build(self, *, is_full: bool = False) -> RawBatch:
        """The batch; the builder isn't used any more."""
        # A look ahead from the last byte stays in the buffer; see `rows`.
        self.buffer += bytes(PADDING)
        first = None if self.is_empty else self._first
        last = self._last_begin
        return RawBatch(
            first_commit_time_us=None if first is None else first.commit_time_us,
            commit_end_lsn=None if self._commit_end is None else Lsn(self._commit_end),
            last_begin=None
            if last is None
            else TransactionMark(Lsn(last[0]), last[1], last[2] + POSTGRES_EPOCH_US),
            byte_count=self.size,
            is_full=is_full,
            _content=Content(
                self.buffer,
                self.lengths,
                self._relations,
                self._barriers,
                self._others,
                self._truncates,
                self._carried,
                self._codec,
            ),
        )
