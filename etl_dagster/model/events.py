"""What a destination receives: rows of a copy, and changes of a stream, both over Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableId, TableSchema

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from etl_dagster.values.parsed import Odd

#: The values of `TableChanges.ops`: the tags that pgoutput itself uses.
INSERT, UPDATE, DELETE = ord("I"), ord("U"), ord("D")


# -- the copy ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChunkId:
    """Identifies a chunk of one copy, so that a second delivery of it is recognised."""

    copy_id: str
    index: int


@dataclass(frozen=True, slots=True)
class CopiedRows:
    """Some rows of a copy, with the values that their columns' types can't hold."""

    rows: pa.RecordBatch
    #: The values of `rows` that their column's type can't hold, by column name.
    odd: Mapping[str, Odd] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return self.rows.num_rows

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes


class TableRows:
    """Rows of a copy: one whole chunk, or no row at all.

    Without rows (`chunk` is None) it is the end of the copy: every chunk was written before, the
    table must exist from now on, and the whole copy must be durable when the write returns.
    """

    def __init__(
        self,
        copy_id: str,
        batches: Iterable[pa.RecordBatch | CopiedRows] = (),
        chunk: ChunkId | None = None,
        replay_from: Lsn = LSN_ZERO,
        copied_at_us: int | None = None,
    ) -> None:
        #: The copy that the rows belong to; another copy of the same table has another.
        self.copy_id = copy_id
        self.chunk = chunk
        #: Changes of transactions whose commit record begins before this LSN are part of the copy.
        #: A destination that keeps positions sets the table's just before it when the copy ends.
        self.replay_from = replay_from
        #: When the source had these rows, for tables that keep times: microseconds since 1970-01-01
        #: UTC by the source's clock, before the commit of every change that is to be replayed. None
        #: if it was not read.
        self.copied_at_us = copied_at_us
        #: Number of rows that were read in the source but are in no piece (as with `where`); known
        #: once all pieces were read.
        self.left_out = 0
        self._batches = batches

    @property
    def is_end_of_copy(self) -> bool:
        return self.chunk is None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in pieces of some MiB, fetched while you iterate; only once.

        Memory stays bounded, however large the chunk is. Raises what the source raises.
        """
        for piece in self.pieces():
            yield piece.rows

    def pieces(self) -> Iterator[CopiedRows]:
        """As `batches`, each with the values that the columns' types can't hold."""
        batches, self._batches = self._batches, ()
        for batch in batches:
            yield batch if isinstance(batch, CopiedRows) else CopiedRows(batch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows as dictionaries; simple, and slow."""
        from etl_dagster.values.python import to_dicts

        for batch in self.batches():
            yield from to_dicts(batch)


# -- the stream --------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableChanges:
    """Inserts, updates and deletes of one table under one schema, in commit order.

    All arrays are of one length, one element for each change.
    """

    schema: TableSchema
    #: uint8: `INSERT`, `UPDATE` or `DELETE`.
    ops: np.ndarray
    #: uint64: the offset of `Position.commit_lsn`.
    commit_lsns: np.ndarray
    #: int64: `Position.ordinal`.
    ordinals: np.ndarray
    #: int64: commit time, microseconds since 1970-01-01 UTC.
    commit_times_us: np.ndarray
    #: int64: place in the whole batch, across tables and marks.
    sequence: np.ndarray
    #: The new row of an insert or update; of a delete the old row, of which often only the
    #: identity columns are known (the others are null). Schema: `schema.arrow_schema`.
    rows: pa.RecordBatch
    #: Columns in which some update carries an unchanged TOAST value, which Postgres doesn't send:
    #: a bool array for each, true where the value in `rows` is unknown (and null there).
    unchanged: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: int64, ascending: the indexes of the updates that have an old row. Postgres sends one when
    #: the identity changed, and always under REPLICA IDENTITY FULL.
    old_indices: np.ndarray | None = None
    #: The old rows, one for each of `old_indices`; only identity columns are set unless FULL.
    old_rows: pa.RecordBatch | None = None
    #: The values of `rows` that their column's type can't hold, by column name.
    odd: Mapping[str, Odd] = field(default_factory=dict)
    #: Those of `old_rows`.
    old_odd: Mapping[str, Odd] = field(default_factory=dict)
    #: uint32: the transaction's ID; None for changes that no transaction of the source made.
    xids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ops)

    def position(self, index: int) -> Position:
        return Position(Lsn(int(self.commit_lsns[index])), int(self.ordinals[index]))

    @property
    def last_position(self) -> Position:
        return self.position(-1)

    def after(self, position: Position) -> TableChanges | None:
        """The changes past the position: all of them or some; None if there are none."""
        import numpy as np

        lsn = position.commit_lsn.offset
        first = int(np.searchsorted(self.commit_lsns, np.uint64(lsn), side="left"))
        # Within the one transaction that the position may stand in, ordinals ascend.
        end = int(np.searchsorted(self.commit_lsns, np.uint64(lsn), side="right"))
        first += int(np.searchsorted(self.ordinals[first:end], position.ordinal, side="right"))
        if first == 0:
            return self
        return None if first >= len(self) else self.slice(first)

    def slice(self, start: int, stop: int | None = None) -> TableChanges:
        """The changes from `start` up to `stop`, without copying."""
        stop = len(self) if stop is None else stop
        old_indices, old_rows, old_odd = self.old_indices, self.old_rows, self.old_odd
        if old_indices is not None and old_rows is not None:
            low, high = map(int, old_indices.searchsorted([start, stop]))
            old_odd = sliced(old_odd, low, high)
            old_indices, old_rows = old_indices[low:high] - start, old_rows.slice(low, high - low)
        return TableChanges(
            schema=self.schema,
            ops=self.ops[start:stop],
            commit_lsns=self.commit_lsns[start:stop],
            ordinals=self.ordinals[start:stop],
            commit_times_us=self.commit_times_us[start:stop],
            sequence=self.sequence[start:stop],
            rows=self.rows.slice(start, stop - start),
            unchanged={name: mask[start:stop] for name, mask in self.unchanged.items()},
            old_indices=old_indices,
            old_rows=old_rows,
            odd=sliced(self.odd, start, stop),
            old_odd=old_odd,
            xids=None if self.xids is None else self.xids[start:stop],
        )

    def events(self) -> Iterator[RowEvent]:
        """Each change as an object; simple, and slow."""
        from etl_dagster.values.python import to_dicts

        rows, odd = to_dicts(self.rows), odd_by_row(self.odd)
        old: dict[int, dict[str, Any]] = {}
        old_odd: dict[int, dict[str, str]] = {}
        if self.old_indices is not None and self.old_rows is not None:
            places = self.old_indices.tolist()
            old = dict(zip(places, to_dicts(self.old_rows), strict=True))
            old_odd = {places[at]: texts for at, texts in odd_by_row(self.old_odd).items()}
        for index, (op, row) in enumerate(zip(self.ops.tolist(), rows, strict=True)):
            unknown = frozenset(name for name, mask in self.unchanged.items() if mask[index])
            kind = _EVENT_OF_OP[op]
            yield kind(
                schema=self.schema,
                position=self.position(index),
                sequence=int(self.sequence[index]),
                commit_time_us=int(self.commit_times_us[index]),
                row={name: value for name, value in row.items() if name not in unknown},
                old_row=old.get(index),
                unchanged=unknown,
                odd=odd.get(index, _NO_TEXTS),
                old_odd=old_odd.get(index, _NO_TEXTS),
                xid=None if self.xids is None else int(self.xids[index]),
            )


_NO_TEXTS: Mapping[str, str] = {}


def odd_by_row(odd: Mapping[str, Odd]) -> dict[int, dict[str, str]]:
    """The texts of odd values by column name, for each row that has one, by its place."""
    rows: dict[int, dict[str, str]] = {}
    for name, each in odd.items():
        texts: list[Any] = each.texts.to_pylist()
        for place, text in zip(each.places.tolist(), texts, strict=True):
            rows.setdefault(place, {})[name] = text
    return rows


def sliced(odd: Mapping[str, Odd], start: int, stop: int) -> dict[str, Odd]:
    """The odd values of the rows from `start` up to `stop`."""
    parts = ((name, each.slice(start, stop)) for name, each in odd.items())
    return {name: part for name, part in parts if part is not None}


@dataclass(frozen=True, slots=True)
class RowEvent:
    """One change of one row; the concrete class says which."""

    schema: TableSchema
    position: Position
    sequence: int
    commit_time_us: int
    #: Column name to value. Of a delete, the old row's known columns. Lacks `unchanged` columns.
    row: dict[str, Any]
    old_row: dict[str, Any] | None
    unchanged: frozenset[str]
    #: By column name, the values of `row` that the column's type can't hold, as Postgres printed
    #: them.
    odd: Mapping[str, str] = field(default_factory=dict)
    #: Those of `old_row`.
    old_odd: Mapping[str, str] = field(default_factory=dict)
    #: The transaction's ID; None where no transaction of the source made the change.
    xid: int | None = None


class InsertEvent(RowEvent):
    """A new row."""

    __slots__ = ()


class UpdateEvent(RowEvent):
    """A row's new values; `old_row` is set when its identity changed, or under FULL."""

    __slots__ = ()


class DeleteEvent(RowEvent):
    """A row is gone; `row` identifies it."""

    __slots__ = ()


_EVENT_OF_OP: dict[int, type[RowEvent]] = {
    INSERT: InsertEvent,
    UPDATE: UpdateEvent,
    DELETE: DeleteEvent,
}


@dataclass(frozen=True, slots=True)
class TruncateEvent:
    """All rows of the table are gone."""

    schema: TableSchema
    position: Position
    sequence: int
    commit_time_us: int
    cascade: bool = False
    restart_identity: bool = False
    #: As `RowEvent.xid`.
    xid: int | None = None


@dataclass(frozen=True, slots=True)
class RelationEvent:
    """From here on the table has this schema; `schema.snapshot_id` names the version."""

    schema: TableSchema
    #: The schema before; None when the destination has not seen the table yet.
    previous: TableSchema | None
    sequence: int
    #: Whether the source reported the schema change itself, so that it holds even if no row
    #: follows. Else it was noticed by the change that comes next.
    is_altered: bool = False


@dataclass(frozen=True, slots=True)
class BeginEvent:
    """A transaction begins."""

    commit_lsn: Lsn
    commit_time_us: int
    xid: int
    sequence: int


@dataclass(frozen=True, slots=True)
class CommitEvent:
    """A transaction is complete; `end_lsn` is what progress is counted in."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int
    sequence: int


Event: TypeAlias = RowEvent | TruncateEvent | RelationEvent | BeginEvent | CommitEvent
#: What one table's part of a batch is made of; truncates and relations are barriers in it.
TableStep: TypeAlias = TableChanges | TruncateEvent | RelationEvent


def steps_after(steps: Sequence[TableStep], position: Position) -> list[TableStep]:
    """The steps of a table that lie past its position.

    A RelationEvent belongs to the change that follows it; at the end it stays by itself. So changes
    from before a schema change, if they are sent again, don't undo it.
    """
    left: list[TableStep] = []
    relation: RelationEvent | None = None
    for step in steps:
        if isinstance(step, RelationEvent):
            relation = step
            continue
        rest: TableStep | None
        if isinstance(step, TableChanges):
            rest = step.after(position)
        else:
            rest = step if step.position > position else None
        if rest is not None:
            left += [rest] if relation is None else [relation, rest]
        relation = None
    return left if relation is None else [*left, relation]


class TransactionMark(NamedTuple):
    """Distinguishes a transaction from another one that a restored server puts in its place.

    A server that continues from a copy of its data may give the same LSN and the same number to
    another transaction, but not at the same microsecond.
    """

    commit_lsn: Lsn = LSN_ZERO
    xid: int = 0
    #: Microseconds since 1970-01-01 UTC, by the source's clock.
    commit_time_us: int = 0


#: Before the first one.
NO_TRANSACTION = TransactionMark()


@dataclass(frozen=True)
class EventBatch:
    """A stretch of the stream. A transaction larger than a batch spans several.

    `tables` is for destinations that read columns: per table, its steps in order. Iterating gives
    every event, marks included, in the order of the stream.
    """

    tables: Mapping[TableId, Sequence[TableStep]]
    marks: Sequence[BeginEvent | CommitEvent] = ()
    #: `CommitEvent.end_lsn` of the last transaction that ends in the batch, if one does. Once the
    #: batch is durable, so is everything that was committed before.
    commit_end_lsn: Lsn | None = None
    #: Fences a stalled older process: a destination with transactions refuses a smaller epoch
    #: than it has seen. 0 asks for no fence.
    epoch: int = 0
    #: The LSN from which on its sender applies each table. If it is smaller than
    #: `TableRows.replay_from` of the table's current copy, the sender does not know of that copy
    #: yet, and a destination with positions ignores the table's changes.
    apply_from: Mapping[TableId, Lsn] = field(default_factory=dict)
    #: The pipeline that sends the batch; a destination that keeps marks has one for each pipeline.
    pipeline: str = ""
    #: The store's progress when the apply worker sent this; zero from other workers. If the store
    #: has less later, it was restored to an earlier point.
    stored_lsn: Lsn = LSN_ZERO
    #: A hint: the next batch will come soon. A destination may keep open what it would close
    #: otherwise.
    more_follows: bool = False
    #: The newest transaction that begins in the batch, if one does.
    last_begin: TransactionMark | None = None

    def is_outdated(self, table_id: TableId, replay_from: Lsn | None) -> bool:
        """Whether the sender does not know of the table's current copy; see `apply_from`.

        Args:
            replay_from: `TableRows.replay_from` of that copy, None before the first.
        """
        applied_from = self.apply_from.get(table_id)
        return replay_from is not None and applied_from is not None and applied_from < replay_from

    @cached_property
    def row_count(self) -> int:
        return sum(
            len(step)
            for steps in self.tables.values()
            for step in steps
            if isinstance(step, TableChanges)
        )

    @property
    def row_bytes(self) -> int:
        """Memory that the changed rows take as Arrow columns."""
        return sum(
            step.rows.nbytes
            for steps in self.tables.values()
            for step in steps
            if isinstance(step, TableChanges)
        )

    @property
    def is_empty(self) -> bool:
        """Nothing for a destination to do (marks alone change nothing)."""
        return not any(self.tables.values())

    def __iter__(self) -> Iterator[Event]:
        import heapq

        def one_table(steps: Sequence[TableStep]) -> Iterator[Event]:
            for step in steps:
                if isinstance(step, TableChanges):
                    yield from step.events()
                else:
                    yield step

        streams: list[Iterable[Event]] = [one_table(steps) for steps in self.tables.values()]
        streams.append(self.marks)
        return heapq.merge(*streams, key=lambda event: event.sequence)


def truncates(events: EventBatch) -> Iterator[tuple[TableId, int]]:
    """The tables that the batch truncates, each with the transaction's ID.

    A truncate is left out if its transaction began in an earlier batch: the ID isn't known then.
    """
    found = [
        (table_id, step.position.commit_lsn)
        for table_id, steps in events.tables.items()
        for step in steps
        if isinstance(step, TruncateEvent)
    ]
    if found:
        xids = {mark.commit_lsn: mark.xid for mark in events.marks if isinstance(mark, BeginEvent)}
        yield from ((table_id, xids[lsn]) for table_id, lsn in found if lsn in xids)
