"""A stretch of the stream as it was received, and how it becomes an `EventBatch`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeAlias, overload

from etl_dagster.errors import DecodeError
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import (
    BeginEvent,
    CommitEvent,
    EventBatch,
    RelationEvent,
    TableChanges,
    TableStep,
    TransactionMark,
    TruncateEvent,
)
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.protocol.alterations import Alteration
from etl_dagster.protocol.frames import XLOG_DATA_HEADER
from etl_dagster.protocol.pgoutput import Relation

if TYPE_CHECKING:
    from etl_dagster.protocol.rows import Places

_HEADER: Final = XLOG_DATA_HEADER.size
#: LSN, time and transaction of a Begin message in its frame; LSN, end and time of a Commit.
BEGIN_FRAME: Final = struct.Struct("!26xQqI")
COMMIT_FRAME: Final = struct.Struct("!27xQQq")
BEGIN, COMMIT = ord("B"), ord("C")
#: Zeros after the last frame.
PADDING: Final = 16
#: Microseconds from 1970-01-01 to 2000-01-01 UTC, where Postgres' clock begins.
POSTGRES_EPOCH_US: Final = 946_684_800_000_000


@dataclass(slots=True)
class OpenTransaction:
    """A transaction of which more may come."""

    commit_lsn: int
    #: Microseconds since 1970-01-01 UTC.
    commit_time_us: int
    #: The ordinal of a row that is the batch's message number n is `n + ordinal_offset`.
    ordinal_offset: int
    xid: int = 0
    #: How many alterations of each table came so far.
    alterations: dict[TableId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RelationChange:
    """A table's rows look otherwise from message number `row` of the batch on."""

    row: int
    sequence: int
    commit_lsn: int
    relation: Relation


@dataclass(frozen=True, slots=True)
class TableTruncate:
    """A table is emptied before message number `row` of the batch."""

    row: int
    sequence: int
    commit_lsn: int
    commit_time_us: int
    ordinal: int
    xid: int
    cascade: bool
    restart_identity: bool


@dataclass(frozen=True, slots=True)
class TableAlteration:
    """The source reports, before message number `row` of the batch, that a table was altered."""

    row: int
    sequence: int
    commit_lsn: int
    #: Counts the table's alterations in the transaction, from 0 on.
    number: int
    alteration: Alteration


Barrier: TypeAlias = RelationChange | TableTruncate | TableAlteration
#: Gives the schema of rows under a Relation message in the transaction with a commit LSN.
SchemaOf: TypeAlias = Callable[[Relation, Lsn], TableSchema]
#: Gives the schema that a table has after an alteration, or None where it stays what it was.
Altered: TypeAlias = Callable[[Alteration, Lsn, int], TableSchema | None]


@dataclass(frozen=True, slots=True)
class Content:
    """The messages of a batch, numbered in the order of the buffer."""

    #: Frames of row, Begin and Commit messages, header and all, and `PADDING` zeros.
    buffer: bytearray
    lengths: list[int]
    #: Known before the batch, by OID.
    relations: Mapping[int, Relation]
    #: By OID, in order.
    barriers: Mapping[int, list[Barrier]]
    #: Numbers of the messages before which something else took a place in the sequence.
    others: list[int]
    #: Numbers of the messages before which a table was truncated.
    truncates: list[int]
    #: The transaction that the batch continues with.
    carried: OpenTransaction | None
    #: How the server sends text, as Python calls it; None: UTF-8.
    codec: str | None = None


@dataclass(frozen=True)
class RawBatch:
    """What was received between two closings of a batch, not decoded yet."""

    #: Commit time of the first transaction of which the batch has something, microseconds since
    #: 1970-01-01 UTC.
    first_commit_time_us: int | None
    #: End of the last transaction that ends in the batch.
    commit_end_lsn: Lsn | None
    #: The last transaction that begins in the batch.
    last_begin: TransactionMark | None
    #: Bytes of all frames.
    byte_count: int
    #: Whether the batch was closed because it held as much as one may hold.
    is_full: bool
    #: What was received, for `decode` alone.
    _content: Content

    def decode(
        self,
        schema_of: SchemaOf,
        apply_from: Mapping[TableId, Lsn],
        epoch: int,
        altered: Altered = lambda alteration, commit_lsn, number: None,
        *,
        block_rows: int | None = None,
    ) -> EventBatch:
        """Decode what is wanted; may be called again, and gives the same.

        Args:
            schema_of: the schema of rows under a Relation message, with the columns in its order;
                asked in the order of the stream, with the commit LSN of their transaction.
            apply_from: the wanted tables, each from the transaction on whose commit LSN is given.
            altered: the schema after an alteration, given with the commit LSN of its transaction
                and its number there; asked in the order of the stream, like `schema_of`.
            block_rows: as of `decode_rows`.

        Raises:
            DecodeError: the batch holds bytes that are not pgoutput.
        """
        tables: dict[TableId, list[TableStep]] = {}
        decoder = _TableDecoder(self._content, schema_of, altered, block_rows)
        for table_id in decoder.table_ids():
            if (first := apply_from.get(table_id)) is not None:
                steps = decoder.decode(table_id, first)
                if steps:
                    tables[table_id] = steps
        return EventBatch(
            tables,
            decoder.marks(),
            self.commit_end_lsn,
            epoch,
            # If writing is too slow for batches that aren't full, they become larger by themselves.
            more_follows=self.is_full,
            last_begin=self.last_begin,
        )


class _Marks(Sequence[BeginEvent | CommitEvent]):
    """Begins and commits, which become objects only for those who look at them."""

    def __init__(self, build: Callable[[], list[BeginEvent | CommitEvent]], count: int) -> None:
        self._build = build
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> BeginEvent | CommitEvent: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BeginEvent | CommitEvent]: ...
    def __getitem__(
        self, index: int | slice
    ) -> BeginEvent | CommitEvent | Sequence[BeginEvent | CommitEvent]:
        return self._events[index]

    def __iter__(self) -> Iterator[BeginEvent | CommitEvent]:
        return iter(self._events)

    @cached_property
    def _events(self) -> list[BeginEvent | CommitEvent]:
        return self._build()


def _mark_events(sequence: Places, frames: list[bytes]) -> list[BeginEvent | CommitEvent]:
    events: list[BeginEvent | CommitEvent] = []
    for number, frame in zip(sequence.tolist(), frames, strict=True):
        if frame[_HEADER] == BEGIN:
            lsn, time_us, xid = BEGIN_FRAME.unpack(frame)
            events.append(BeginEvent(Lsn(lsn), time_us + POSTGRES_EPOCH_US, xid, number))
        else:
            lsn, end_lsn, time_us = COMMIT_FRAME.unpack(frame)
            time_us += POSTGRES_EPOCH_US
            events.append(CommitEvent(Lsn(lsn), Lsn(end_lsn), time_us, number))
    return events


class _TableDecoder:
    """Decodes the tables of one batch, one after the other."""

    def __init__(
        self, content: Content, schema_of: SchemaOf, altered: Altered, block_rows: int | None
    ) -> None:
        import numpy as np

        from etl_dagster.protocol.rows import RowMessages

        self._content = content
        self._schema_of = schema_of
        self._altered = altered
        self._block_rows = block_rows
        self._messages = messages = RowMessages(content.buffer, content.lengths)
        count = len(messages)
        tags = messages.ops
        is_begin, is_commit = tags == BEGIN, tags == COMMIT
        self._is_mark = is_begin | is_commit
        self._sequence = np.arange(count) + _counted(count, content.others)

        # Transactions are numbered from 1 in the batch; 0 continues from the batch before.
        begins = np.flatnonzero(is_begin)
        number = np.cumsum(is_begin)
        carried = content.carried
        is_open = number - np.cumsum(is_commit) + (carried is not None)
        if (is_open[~self._is_mark] != 1).any():
            raise DecodeError("a row message outside of a transaction", offset=0)
        known = carried or OpenTransaction(0, 0, 0)
        lsns, times, xids = messages.begin_fields(begins)
        lsns = np.concatenate([np.array([known.commit_lsn], np.uint64), lsns])
        times = np.concatenate([[known.commit_time_us], times + POSTGRES_EPOCH_US])
        truncated = _counted(count, content.truncates)
        offsets = np.concatenate([[known.ordinal_offset], -1 - begins - truncated[begins]])
        #: One element for each message: commit LSN, commit time, XID, ordinal (of rows only).
        self._lsns = lsns[number]
        self._times = times[number]
        self._xids = np.concatenate([np.array([known.xid], np.uint32), xids])[number]
        self._ordinals = np.arange(count) + truncated + offsets[number]
        self._relation_ids = np.where(self._is_mark, 0, messages.relation_ids)

    def marks(self) -> _Marks:
        """The batch's begins and commits."""
        import numpy as np

        which = np.flatnonzero(self._is_mark)
        sequence, messages = self._sequence[which], self._messages

        def build() -> list[BeginEvent | CommitEvent]:
            return _mark_events(sequence, messages.frames(which))

        return _Marks(build, len(which))

    def table_ids(self) -> list[TableId]:
        """The tables that the batch has something of, in the order of their first row."""
        import numpy as np

        ids = self._relation_ids
        # Rows of a table mostly come together, so the places where it changes are few.
        heads = ids[np.flatnonzero(np.diff(ids, prepend=-1))]
        return [
            found for found in dict.fromkeys([*heads.tolist(), *self._content.barriers]) if found
        ]

    def decode(self, table_id: TableId, first: Lsn) -> list[TableStep]:
        """The table's steps, from the transaction with the commit LSN `first` on."""
        import numpy as np

        is_wanted = self._relation_ids == table_id
        is_wanted &= self._lsns >= np.uint64(first.offset)
        rows = np.flatnonzero(is_wanted)
        steps: list[TableStep] = []
        relation = self._content.relations.get(table_id)
        done = 0
        for barrier in self._content.barriers.get(table_id, ()):
            upto = int(np.searchsorted(rows, barrier.row))
            if upto > done:
                steps.append(self._changes(relation, rows[done:upto], table_id))
                done = upto
            if isinstance(barrier, RelationChange):
                relation = barrier.relation
                if barrier.commit_lsn >= first.offset:
                    schema = self._schema_of(relation, Lsn(barrier.commit_lsn))
                    steps.append(RelationEvent(schema, None, barrier.sequence))
            elif isinstance(barrier, TableAlteration):
                if barrier.commit_lsn >= first.offset:
                    lsn = Lsn(barrier.commit_lsn)
                    altered = self._altered(barrier.alteration, lsn, barrier.number)
                    if altered is not None:
                        steps.append(
                            RelationEvent(altered, None, barrier.sequence, is_altered=True)
                        )
            elif barrier.commit_lsn >= first.offset:
                steps.append(self._truncate(relation, barrier, table_id))
        if done < len(rows):
            steps.append(self._changes(relation, rows[done:], table_id))
        return steps

    def _changes(self, relation: Relation | None, rows: Places, table_id: TableId) -> TableChanges:
        from etl_dagster.protocol.rows import decode_rows

        schema = self._schema(relation, table_id, int(self._lsns[rows[0]]))
        decoded = decode_rows(
            self._messages, rows, schema, self._content.codec, block_rows=self._block_rows
        )
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
            odd=decoded.odd,
            old_odd=decoded.old_odd,
            xids=self._xids[rows],
        )

    def _truncate(
        self, relation: Relation | None, barrier: TableTruncate, table_id: TableId
    ) -> TruncateEvent:
        return TruncateEvent(
            self._schema(relation, table_id, barrier.commit_lsn),
            Position(Lsn(barrier.commit_lsn), barrier.ordinal),
            barrier.sequence,
            barrier.commit_time_us,
            barrier.cascade,
            barrier.restart_identity,
            barrier.xid,
        )

    def _schema(self, relation: Relation | None, table_id: TableId, commit_lsn: int) -> TableSchema:
        if relation is None:
            raise DecodeError(f"a change of relation {table_id}, which was not described", offset=1)
        return self._schema_of(relation, Lsn(commit_lsn))


def _counted(count: int, numbers: list[int]) -> Places:
    """For each of `count` messages, how many of the (ascending) numbers are not above its own."""
    import numpy as np

    if not numbers:
        return np.zeros(count, np.int64)
    at = np.bincount(np.array(numbers, np.int64), minlength=count + 1)[:count]
    return np.cumsum(at)
