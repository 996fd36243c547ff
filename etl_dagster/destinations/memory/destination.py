"""A destination that keeps its tables in memory."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pyarrow as pa

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.memory.config import MemoryDestinationConfig
from etl_dagster.destinations.memory.kept import can_continue, kept_table, table_of
from etl_dagster.destinations.memory.tables import MemoryTable, Row, Texts
from etl_dagster.errors import InvalidState, Superseded, TableRewritten
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Capabilities
from etl_dagster.model.events import (
    EventBatch,
    RelationEvent,
    RowEvent,
    TableChanges,
    TableRows,
    TableStep,
    TruncateEvent,
    odd_by_row,
    steps_after,
)
from etl_dagster.model.identity import DestinationMark, HeldCopy
from etl_dagster.model.modes import MODES
from etl_dagster.model.position import POSITION_ZERO, Position
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import DestinationStore
from etl_dagster.table_name import TableName
from etl_dagster.values.python import to_dicts


@dataclass
class _Copy:
    copy_id: str
    table: MemoryTable
    chunks: set[int] = field(default_factory=set)
    is_complete: bool = False
    #: Whether the table itself is repaired, and gets no changes until the end.
    is_repair: bool = False


class MemoryDestination:
    """Applies each change exactly once, as a destination with transactions does.

    Read `tables`, or `rows("public.orders")`; `changelog` holds every change that was applied.
    """

    name = "memory"
    capabilities = Capabilities(
        transactional=True,
        schema_changes=True,
        odd_values=True,
        quarantine=True,
        modes=frozenset(MODES),
    )
    config_model = MemoryDestinationConfig
    in_process_only = True

    @classmethod
    def from_config(
        cls, config: MemoryDestinationConfig, pipeline: PipelineConfig
    ) -> MemoryDestination:
        """An empty destination."""
        return cls()

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.tables: dict[TableId, MemoryTable] = {}
        self.positions: dict[TableId, Position] = {}
        self._replay_points: dict[TableId, Lsn] = {}
        #: Row changes and truncates in the order in which they were applied, skipped ones left out.
        self.changelog: list[RowEvent | TruncateEvent] = []
        self._copies: dict[TableId, _Copy] = {}
        self._ended_copies: dict[TableId, set[str]] = {}
        #: Another one in each process: what an earlier process wrote is gone.
        self._identity = str(uuid.uuid4())
        #: By pipeline.
        self._marks: dict[str, DestinationMark] = {}
        #: The tables in the order in which they got their names. A name may pass from one to
        #: another, and the destination learns of one before the other: the last has it.
        self._named: dict[TableId, str] = {}

    def rows(self, table_name: str) -> list[Row]:
        """The rows of a table, given as ``schema.table``; empty while there is no such table.

        Raises:
            ValueError: that isn't the text of a `TableName`.
        """
        with self._lock:
            table = self._find(table_name)
            return [] if table is None else [dict(row) for row in table.rows]

    def quarantined_rows(self, table_name: str) -> list[Row]:
        """The rows that are kept apart from a table, given as ``schema.table``.

        `odd_values` has the values for which they are.
        """
        with self._lock:
            table = self._find(table_name)
            return [] if table is None else [dict(row) for row in table.quarantined]

    def odd_values(self, table_name: str) -> list[tuple[Row, Texts]]:
        """The rows of a table with values that their columns' types can't hold.

        Each with these values by column name, as Postgres printed them.
        """
        with self._lock:
            found = self._find(table_name)
            return [] if found is None else [(dict(row), texts) for row, texts in found.odd]

    def _find(self, table_name: str) -> MemoryTable | None:
        name = str(TableName.parse(table_name))
        named = (self.tables[table_id] for table_id in reversed(self._named))
        return next((table for table in named if table.schema.name == name), None)

    def startup(self, store: DestinationStore) -> None:
        """Nothing to prepare."""

    def shutdown(self) -> None:
        """Nothing to release."""

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        with self._lock:
            if copy := self._copies.pop(schema.id, None):
                self._ended_copies.setdefault(schema.id, set()).add(copy.copy_id)
            self.positions.pop(schema.id, None)

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        with self._lock:
            copy = self._current_copy(schema, rows.copy_id)
            if copy.is_complete:
                return
            if rows.chunk is None:
                self._replace_table(schema, copy, rows)
                return
            if rows.chunk.index in copy.chunks:
                return
        # The source is slow: read it without the lock, as other tables are written meanwhile.
        arrived = [(to_dicts(piece.rows), odd_by_row(piece.odd)) for piece in rows.pieces()]
        with self._lock:
            copy = self._current_copy(schema, rows.copy_id)
            if rows.chunk.index not in copy.chunks:
                copy.chunks.add(rows.chunk.index)
                for part, odd in arrived:
                    copy.table.put(part, odd)

    def write_events(self, events: EventBatch) -> None:
        with self._lock:
            mark = self._mark(events.pipeline)
            if events.epoch and events.epoch < mark.epoch:
                raise Superseded(f"epoch {events.epoch} was followed by epoch {mark.epoch}")
            for table_id, steps in events.tables.items():
                if events.is_outdated(table_id, self._replay_points.get(table_id)):
                    continue
                if self._is_between_copies(table_id):
                    continue
                position = self.positions.get(table_id, POSITION_ZERO)
                for step in steps_after(steps, position):
                    table = self.tables.setdefault(table_id, table_of(step.schema))
                    self._apply(table, step)
                    self._name(table.schema)
            self._marks[events.pipeline] = mark.after(events)

    # -- repairs -------------------------------------------------------------------------------

    @contextmanager
    def read_rows(self, schema: TableSchema) -> Iterator[Iterator[pa.RecordBatch]]:
        """The rows of a table as of one moment. See `ReadsRows`."""
        with self._lock:
            table = self.tables.get(schema.id)
            if table is None or table.schema.column_names != schema.column_names:
                raise TableRewritten(f"{schema.name} has other columns, or is not there")
            rows = table.rows
        yield iter([_as_arrow(schema, rows)])

    def as_read(self, schema: TableSchema, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows as `read_rows` gives them once they are written."""
        return _as_arrow(schema, to_dicts(rows))

    def begin_repair(self, schema: TableSchema, repair_id: str) -> None:
        """See `RepairsTables`."""
        with self._lock:
            table = self.tables.get(schema.id)
            if table is None or _likeness(table.schema) != _likeness(schema):
                raise TableRewritten(f"{schema.name} is another table here, or is not there")
            self._current_copy(schema, repair_id).is_repair = True
            self.positions.pop(schema.id, None)

    def write_repair(self, changes: TableChanges, repair_id: str) -> None:
        """See `RepairsTables`."""
        table_id = changes.schema.id
        with self._lock:
            copy = self._current_copy(changes.schema, repair_id)
            if not copy.is_repair or copy.is_complete:
                raise InvalidState(f"{repair_id} is not a repair under way")
            for event in changes.events():
                self.tables[table_id].apply(event)

    def end_repair(self, schema: TableSchema, repair_id: str, replay_from: Lsn) -> None:
        """See `RepairsTables`."""
        with self._lock:
            copy = self._current_copy(schema, repair_id)
            if copy.is_complete:
                return
            self.positions[schema.id] = Position.just_before(replay_from)
            self._replay_points[schema.id] = replay_from
            copy.is_complete = True

    # -- the mark ------------------------------------------------------------------------------

    def read_mark(self, pipeline: str) -> DestinationMark:
        with self._lock:
            return self._mark(pipeline)

    def held_copies(self, table_ids: Collection[TableId]) -> Mapping[TableId, HeldCopy]:
        with self._lock:
            return {
                table_id: HeldCopy(copy.copy_id, copy.is_complete, frozenset(copy.chunks))
                for table_id in table_ids
                if (copy := self._copies.get(table_id)) is not None
            }

    def written_revision(self, pipeline: str) -> int:
        return self._mark(pipeline).revision

    def _mark(self, pipeline: str) -> DestinationMark:
        return self._marks.get(pipeline, DestinationMark(self._identity))

    # ------------------------------------------------------------------------------------------

    def _name(self, schema: TableSchema) -> None:
        if self._named.get(schema.id) != schema.name:
            self._named.pop(schema.id, None)
            self._named[schema.id] = schema.name

    def _is_between_copies(self, table_id: TableId) -> bool:
        """Whether changes of a table are skipped until its copy is complete.

        What it keeps would otherwise be there twice, from before the copy and from after it.
        """
        table, copy = self.tables.get(table_id), self._copies.get(table_id)
        if copy is not None and copy.is_repair and not copy.is_complete:
            return True
        if table is None or table.schema.mode == "mirror" or (copy and copy.is_complete):
            return False
        return copy is not None or table_id in self._ended_copies

    def _apply(self, table: MemoryTable, step: TableStep) -> None:
        match step:
            case TableChanges():
                table.evolve(step.schema)
                for event in step.events():
                    table.apply(event)
                    self.changelog.append(event)
                self.positions[step.schema.id] = step.last_position
            case TruncateEvent():
                table.truncate(step)
                self.changelog.append(step)
                self.positions[step.schema.id] = step.position
            case RelationEvent(schema):
                if schema.snapshot_id >= table.schema.snapshot_id:
                    table.evolve(schema)

    def _current_copy(self, schema: TableSchema, copy_id: str) -> _Copy:
        """The copy with this ID; an unknown one begins now, and ends the one before."""
        copy = self._copies.get(schema.id)
        if copy is not None and copy.copy_id == copy_id:
            return copy
        ended = self._ended_copies.setdefault(schema.id, set())
        if copy_id in ended:
            raise InvalidState(f"a newer copy of {schema.name} has begun than {copy_id}")
        if copy is not None:
            ended.add(copy.copy_id)
        copy = self._copies[schema.id] = _Copy(copy_id, MemoryTable(schema))
        return copy

    def _replace_table(self, schema: TableSchema, copy: _Copy, rows: TableRows) -> None:
        moment = CopyMoment.of(rows)
        before = self.tables.get(schema.id)
        if (
            before is not None
            and before.schema.mode != "mirror"
            and not can_continue(before, schema)
        ):
            self._retire(before)
            before = None
        self.tables[schema.id] = kept_table(schema, copy.table, before, moment)
        self._named.pop(schema.id, None)
        self._name(schema)
        self.positions[schema.id] = moment.position
        self._replay_points[schema.id] = rows.replay_from
        copy.is_complete = True

    def _retire(self, table: MemoryTable) -> None:
        """Keep what a new copy doesn't continue with, under another name."""
        schema = table.schema
        named = replace(schema, table_name=f"{schema.table_name}__{schema.mode}_{schema.id}")
        table.schema = replace(named, id=-schema.id)
        self.tables[-schema.id] = table
        self._name(table.schema)


def _likeness(schema: TableSchema) -> tuple[object, ...]:
    """What must be the same, so that a row of one is a row of the other under the same key."""
    return (schema.name, schema.mode, schema.key_columns, schema.type_oids)


def _as_arrow(schema: TableSchema, rows: list[Row]) -> pa.RecordBatch:
    try:
        return pa.RecordBatch.from_pylist(rows, schema=schema.arrow_schema)
    except (pa.ArrowException, OverflowError, TypeError):
        raise InvalidState(
            f"{schema.name} holds values that can't be converted back to Arrow",
            solution="Compare them where they are kept in another way.",
        ) from None
