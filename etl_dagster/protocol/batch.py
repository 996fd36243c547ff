"""A stretch of the stream as it was received, and how it becomes an `EventBatch`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from etl_dagster.errors import DecodeError
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import (
    BeginEvent,
    CommitEvent,
    EventBatch,
    RelationEvent,
    TableChanges,
    TableStep,
    TruncateEvent,
)
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.protocol.pgoutput import Begin, Commit, Relation, Truncate

if TYPE_CHECKING:
    from etl_dagster.protocol.rows import Places

#: Zeros behind the last frame.
PADDING: Final = 16
#: Microseconds from 1970-01-01 to 2000-01-01 UTC, where Postgres' clock begins.
POSTGRES_EPOCH_US: Final = 946_684_800_000_000


@dataclass(slots=True)
class OpenTransaction:
    """A transaction of which more may come."""

    commit_lsn: int
    #: Microseconds since 1970-01-01 UTC.
    commit_time_us: int
    #: The ordinal of a row at the open batch's row number r is `r + ordinal_offset`.
    ordinal_offset: int


@dataclass(frozen=True, slots=True)
class _RelationChange:
    """A table's rows look otherwise from row number `row` of the batch on."""

    row: int
    sequence: int
    commit_lsn: int
    relation: Relation


@dataclass(frozen=True, slots=True)
class _TableTruncate:
    """A table is emptied before row number `row` of the batch."""

    row: int
    sequence: int
    commit_lsn: int
    commit_time_us: int
    ordinal: int
    cascade: bool
    restart_identity: bool


_Barrier: TypeAlias = _RelationChange | _TableTruncate


class BatchBuilder:
    """A batch being filled: row messages in one buffer, everything else beside it.

    Args:
        relations: the relations known before the batch, by OID.
        transaction: the one that the batch goes on with.
    """

    def __init__(
        self, relations: Mapping[int, Relation], transaction: OpenTransaction | None
    ) -> None:
        #: Frames of row messages, header and all, one behind the other, and their lengths.
        self.buffer = bytearray()
        self.lengths: list[int] = []
        #: Bytes of all frames.
        self.size = 0
        self.truncate_count = 0
        self.transaction = transaction
        self._relations = relations
        self._barriers: dict[int, list[_Barrier]] = defaultdict(list)
        #: (row number, commit LSN, time, ordinal offset): what holds for the rows from there on.
        self._segments: list[tuple[int, int, int, int]] = []
        #: (sequence, Begin or Commit)
        self._marks: list[tuple[int, Begin | Commit]] = []
        #: Row numbers before which something else took a place in the sequence.
        self._others: list[int] = []
        self._first_commit_lsn: int | None = None
        self._commit_end: Lsn | None = None
        if transaction is not None:
            self._first_commit_lsn = transaction.commit_lsn
            self._add_segment(transaction)

    @property
    def is_empty(self) -> bool:
        return not self.lengths and not self._others

    @property
    def transaction_at_end(self) -> OpenTransaction | None:
        """The open transaction as the next batch, which counts its rows from 0, sees it."""
        now = self.transaction
        if now is None:
            return None
        offset = now.ordinal_offset + len(self.lengths)
        return OpenTransaction(now.commit_lsn, now.commit_time_us, offset)

    # -- filling ---------------------------------------------------------------------------------

    def begin(self, begin: Begin) -> None:
        if self.transaction is not None:
            raise DecodeError("a Begin message inside of a transaction", offset=0)
        lsn = begin.final_lsn.offset
        self.transaction = OpenTransaction(
            lsn, begin.commit_time_us + POSTGRES_EPOCH_US, -len(self.lengths)
        )
        if self._first_commit_lsn is None:
            self._first_commit_lsn = lsn
        self._add_segment(self.transaction)
        self._marks.append((self._take_sequence(), begin))

    def commit(self, commit: Commit) -> None:
        transaction = self._current("Commit")
        if commit.commit_lsn.offset != transaction.commit_lsn:
            raise DecodeError(
                f"a Commit message for {commit.commit_lsn} in the transaction of "
                f"{Lsn(transaction.commit_lsn)}",
                offset=2,
            )
        self._marks.append((self._take_sequence(), commit))
        self._commit_end = commit.end_lsn
        self.transaction = None
        # Rows outside of a transaction are refused when the batch is decoded.
        self._segments.append((len(self.lengths), 0, 0, 0))

    def relation(self, relation: Relation) -> None:
        lsn = self._current("Relation").commit_lsn
        sequence = self._take_sequence()
        self._barriers[relation.id].append(
            _RelationChange(len(self.lengths), sequence, lsn, relation)
        )

    def truncate(self, truncate: Truncate) -> None:
        transaction = self._current("Truncate")
        row = len(self.lengths)
        for relation_id in truncate.relation_ids:
            self._barriers[relation_id].append(
                _TableTruncate(
                    row,
                    self._take_sequence(),
                    transaction.commit_lsn,
                    transaction.commit_time_us,
                    row + transaction.ordinal_offset,
                    truncate.cascade,
                    truncate.restart_identity,
                )
            )
            transaction.ordinal_offset += 1
            self.truncate_count += 1
        self._add_segment(transaction)

    def _current(self, kind: str) -> OpenTransaction:
        if self.transaction is None:
            raise DecodeError(f"a {kind} message outside of a transaction", offset=0)
        return self.transaction

    def _take_sequence(self) -> int:
        sequence = len(self.lengths) + len(self._others)
        self._others.append(len(self.lengths))
        return sequence

    def _add_segment(self, transaction: OpenTransaction) -> None:
        self._segments.append(
            (
                len(self.lengths),
                transaction.commit_lsn,
                transaction.commit_time_us,
                transaction.ordinal_offset,
            )
        )

    def build(self) -> RawBatch:
        """The batch; the builder isn't used any more."""
        # A look ahead from the last byte stays in the buffer; see `rows`.
        self.buffer += bytes(PADDING)
        first = None
        if not self.is_empty and self._first_commit_lsn is not None:
            first = Lsn(self._first_commit_lsn)
        return RawBatch(
            first_commit_lsn=first,
            commit_end_lsn=self._commit_end,
            byte_count=self.size,
            _buffer=self.buffer,
            _lengths=self.lengths,
            _relations=self._relations,
            _barriers=self._barriers,
            _segments=self._segments,
            _marks=self._marks,
            _others=self._others,
        )


@dataclass(frozen=True)
class RawBatch:
    """What was received between two closings of a batch, not decoded yet."""

    #: Of the first transaction of which the batch has something.
    first_commit_lsn: Lsn | None
    #: End of the last transaction that ends in the batch.
    commit_end_lsn: Lsn | None
    #: Bytes of all frames.
    byte_count: int
    _buffer: bytearray
    _lengths: list[int]
    _relations: Mapping[int, Relation]
    _barriers: Mapping[int, list[_Barrier]]
    _segments: list[tuple[int, int, int, int]]
    _marks: list[tuple[int, Begin | Commit]]
    _others: list[int]

    def decode(
        self,
        schema_of: Callable[[Relation], TableSchema],
        apply_from: Mapping[TableId, Lsn],
        epoch: int,
    ) -> EventBatch:
        """Decode what is wanted; may be called again, and gives the same.

        Args:
            schema_of: the schema of rows under a Relation message, with the columns in its order.
            apply_from: the wanted tables, each from the transaction on whose commit LSN is given.

        Raises:
            DecodeError: the batch holds what is no pgoutput.
        """
        tables: dict[TableId, list[TableStep]] = {}
        decoder = _TableDecoder(self, schema_of)
        for table_id in decoder.table_ids():
            if (first := apply_from.get(table_id)) is not None:
                steps = decoder.decode(table_id, first)
                if steps:
                    tables[table_id] = steps
        marks = [_mark(sequence, message) for sequence, message in self._marks]
        return EventBatch(tables, marks, self.commit_end_lsn, epoch)


def _mark(sequence: int, message: Begin | Commit) -> BeginEvent | CommitEvent:
    time_us = message.commit_time_us + POSTGRES_EPOCH_US
    if isinstance(message, Begin):
        return BeginEvent(message.final_lsn, time_us, message.xid, sequence)
    return CommitEvent(message.commit_lsn, message.end_lsn, time_us, sequence)


class _TableDecoder:
    """Decodes the tables of one batch, one after the other."""

    def __init__(self, batch: RawBatch, schema_of: Callable[[Relation], TableSchema]) -> None:
        import numpy as np

        from etl_dagster.protocol.rows import RowMessages

        self._batch = batch
        self._schema_of = schema_of
        self._messages = RowMessages(batch._buffer, batch._lengths)
        count = len(self._messages)
        self._sequence = _sequence(count, batch._others)
        begins, lsns, times, offsets = zip(*([(0, 0, 0, 0), *batch._segments]), strict=True)
        lengths = np.diff(np.array([*begins, count]))
        #: One element for each row: commit LSN, commit time, ordinal.
        self._lsns = np.repeat(np.array(lsns, np.uint64), lengths)
        self._times = np.repeat(np.array(times, np.int64), lengths)
        self._ordinals = np.arange(count) + np.repeat(np.array(offsets, np.int64), lengths)
        if not self._lsns.all():
            raise DecodeError("a row message outside of a transaction", offset=0)

    def table_ids(self) -> list[TableId]:
        """The tables that the batch has something of, in the order of their first row."""
        import numpy as np

        ids = self._messages.relation_ids
        # Rows of a table mostly come together, so the places where it changes are few.
        heads = ids[np.flatnonzero(np.diff(ids, prepend=-1))]
        return list(dict.fromkeys([*heads.tolist(), *self._batch._barriers]))

    def decode(self, table_id: TableId, first: Lsn) -> list[TableStep]:
        """The table's steps, from the transaction with the commit LSN `first` on."""
        import numpy as np

        is_wanted = self._messages.relation_ids == table_id
        is_wanted &= self._lsns >= np.uint64(first.offset)
        rows = np.flatnonzero(is_wanted)
        steps: list[TableStep] = []
        relation = self._batch._relations.get(table_id)
        done = 0
        for barrier in self._batch._barriers.get(table_id, ()):
            upto = int(np.searchsorted(rows, barrier.row))
            if upto > done:
                steps.append(self._changes(relation, rows[done:upto], table_id))
                done = upto
            if isinstance(barrier, _RelationChange):
                relation = barrier.relation
                if barrier.commit_lsn >= first.offset:
                    schema = self._schema_of(relation)
                    steps.append(RelationEvent(schema, None, barrier.sequence))
            elif barrier.commit_lsn >= first.offset:
                steps.append(self._truncate(relation, barrier, table_id))
        if done < len(rows):
            steps.append(self._changes(relation, rows[done:], table_id))
        return steps

    def _changes(self, relation: Relation | None, rows: Places, table_id: TableId) -> TableChanges:
        from etl_dagster.protocol.rows import decode_rows

        schema = self._schema(relation, table_id)
        decoded = decode_rows(self._messages, rows, schema)
        return TableChanges(
            schema=schema,
            ops=self._messages.ops[rows],
            commit_lsns=self._lsns[rows],
            ordinals=self._ordinals[rows],
            commit_times_us=self._times[rows],
            sequence=self._sequence[rows],
            rows=decoded.rows,
            unchanged=decoded.unchanged,
            old_indices=decoded.old_indices,
            old_rows=decoded.old_rows,
            replaced=decoded.replaced,
        )

    def _truncate(
        self, relation: Relation | None, barrier: _TableTruncate, table_id: TableId
    ) -> TruncateEvent:
        return TruncateEvent(
            self._schema(relation, table_id),
            Position(Lsn(barrier.commit_lsn), barrier.ordinal),
            barrier.sequence,
            barrier.commit_time_us,
            barrier.cascade,
            barrier.restart_identity,
        )

    def _schema(self, relation: Relation | None, table_id: TableId) -> TableSchema:
        if relation is None:
            raise DecodeError(f"a change of relation {table_id}, which was not described", offset=1)
        return self._schema_of(relation)


def _sequence(count: int, others: list[int]) -> Places:
    """The places of `count` rows in the whole batch; `others` has what comes before which row."""
    import numpy as np

    before = np.bincount(np.array(others, np.int64), minlength=count + 1)[:count]
    return np.arange(count) + np.cumsum(before)
