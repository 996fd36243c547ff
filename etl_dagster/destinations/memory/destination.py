"""A destination that keeps its tables in memory."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.evolution import (
    AddColumn,
    DropColumn,
    RenameColumn,
    schema_changes,
)
from etl_dagster.destinations.memory.config import MemoryDestinationConfig
from etl_dagster.errors import InvalidState, Superseded
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Capabilities
from etl_dagster.model.events import (
    DeleteEvent,
    EventBatch,
    InsertEvent,
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
from etl_dagster.model.position import POSITION_ZERO, Position
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import DestinationStore
from etl_dagster.table_name import TableName
from etl_dagster.values.python import to_dicts
from etl_dagster.values.text import missing_object

Row = dict[str, Any]
#: By column name.
Texts = Mapping[str, str]
_NONE_ODD: Mapping[int, Texts] = {}


class MemoryTable:
    """Rows by key; where the table has none, in the order they came.

    Which of them are in quarantine follows from their odd values.
    """

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema
        self._by_key: dict[tuple[Any, ...], Row] = {}
        self._keyless: list[Row] = []
        #: What the columns' types can't hold, by column name: of rows with a key, and of each of
        #: the others, in the same order.
        self._odd: dict[tuple[Any, ...], Texts] = {}
        self._keyless_odd: list[Texts] = []

    @property
    def rows(self) -> list[Row]:
        """The rows of the table, without those in quarantine."""
        if not self.schema.key_columns:
            return list(self._keyless)
        if not self._odd:
            return list(self._by_key.values())
        return [row for key, row in self._by_key.items() if not self._is_quarantined(key)]

    @property
    def quarantined(self) -> list[Row]:
        """The rows with an odd value in a column that keeps them apart from the table."""
        return [row for key, row in self._by_key.items() if self._is_quarantined(key)]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def odd(self) -> list[tuple[Row, Texts]]:
        """The rows with values that their columns' types can't hold, and the texts of these."""
        if self.schema.key_columns:
            return [(self._by_key[key], texts) for key, texts in self._odd.items()]
        pairs = zip(self._keyless, self._keyless_odd, strict=True)
        return [(row, texts) for row, texts in pairs if texts]

    def put(self, rows: Iterable[Row], odd: Mapping[int, Texts] = _NONE_ODD) -> None:
        """Add rows, or replace those with the same keys.

        Args:
            odd: what the columns' types can't hold, by the number of the row.
        """
        for number, row in enumerate(rows):
            texts = odd.get(number, {})
            if not self.schema.key_columns:
                self._keyless.append(row)
                self._keyless_odd.append(texts)
                continue
            key = self._key(row)
            self._by_key[key] = row
            self._odd.pop(key, None)
            if texts:
                self._odd[key] = texts

    def apply(self, event: RowEvent) -> None:
        if isinstance(event, InsertEvent):
            self.put([event.row], {0: event.odd})
        elif isinstance(event, DeleteEvent):
            self._remove(event.row, event.odd)
        else:
            old = event.old_row or {}
            identity = {name: old[name] for name in self.schema.identity_columns if name in old}
            # Postgres leaves out unchanged TOAST values; the identity it always sends.
            odd_before = event.old_odd if identity else event.odd
            before, texts = self._remove(identity or event.row, odd_before)
            kept = {name: identity.get(name, before.get(name)) for name in event.unchanged}
            texts = {name: text for name, text in texts.items() if name in event.unchanged}
            told = {n: text for n, text in event.old_odd.items() if n in event.unchanged}
            self.put([event.row | kept], {0: {**texts, **told, **event.odd}})

    def clear(self) -> None:
        self._by_key.clear()
        self._keyless.clear()
        self._odd.clear()
        self._keyless_odd.clear()

    def evolve(self, schema: TableSchema) -> None:
        """Give all rows another schema; values keep their old type."""
        if schema.describes_same_columns(self.schema):
            return
        rows = list(self._by_key.values() if self.schema.key_columns else self._keyless)
        keyed = [self._odd.get(key, {}) for key in self._by_key]
        odd = [dict(texts) for texts in (keyed if self.schema.key_columns else self._keyless_odd)]
        for change in schema_changes(self.schema, schema):
            for texts in odd:
                match change:
                    case DropColumn(column):
                        texts.pop(column.name, None)
                    case RenameColumn(old_name, new_name) if old_name in texts:
                        texts[new_name] = texts.pop(old_name)
            for row in rows:
                match change:
                    case DropColumn(column):
                        row.pop(column.name, None)
                    case RenameColumn(old_name, new_name):
                        row[new_name] = row.pop(old_name, None)
                    case AddColumn(column):
                        row[column.name] = missing_object(column)
        self.clear()
        self.schema = schema
        self.put(rows, dict(enumerate(odd)))

    def _is_quarantined(self, key: tuple[Any, ...]) -> bool:
        return not self._odd.get(key, {}).keys().isdisjoint(self.schema.quarantine_columns)

    def _key(self, row: Row) -> tuple[Any, ...]:
        return tuple(_hashable(row.get(name)) for name in self.schema.key_columns)

    def _remove(self, row: Row, odd: Texts) -> tuple[Row, Texts]:
        """Take a row away: what it was, and what of it was odd; nothing where there is none."""
        if self.schema.key_columns:
            key = self._key(row)
            return self._by_key.pop(key, {}), self._odd.pop(key, {})
        pairs = zip(self._keyless, self._keyless_odd, strict=True)
        for index, (candidate, texts) in enumerate(pairs):
            if candidate == row and texts == odd:
                return self._keyless.pop(index), self._keyless_odd.pop(index)
        return {}, {}


@dataclass
class _Copy:
    copy_id: str
    table: MemoryTable
    chunks: set[int] = field(default_factory=set)
    is_complete: bool = False


class MemoryDestination:
    """Applies each change exactly once, as a destination with transactions does.

    Read `tables`, or `rows("public.orders")`; `changelog` holds every change that was applied.
    """

    name = "memory"
    capabilities = Capabilities(
        transactional=True, schema_changes=True, odd_values=True, quarantine=True
    )
    config_model = MemoryDestinationConfig
    in_process_only = True

    @classmethod
    def from_config(
        cls, config: MemoryDestinationConfig, pipeline: PipelineConfig
    ) -> MemoryDestination:
        """A destination that holds nothing."""
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
        #: another, and the destination hears of one before the other: the last has it.
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
                self._replace_table(schema, copy, rows.replay_from)
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
                position = self.positions.get(table_id, POSITION_ZERO)
                for step in steps_after(steps, position):
                    table = self.tables.setdefault(table_id, MemoryTable(step.schema))
                    self._apply(table, step)
                    self._name(table.schema)
            self._marks[events.pipeline] = mark.after(events)

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

    def _apply(self, table: MemoryTable, step: TableStep) -> None:
        match step:
            case TableChanges():
                table.evolve(step.schema)
                for event in step.events():
                    table.apply(event)
                    self.changelog.append(event)
                self.positions[step.schema.id] = step.last_position
            case TruncateEvent():
                table.clear()
                self.changelog.append(step)
                self.positions[step.schema.id] = step.position
            case RelationEvent(schema):
                if schema.snapshot_id >= table.schema.snapshot_id:
                    table.evolve(schema)

    def _current_copy(self, schema: TableSchema, copy_id: str) -> _Copy:
        """The copy; one never heard of begins now, and ends the one before."""
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

    def _replace_table(self, schema: TableSchema, copy: _Copy, replay_from: Lsn) -> None:
        self.tables[schema.id] = copy.table
        self._named.pop(schema.id, None)
        self._name(copy.table.schema)
        self.positions[schema.id] = Position.just_before(replay_from)
        self._replay_points[schema.id] = replay_from
        copy.is_complete = True


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in value.items())
    return value
