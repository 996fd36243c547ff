"""Destinations with one defect each. `promise` is the check that must fail; the first have none.

Not collected with the other tests: `test_broken.py` runs this file on its own.
"""

from __future__ import annotations

import base64
import json
import pickle
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from etl_dagster.destinations.evolution import DropColumn, RenameColumn, schema_changes
from etl_dagster.destinations.memory import MemoryDestination, MemoryTable
from etl_dagster.errors import DestinationError, InvalidState
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Capabilities, CountsRows, Destination, WriteResult
from etl_dagster.model.events import (
    DeleteEvent,
    EventBatch,
    InsertEvent,
    RowEvent,
    TableChanges,
    TableRows,
    TableStep,
    TruncateEvent,
    UpdateEvent,
)
from etl_dagster.model.identity import DestinationMark, HeldCopy
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.stores import DestinationStore
from etl_dagster.testing import DestinationSuite, Recorded
from etl_dagster.testing.changes import Row
from etl_dagster.values.digest import RowHashes, hash_rows

# -- without a defect: in memory, exactly once -------------------------------------------------


class TestInMemory(DestinationSuite):
    promise: ClassVar[str | None] = None
    destination_class: ClassVar[type[MemoryDestination]] = MemoryDestination
    durable = False

    def make_destination(self, folder: Path) -> MemoryDestination:
        return self.destination_class()

    def read_rows(self, destination: Any, schema: TableSchema) -> list[Row]:
        rows: list[Row] = destination.rows(schema.name)
        return rows

    def table_exists(self, destination: Any, schema: TableSchema) -> bool:
        return any(table.schema.name == schema.name for table in destination.tables.values())

    def read_quarantined(self, destination: Any, schema: TableSchema) -> list[Row]:
        rows: list[Row] = destination.quarantined_rows(schema.name)
        return rows

    def read_changes(self, destination: Any, schema: TableSchema) -> list[Recorded]:
        return [
            Recorded(
                type(event).__name__[0],
                event.position.commit_lsn.offset,
                event.position.ordinal,
                getattr(event, "row", None),
            )
            for event in destination.changelog
            if event.schema.id == schema.id
        ]


# -- without a defect: in a file, exactly once, by futures -------------------------------------


class FileDestination(MemoryDestination):
    """Everything in one file, which a thread of its own writes again after each call."""

    name = "file"
    kept: ClassVar[tuple[str, ...]] = (
        *("tables", "positions", "changelog"),
        *("_replay_points", "_copies", "_ended_copies", "_identity", "_marks", "_named"),
    )

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._writer = ThreadPoolExecutor(1)

        #: Of the threads that write here; the one that saves needs `_lock`.
        self._turn = threading.Lock()
        self._pending: Future[None] | None = None

    def startup(self, store: DestinationStore) -> None:
        self.load()

    def load(self) -> None:
        """What this object wrote last, or another since."""
        if self._pending is not None:
            self._pending.result()
        if self.path.exists():
            vars(self).update(pickle.loads(self.path.read_bytes()))

    def save(self) -> None:
        with self._lock:
            content = pickle.dumps({name: getattr(self, name) for name in self.kept})
            aside = self.path.with_suffix(f".{id(self)}")
            aside.write_bytes(content)
            aside.replace(self.path)

    def saved(self, write: Callable[..., None], *arguments: Any) -> WriteResult:
        with self._turn:
            self.load()
            write(*arguments)
            self._pending = self._writer.submit(self.save)
            return self._pending

    def begin_repair(self, schema: TableSchema, repair_id: str) -> None:
        self._wait(self.saved(super().begin_repair, schema, repair_id))

    def write_repair(self, changes: TableChanges, repair_id: str) -> WriteResult:  # type: ignore[override]
        return self.saved(super().write_repair, changes, repair_id)

    def end_repair(self, schema: TableSchema, repair_id: str, replay_from: Lsn) -> None:
        self._wait(self.saved(super().end_repair, schema, repair_id, replay_from))

    @staticmethod
    def _wait(result: WriteResult) -> None:
        assert result is not None
        result.result()

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        with self._turn:
            self.load()
            super().drop_table_for_copy(schema)
            self.save()

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> WriteResult:  # type: ignore[override]
        return self.saved(super().write_table_rows, schema, rows)

    def write_events(self, events: EventBatch) -> WriteResult:  # type: ignore[override]
        return self.saved(super().write_events, events)

    def shutdown(self) -> None:
        self._writer.shutdown()


class TestInAFile(TestInMemory):
    destination_class: ClassVar[Any] = FileDestination
    durable = True

    def make_destination(self, folder: Path) -> FileDestination:
        self.path = folder / "tables.pickle"
        made: FileDestination = self.destination_class(self.path)
        return made

    def _as_others_see_it(self) -> FileDestination:
        reader = FileDestination(self.path)
        reader.startup(None)  # type: ignore[arg-type]
        return reader

    def read_rows(self, destination: Any, schema: TableSchema) -> list[Row]:
        return super().read_rows(self._as_others_see_it(), schema)

    def table_exists(self, destination: Any, schema: TableSchema) -> bool:
        return super().table_exists(self._as_others_see_it(), schema)

    def read_quarantined(self, destination: Any, schema: TableSchema) -> list[Row]:
        return super().read_quarantined(self._as_others_see_it(), schema)

    def read_changes(self, destination: Any, schema: TableSchema) -> list[Recorded]:
        return super().read_changes(self._as_others_see_it(), schema)


# -- without a defect: JSON documents by key, at least once ------------------------------------


def _spelled(row: Row) -> Row:
    def spell(value: Any) -> Any:
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        if isinstance(value, list):
            return [spell(part) for part in value]
        if isinstance(value, dict):
            return _spelled(value)
        return value if value is None or isinstance(value, str | float | bool) else str(value)

    return {name: spell(value) for name, value in row.items()}


class DocumentDestination:
    """A folder for each table, a JSON file for each row; reads events one by one."""

    name = "documents"
    capabilities = Capabilities()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def startup(self, store: DestinationStore) -> None:
        """Nothing to prepare."""

    def shutdown(self) -> None:
        """Nothing to release."""

    def copy_folder(self, schema: TableSchema, copy_id: str) -> Path:
        return self.folder / f"{schema.name}.copy"

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        for file in self.copy_folder(schema, "").glob("*"):
            file.unlink()

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        aside, table = self.copy_folder(schema, rows.copy_id), self.folder / schema.name
        aside.mkdir(exist_ok=True)
        for place, row in enumerate(rows):
            key = self.key(schema, row) if schema.key_columns else None
            # Without a key, a chunk delivered again finds its own files.
            name = key or f"copy-{rows.chunk.index if rows.chunk else 0}-{place}"
            self.put(aside, name, row)
        if rows.is_end_of_copy:
            for old in table.glob("*"):
                old.unlink()
            if table.exists():
                table.rmdir()
            aside.rename(table)

    def write_events(self, events: EventBatch) -> None:
        for event in events:
            match event:
                case InsertEvent() | UpdateEvent() | DeleteEvent():
                    self.apply(event)
                case TruncateEvent(schema):
                    for file in (self.folder / schema.name).glob("*"):
                        file.unlink()

    def apply(self, event: RowEvent) -> None:
        schema, table = event.schema, self.folder / event.schema.name
        gone = event.row if isinstance(event, DeleteEvent) else event.old_row
        row = event.row
        if isinstance(event, UpdateEvent):
            before = self.take(table, schema, event.old_row or event.row) or {}
            row = row | {name: before.get(name) for name in event.unchanged}
        elif gone is not None:
            self.take(table, schema, gone)
        if not isinstance(event, DeleteEvent):
            position = event.position
            name = f"{position.commit_lsn.offset}-{position.ordinal}"
            self.put(table, self.key(schema, row) if schema.key_columns else name, row)

    def take(self, table: Path, schema: TableSchema, row: Row) -> Row | None:
        """Remove a row: the one with this key, or one that equals it."""
        if schema.key_columns:
            found = [table / self.key(schema, row)]
        else:
            wanted = json.loads(json.dumps(_spelled(row)))
            found = [file for file in table.glob("*") if json.loads(file.read_text()) == wanted]
        if not found or not found[0].exists():
            return None
        before: Row = json.loads(found[0].read_text())
        found[0].unlink()
        return before

    def key(self, schema: TableSchema, row: Row) -> str:
        return "key-" + "-".join(str(row[name]) for name in schema.key_columns)

    def put(self, table: Path, name: str, row: Row) -> None:
        (table / name).write_text(json.dumps(_spelled(row)))


class TestDocuments(DestinationSuite):
    promise: ClassVar[str | None] = None
    destination_class: ClassVar[type[DocumentDestination]] = DocumentDestination

    def make_destination(self, folder: Path) -> DocumentDestination:
        self.folder = folder
        return self.destination_class(folder)

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        files = sorted((self.folder / schema.name).glob("*"))
        return [json.loads(file.read_text()) for file in files]

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        return (self.folder / schema.name).exists()


# -- without a defect: a log of every change, at least once ------------------------------------


class LogDestination:
    """Appends what comes to a file for each table, one line of JSON each."""

    name = "log"
    capabilities = Capabilities(mirror=False, schema_changes=True)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def startup(self, store: DestinationStore) -> None:
        """Nothing to prepare."""

    def shutdown(self) -> None:
        """Nothing to release."""

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        self.path(schema).unlink(missing_ok=True)

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        self.append(schema, *({"op": "copy", "row": _spelled(row)} for row in rows))

    def write_events(self, events: EventBatch) -> None:
        for event in events:
            if isinstance(event, RowEvent | TruncateEvent):
                self.append(event.schema, self.line(event))

    def line(self, event: RowEvent | TruncateEvent) -> Row:
        return {
            "op": type(event).__name__[0],
            "lsn": event.position.commit_lsn.offset,
            "ordinal": event.position.ordinal,
            "row": _spelled(event.row) if isinstance(event, RowEvent) else None,
        }

    def append(self, schema: TableSchema, *lines: Row) -> None:
        with self._lock, self.path(schema).open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def path(self, schema: TableSchema) -> Path:
        return self.folder / f"{schema.id}.jsonl"


class TestLog(DestinationSuite):
    promise: ClassVar[str | None] = None
    destination_class: ClassVar[type[LogDestination]] = LogDestination

    def make_destination(self, folder: Path) -> LogDestination:
        self.folder = folder
        return self.destination_class(folder)

    def _lines(self, schema: TableSchema) -> Iterator[Row]:
        text = (self.folder / f"{schema.id}.jsonl").read_text()
        return map(json.loads, text.splitlines())

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        return [line["row"] for line in self._lines(schema) if line["op"] == "copy"]

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        return (self.folder / f"{schema.id}.jsonl").exists()

    def read_changes(self, destination: Destination, schema: TableSchema) -> list[Recorded]:
        return [
            Recorded(line["op"], line["lsn"], line["ordinal"], line["row"])
            for line in self._lines(schema)
            if line["op"] != "copy"
        ]


# -- the copy ----------------------------------------------------------------------------------


class TestAnEmptyTableIsNotCreated(TestInMemory):
    promise = "test_the_end_of_a_copy_without_rows_leaves_an_empty_table"

    class destination_class(MemoryDestination):
        def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
            super().write_table_rows(schema, rows)
            if not self.rows(schema.name):
                self.tables.pop(schema.id, None)


class TestAChunkIsAppliedTwice(TestInMemory):
    promise = "test_a_chunk_delivered_twice_is_there_once"

    class destination_class(MemoryDestination):
        def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
            if (copy := self._copies.get(schema.id)) and not copy.is_complete:
                copy.chunks.clear()
            super().write_table_rows(schema, rows)


class TestHalfOfAChunkStaysWhenTheSourceFails(TestInMemory):
    promise = "test_a_chunk_whose_source_fails_leaves_nothing"

    class destination_class(MemoryDestination):
        def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
            arrived: list[Row] = []
            try:
                arrived.extend(row for row in _noting(rows, arrived))
            finally:
                if rows.chunk:
                    table = self._current_copy(schema, rows.copy_id).table
                    table.put(arrived)
                else:
                    super().write_table_rows(schema, rows)


def _noting(rows: TableRows, arrived: list[Row]) -> Iterator[Row]:
    for row in rows:
        arrived.append(row)
    yield from ()


class TestAFailureOfTheSourceIsSwallowed(TestInMemory):
    promise = "test_a_chunk_whose_source_fails_can_be_written_again"

    class destination_class(MemoryDestination):
        def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
            try:
                super().write_table_rows(schema, rows)
            except ConnectionError:
                return


class TestTheNextCopyIsAddedToTheOldRows(TestInMemory):
    promise = "test_the_end_of_the_next_copy_replaces_the_rows"

    class destination_class(MemoryDestination):
        def _replace_table(self, schema: TableSchema, copy: Any, rows: TableRows) -> None:
            old = self.tables.get(schema.id)
            new = copy.table.rows
            if old is not None:
                copy.table.put(old.rows)
                copy.table.put(new)
            super()._replace_table(schema, copy, rows)


class TestTheOldRowsVanishWhileTheNewCopyLoads(TestInMemory):
    promise = "test_the_old_rows_stay_readable_until_the_next_copy_is_complete"

    class destination_class(MemoryDestination):
        def drop_table_for_copy(self, schema: TableSchema) -> None:
            super().drop_table_for_copy(schema)
            if table := self.tables.get(schema.id):
                table.clear()


class TestAWorkerOfAnOldCopyIsAccepted(TestInMemory):
    promise = "test_a_worker_of_a_copy_that_was_given_up_is_refused"

    class destination_class(MemoryDestination):
        def _current_copy(self, schema: TableSchema, copy_id: str) -> Any:
            self._ended_copies.clear()
            return super()._current_copy(schema, copy_id)


class TestAnAbandonedCopyGoesIntoTheNext(TestInMemory):
    promise = "test_an_abandoned_copy_adds_nothing_to_the_next"

    class destination_class(MemoryDestination):
        def _current_copy(self, schema: TableSchema, copy_id: str) -> Any:
            copy = self._copies.get(schema.id)
            if copy is not None and copy_id not in self._ended_copies.get(schema.id, ()):
                copy.copy_id = copy_id
            return super()._current_copy(schema, copy_id)


class TestChunksBeforeADropStay(TestDocuments):
    promise = "test_dropping_for_a_copy_forgets_the_chunks_before"

    class destination_class(DocumentDestination):
        def drop_table_for_copy(self, schema: TableSchema) -> None:
            """Later."""


class TestTwoTablesShareTheFolderOfTheirCopies(TestDocuments):
    promise = "test_the_copies_of_two_tables_do_not_meet"

    class destination_class(DocumentDestination):
        def copy_folder(self, schema: TableSchema, copy_id: str) -> Path:
            return self.folder / f"{copy_id}.copy"


class TestAChunkReplacesTheOneBefore(TestDocuments):
    promise = "test_a_copy_holds_the_rows_of_all_its_chunks"

    class destination_class(DocumentDestination):
        def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
            if rows.chunk:
                super().drop_table_for_copy(schema)
            super().write_table_rows(schema, rows)


class TestChangesBeforeTheCopyAreApplied(TestInMemory):
    promise = "test_changes_from_before_the_copy_are_skipped_and_those_since_applied"

    class destination_class(MemoryDestination):
        def _replace_table(self, schema: TableSchema, copy: Any, rows: TableRows) -> None:
            super()._replace_table(schema, copy, TableRows(rows.copy_id))


class TestAnOutdatedSenderIsBelieved(TestInMemory):
    promise = "test_a_sender_who_has_not_heard_of_the_newest_copy_changes_nothing"

    class destination_class(MemoryDestination):
        def write_events(self, events: EventBatch) -> None:
            super().write_events(replace(events, apply_from={}))


# -- changes -----------------------------------------------------------------------------------


class _Eventwise(MemoryDestination):
    """Lets a derived class say what becomes of the events of a run."""

    def events(self, step: TableChanges) -> list[RowEvent]:
        return list(step.events())

    def _apply(self, table: MemoryTable, step: TableStep) -> None:
        if not isinstance(step, TableChanges):
            return super()._apply(table, step)
        table.evolve(step.schema)
        for event in self.events(step):
            table.apply(event)
            self.changelog.append(event)
        self.positions[step.schema.id] = step.last_position
        return None


def _with_nulls(event: RowEvent) -> RowEvent:
    row = event.row | dict.fromkeys(event.unchanged)
    return replace(event, row=row, unchanged=frozenset())


class TestAnEventIsDropped(TestInMemory):
    promise = "test_no_change_is_lost"

    class destination_class(_Eventwise):
        def events(self, step: TableChanges) -> list[RowEvent]:
            events = super().events(step)
            return events[:-1] if len(events) > 9 else events


class TestTheOrderWithinATableIsChanged(TestInMemory):
    promise = "test_the_last_of_many_changes_of_a_row_stands"

    class destination_class(_Eventwise):
        def events(self, step: TableChanges) -> list[RowEvent]:
            return super().events(step)[::-1]


class TestInsertsComeBeforeDeletes(TestInMemory):
    promise = "test_a_key_that_is_deleted_and_inserted_again_has_its_new_row"

    class destination_class(_Eventwise):
        def events(self, step: TableChanges) -> list[RowEvent]:
            return sorted(super().events(step), key=lambda event: isinstance(event, DeleteEvent))


class TestADeleteIsIgnored(TestInMemory):
    promise = "test_a_deleted_row_is_gone"

    class destination_class(_Eventwise):
        def events(self, step: TableChanges) -> list[RowEvent]:
            return [event for event in super().events(step) if not isinstance(event, DeleteEvent)]


class TestAnUnchangedValueBecomesNull(TestInMemory):
    promise = "test_an_unchanged_value_stays_what_the_destination_has"

    class destination_class(_Eventwise):
        def events(self, step: TableChanges) -> list[RowEvent]:
            return [
                replace(
                    event, row=event.row | dict.fromkeys(event.unchanged), unchanged=frozenset()
                )
                for event in super().events(step)
            ]


class TestAnUnchangedValueStaysAtTheOldKey(TestInMemory):
    promise = "test_an_unchanged_value_follows_its_row_to_another_key"

    class destination_class(_Eventwise):
        def events(self, step: TableChanges) -> list[RowEvent]:
            return [
                replace(
                    event, row=event.row | dict.fromkeys(event.unchanged), unchanged=frozenset()
                )
                if event.old_row and event.schema.key_columns
                else event
                for event in super().events(step)
            ]


class TestAChangedKeyLeavesTheOldRow(TestInMemory):
    promise = "test_a_changed_key_moves_the_row"

    class destination_class(_Eventwise):
        def events(self, step: TableChanges) -> list[RowEvent]:
            return [
                replace(event, old_row=None) if event.schema.key_columns else event
                for event in super().events(step)
            ]


class TestARowIsFoundByTheFirstColumnOfItsKey(TestDocuments):
    promise = "test_a_key_of_several_columns_identifies_a_row"

    class destination_class(DocumentDestination):
        def key(self, schema: TableSchema, row: Row) -> str:
            return f"key-{row[schema.key_columns[0]]}"


class TestADeleteTakesAllEqualRows(TestInMemory):
    promise = "test_of_several_equal_rows_one_is_deleted_for_each_delete"

    class destination_class(_Eventwise):
        def events(self, step: TableChanges) -> list[RowEvent]:
            events = super().events(step)
            if not step.schema.key_columns:
                events = [
                    e for e in events if isinstance(e, DeleteEvent) for _ in range(3)
                ] or events
            return events


class TestATruncateIsIgnored(TestInMemory):
    promise = "test_a_truncate_empties_its_table_only"

    class destination_class(MemoryDestination):
        def _apply(self, table: MemoryTable, step: TableStep) -> None:
            if not isinstance(step, TruncateEvent):
                super()._apply(table, step)


class TestATruncateEmptiesEverything(TestInMemory):
    promise = "test_a_truncate_empties_its_table_only"

    class destination_class(MemoryDestination):
        def _apply(self, table: MemoryTable, step: TableStep) -> None:
            super()._apply(table, step)
            if isinstance(step, TruncateEvent):
                for other in self.tables.values():
                    other.clear()


class TestNumbersTakeADetourOverFloats(TestInMemory):
    promise = "test_the_stream_brings_values_without_loss"

    class destination_class(_Eventwise):
        def events(self, step: TableChanges) -> list[RowEvent]:
            return [replace(event, row=_with_floats(event.row)) for event in super().events(step)]


def _with_floats(row: Row) -> Row:
    return {
        name: Decimal(float(value)) if isinstance(value, Decimal) else value
        for name, value in row.items()
    }


class TestTextsLoseTheirOuterSpaces(TestInMemory):
    promise = "test_the_stream_brings_values_without_loss"

    class destination_class(_Eventwise):
        def events(self, step: TableChanges) -> list[RowEvent]:
            return [
                replace(
                    event,
                    row={k: v.strip() if isinstance(v, str) else v for k, v in event.row.items()},
                )
                if isinstance(event, InsertEvent)
                else event
                for event in super().events(step)
            ]


class TestTextsAreCutToLatin(TestDocuments):
    promise = "test_the_copy_brings_values_without_loss"

    class destination_class(DocumentDestination):
        def put(self, table: Path, name: str, row: Row) -> None:
            row = {
                column: value.encode("latin-1", "replace").decode("latin-1")
                if isinstance(value, str)
                else value
                for column, value in row.items()
            }
            super().put(table, name, row)


# -- values with parts -------------------------------------------------------------------------


def _parts(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with its parts changed, and their parts before."""
    if isinstance(value, list):
        return change([_parts(part, change) for part in value])
    if isinstance(value, dict):
        return change({name: _parts(part, change) for name, part in value.items()})
    return value


class TestPartsAreTextOfPython(TestDocuments):
    promise = "test_the_copy_brings_values_with_parts_without_loss"

    class destination_class(DocumentDestination):
        def put(self, table: Path, name: str, row: Row) -> None:
            super().put(table, name, {k: _parts(value, str) for k, value in row.items()})


class TestListsLoseTheirNulls(TestInMemory):
    promise = "test_the_stream_brings_values_with_parts_without_loss"

    class destination_class(_Eventwise):
        def events(self, step: TableChanges) -> list[RowEvent]:
            def without_nulls(part: Any) -> Any:
                is_list = isinstance(part, list)
                return [each for each in part if each is not None] if is_list else part

            return [
                replace(
                    event,
                    row={k: _parts(value, without_nulls) for k, value in event.row.items()},
                )
                for event in super().events(step)
            ]


class TestARowIsFoundByItsPlainColumnsOnly(TestDocuments):
    promise = "test_a_row_without_a_key_is_found_by_its_parts"

    class destination_class(DocumentDestination):
        def take(self, table: Path, schema: TableSchema, row: Row) -> Row | None:
            if schema.key_columns:
                return super().take(table, schema, row)
            wanted = {name for name, value in row.items() if value is None}
            for file in sorted(table.glob("*")):
                before: Row = json.loads(file.read_text())
                if {name for name, value in before.items() if value is None} == wanted:
                    file.unlink()
                    return before
            return None


class TestAStructOfNullsIsRecordedAsNull(TestLog):
    promise = "test_recorded_changes_have_values_with_parts_without_loss"

    class destination_class(LogDestination):
        def line(self, event: RowEvent | TruncateEvent) -> Row:
            line = super().line(event)
            for name, value in (line["row"] or {}).items():
                if isinstance(value, dict) and value and not any(value.values()):
                    line["row"][name] = None
            return line


# -- deliveries --------------------------------------------------------------------------------


class TestABatchOfMarksIsRefused(TestInMemory):
    promise = "test_a_batch_without_changes_is_accepted"

    class destination_class(MemoryDestination):
        def write_events(self, events: EventBatch) -> None:
            if events.is_empty:
                raise InvalidState("there is nothing to write")
            super().write_events(events)


class TestItIsDurableTooEarly(TestInAFile):
    promise = "test_changes_outlive_the_process_once_the_write_is_durable"

    class destination_class(FileDestination):
        def write_events(self, events: EventBatch) -> WriteResult:  # type: ignore[override]
            self.save()
            MemoryDestination.write_events(self, events)
            done: Future[None] = Future()
            done.set_result(None)
            return done


class TestItIsReadableTooLate(TestInAFile):
    promise = "test_what_was_written_can_be_read_once_the_write_is_durable"
    destination_class = TestItIsDurableTooEarly.destination_class


class TestACopyIsDurableTooEarly(TestInAFile):
    promise = "test_a_finished_copy_outlives_the_process"

    class destination_class(FileDestination):
        def write_table_rows(self, schema: TableSchema, rows: TableRows) -> WriteResult:  # type: ignore[override]
            MemoryDestination.write_table_rows(self, schema, rows)
            return None

        def shutdown(self) -> None:
            self.save()
            super().shutdown()


class TestAWriteIsNeverDurable(TestInAFile):
    promise = "test_a_write_gives_none_or_a_future"
    patience_s = 0.2

    class destination_class(FileDestination):
        def write_events(self, events: EventBatch) -> WriteResult:  # type: ignore[override]
            super().write_events(events)
            return Future()


class TestTheResultIsNotAFuture(TestInMemory):
    promise = "test_a_write_gives_none_or_a_future"

    class destination_class(MemoryDestination):
        def write_events(self, events: EventBatch) -> Any:
            super().write_events(events)
            return True


class TestShuttingDownLosesTheWriteUnderWay(TestInAFile):
    promise = "test_shutting_down_loses_no_write_under_way"

    class destination_class(FileDestination):
        class _Waiting(Future[None]):
            """Saves when a caller waits for it, unless it was shut down before."""

            def __init__(self, destination: FileDestination) -> None:
                super().__init__()
                self._destination: FileDestination | None = destination

            def result(self, timeout: float | None = None) -> None:
                if self._destination is not None:
                    self._destination.save()

        def write_events(self, events: EventBatch) -> WriteResult:  # type: ignore[override]
            MemoryDestination.write_events(self, events)
            self._waiting = self._Waiting(self)
            return self._waiting

        def shutdown(self) -> None:
            if hasattr(self, "_waiting"):
                self._waiting._destination = None
            super().shutdown()


class TestACopyUnderWayIsForgotten(TestInAFile):
    promise = "test_a_copy_resumes_in_another_process"

    class destination_class(FileDestination):
        kept = tuple(name for name in FileDestination.kept if name != "_copies")


class TestPositionsAreForgotten(TestInAFile):
    promise = "test_a_batch_delivered_again_to_another_process_changes_nothing"

    class destination_class(FileDestination):
        kept = tuple(name for name in FileDestination.kept if name != "positions")


class TestARedeliveryIsAppliedTwice(TestInMemory):
    promise = "test_a_batch_delivered_again_changes_nothing"

    class destination_class(MemoryDestination):
        def write_events(self, events: EventBatch) -> None:
            self.positions.clear()
            super().write_events(events)


class TestATransactionIsSkippedAsAWhole(TestInMemory):
    promise = "test_a_batch_cut_inside_a_transaction_resumes_where_it_was_cut"

    class destination_class(MemoryDestination):
        def write_events(self, events: EventBatch) -> None:
            for table_id, position in self.positions.items():
                self.positions[table_id] = Position(position.commit_lsn, 2**62)
            super().write_events(events)


class TestAnInsertIsAlwaysAppended(TestDocuments):
    promise = "test_everything_delivered_again_ends_in_the_same_rows"

    class destination_class(DocumentDestination):
        def put(self, table: Path, name: str, row: Row) -> None:
            copies = len(list(table.glob(f"{name}*")))
            super().put(table, f"{name}.{copies}" if copies else name, row)


class TestAStreamedRowIsAddedToTheCopiedOne(TestDocuments):
    promise = "test_a_row_that_both_copy_and_stream_bring_is_there_once"
    destination_class = TestAnInsertIsAlwaysAppended.destination_class


class TestAnOlderEpochIsAccepted(TestInMemory):
    promise = "test_an_older_epoch_is_refused_and_writes_nothing"

    class destination_class(MemoryDestination):
        def write_events(self, events: EventBatch) -> None:
            super().write_events(replace(events, epoch=0))


class TestEachProcessHasACopyOfItsOwn(TestInAFile):
    promise = "test_two_processes_write_the_chunks_of_one_copy"

    class destination_class(FileDestination):
        capabilities = replace(MemoryDestination.capabilities, shared_copies=True)

        def load(self) -> None:
            if not self.tables and not self._copies:
                super().load()


class TestEachProcessKnowsItsOwnEpoch(TestInAFile):
    promise = "test_a_stalled_process_is_refused_once_another_took_over"

    class destination_class(FileDestination):
        kept = tuple(name for name in FileDestination.kept if name != "_marks")


class TestAMarkIsForgotten(TestInAFile):
    promise = "test_a_mark_outlives_the_process"

    class destination_class(FileDestination):
        kept = tuple(name for name in FileDestination.kept if name not in ("_marks", "_identity"))


class TestAllDestinationsHaveOneIdentity(TestInMemory):
    promise = "test_two_destinations_have_differing_identities"

    class destination_class(MemoryDestination):
        def __init__(self) -> None:
            super().__init__()
            self._identity = "memory"


class TestARevisionStays(TestInMemory):
    promise = "test_each_batch_makes_the_revision_larger"

    class destination_class(MemoryDestination):
        def read_mark(self, pipeline: str) -> DestinationMark:
            return replace(super().read_mark(pipeline), revision=1)


class TestAllPipelinesHaveOneMark(TestInMemory):
    promise = "test_each_pipeline_has_a_mark_of_its_own"

    class destination_class(MemoryDestination):
        def write_events(self, events: EventBatch) -> None:
            super().write_events(replace(events, pipeline=""))

        def read_mark(self, pipeline: str) -> DestinationMark:
            return super().read_mark("")


class TestPositionsOfAnOldEpochStay(TestInMemory):
    promise = "test_a_new_epoch_begins_its_positions_again"

    class destination_class(MemoryDestination):
        def write_events(self, events: EventBatch) -> None:
            before = self.read_mark(events.pipeline)
            super().write_events(
                replace(events, stored_lsn=max(before.stored_lsn, events.stored_lsn))
            )


class TestAnAbandonedCopyIsHeld(TestInMemory):
    promise = "test_copies_are_held_until_they_are_given_up"

    class destination_class(MemoryDestination):
        def __init__(self) -> None:
            super().__init__()
            self._seen: dict[int, HeldCopy] = {}

        def held_copies(self, table_ids: Collection[int]) -> Mapping[int, HeldCopy]:
            self._seen |= super().held_copies(table_ids)
            return {t: copy for t, copy in self._seen.items() if t in table_ids}


class TestOneProcessKeepsTheFileToItself(TestInAFile):
    promise = "test_another_process_copies_a_table_while_this_one_streams"

    class destination_class(FileDestination):
        def startup(self, store: DestinationStore) -> None:
            lock = self.path.with_suffix(".lock")
            if lock.exists():
                raise DestinationError(f"another process has {self.path}")
            lock.touch()
            super().startup(store)


class TestOneProcessOverwritesWhatAnotherWrote(TestInAFile):
    promise = "test_another_process_copies_a_table_while_this_one_streams"

    class destination_class(FileDestination):
        _loaded = False

        def load(self) -> None:
            if not self._loaded:
                super().load()
            self._loaded = True


class TestCheckingItselfCreatesTheFile(TestInAFile):
    promise = "test_checking_itself_changes_nothing"

    class destination_class(FileDestination):
        def check(self) -> str:
            self.save()
            return "it can be written"


class TestAnEpochWithoutChangesIsForgotten(TestInMemory):
    promise = "test_an_epoch_alone_is_enough_to_refuse_older_ones"

    class destination_class(MemoryDestination):
        def write_events(self, events: EventBatch) -> None:
            if not events.is_empty:
                super().write_events(events)


# -- schemas -----------------------------------------------------------------------------------


class TestARenamedColumnDropsItsValues(TestInMemory):
    promise = "test_a_renamed_column_keeps_its_values"

    class destination_class(MemoryDestination):
        def _apply(self, table: MemoryTable, step: TableStep) -> None:
            renames = [
                change
                for change in schema_changes(table.schema, step.schema)
                if isinstance(change, RenameColumn)
            ]
            super()._apply(table, step)
            for row in table.rows:
                row.update((rename.new_name, None) for rename in renames if rename.new_name in row)


class TestADroppedColumnStays(TestInMemory):
    promise = "test_columns_are_added_dropped_renamed_and_change_their_type"

    class destination_class(MemoryDestination):
        def _apply(self, table: MemoryTable, step: TableStep) -> None:
            dropped = [
                change.column.name
                for change in schema_changes(table.schema, step.schema)
                if isinstance(change, DropColumn)
            ]
            rows = [{name: row.get(name) for name in dropped} for row in table.rows]
            super()._apply(table, step)
            for row, old in zip(table.rows, rows, strict=False):
                row.update(old)


class TestARenamedTableStartsOver(TestInMemory):
    promise = "test_a_renamed_table_keeps_its_rows"

    class destination_class(MemoryDestination):
        def _apply(self, table: MemoryTable, step: TableStep) -> None:
            if table.schema.name != step.schema.name:
                table.clear()
            super()._apply(table, step)


class TestARenamedTableReplacesTheOneOfThatName(TestInMemory):
    promise = "test_two_tables_can_swap_their_names"

    class destination_class(MemoryDestination):
        def _name(self, schema: TableSchema) -> None:
            for table_id, table in list(self.tables.items()):
                if table_id != schema.id and table.schema.name == schema.name:
                    del self.tables[table_id], self._named[table_id]
            super()._name(schema)


class TestTheOldSchemaComesBack(TestInMemory):
    promise = "test_what_is_delivered_again_does_not_undo_a_newer_schema"

    class destination_class(MemoryDestination):
        def write_events(self, events: EventBatch) -> None:
            for table_id, steps in events.tables.items():
                if steps and (table := self.tables.get(table_id)):
                    table.evolve(steps[0].schema)
            super().write_events(events)


# -- quarantine --------------------------------------------------------------------------------


class _Quarantine(MemoryDestination):
    """Lets a derived class say what kind of table it has."""

    table_class: ClassVar[type[MemoryTable]] = MemoryTable

    def _current_copy(self, schema: TableSchema, copy_id: str) -> Any:
        copy = super()._current_copy(schema, copy_id)
        if type(copy.table) is not self.table_class:
            copy.table = self.table_class(schema)
        return copy


class TestARowInQuarantineIsInItsTableToo(TestInMemory):
    promise = "test_a_row_that_can_not_be_held_is_kept_apart_whole"

    class destination_class(_Quarantine):
        class table_class(MemoryTable):
            @property
            def rows(self) -> list[Row]:
                return list(self._by_key.values()) if self.schema.key_columns else self._keyless


class TestAnyOddValuePutsARowIntoQuarantine(TestInMemory):
    promise = "test_a_row_that_can_not_be_held_is_kept_apart_whole"

    class destination_class(_Quarantine):
        class table_class(MemoryTable):
            def _is_quarantined(self, key: tuple[Any, ...]) -> bool:
                return bool(self._odd.get(key)) and bool(self.schema.quarantine_columns)


class TestARowNeverReturnsFromQuarantine(TestInMemory):
    promise = "test_a_row_returns_as_soon_as_it_can_be_held"

    class destination_class(_Quarantine):
        class table_class(MemoryTable):
            def apply(self, event: RowEvent) -> None:
                held = {key for key in self._by_key if self._is_quarantined(key)}
                before = {key: self._odd[key] for key in held}
                super().apply(event)
                for key in held & self._by_key.keys():
                    self._odd.setdefault(key, before[key])


class TestAnOddValueThatIsNotSentCountsAsGood(TestInMemory):
    promise = "test_a_row_returns_as_soon_as_it_can_be_held"

    class destination_class(_Quarantine):
        class table_class(MemoryTable):
            def apply(self, event: RowEvent) -> None:
                super().apply(event)
                if event.unchanged:
                    self._odd.pop(self._key(event.row), None)


class TestAQuarantinedRowIsNotDeleted(TestInMemory):
    promise = "test_a_row_in_quarantine_is_found_by_its_key"

    class destination_class(_Quarantine):
        class table_class(MemoryTable):
            def apply(self, event: RowEvent) -> None:
                if isinstance(event, DeleteEvent) and self._is_quarantined(self._key(event.row)):
                    return
                super().apply(event)


class TestATruncateLeavesTheQuarantine(TestInMemory):
    promise = "test_a_row_in_quarantine_is_found_by_its_key"

    class destination_class(_Quarantine):
        def _apply(self, table: MemoryTable, step: TableStep) -> None:
            kept = [(row, texts) for row, texts in table.odd if row in table.quarantined]
            super()._apply(table, step)
            if isinstance(step, TruncateEvent):
                table.put((row for row, _ in kept), dict(enumerate(texts for _, texts in kept)))


class TestTheQuarantineOfTheCopyBeforeStays(TestInMemory):
    promise = "test_a_row_is_put_into_quarantine_once"

    class destination_class(_Quarantine):
        def _replace_table(self, schema: TableSchema, copy: Any, rows: TableRows) -> None:
            old = self.tables.get(schema.id)
            for row, texts in old.odd if old is not None else ():
                if copy.table._key(row) not in copy.table._by_key:
                    copy.table.put([row], {0: texts})
            super()._replace_table(schema, copy, rows)


class TestQuarantineDoesNotFollowTheColumns(TestInMemory):
    promise = "test_rows_in_quarantine_follow_the_columns_of_their_table"

    class destination_class(_Quarantine):
        class table_class(MemoryTable):
            def evolve(self, schema: TableSchema) -> None:
                held = {key: texts for key, texts in self._odd.items() if self._is_quarantined(key)}
                super().evolve(schema)
                self._odd.update(held)


class TestTheFirstChoiceStays(TestInMemory):
    promise = "test_rows_follow_what_another_schema_keeps_apart"

    class destination_class(_Quarantine):
        class table_class(MemoryTable):
            def _is_quarantined(self, key: tuple[Any, ...]) -> bool:
                columns = self.__dict__.setdefault("_first", self.schema.quarantine_columns)
                return not self._odd.get(key, {}).keys().isdisjoint(columns)


class TestQuarantineBelongsToTheName(TestInMemory):
    promise = "test_rows_in_quarantine_follow_the_name_of_their_table"

    class destination_class(_Quarantine):
        def __init__(self) -> None:
            super().__init__()
            self._copied: dict[str, int] = {}

        def _replace_table(self, schema: TableSchema, copy: Any, rows: TableRows) -> None:
            super()._replace_table(schema, copy, rows)
            self._copied[schema.name] = schema.id

        def quarantined_rows(self, table_name: str) -> list[Row]:
            return list(self.tables[self._copied[table_name]].quarantined)


class TestQuarantineIsForgotten(TestInAFile):
    promise = "test_quarantine_outlives_the_process"

    class destination_class(FileDestination):
        def startup(self, store: DestinationStore) -> None:
            super().startup(store)
            for table in self.tables.values():
                for row in table.quarantined:
                    del table._by_key[table._key(row)], table._odd[table._key(row)]
            self.save()


# -- a log -------------------------------------------------------------------------------------


class TestADeleteIsNotRecorded(TestLog):
    promise = "test_every_change_is_recorded_with_its_operation_and_position_in_order"

    class destination_class(LogDestination):
        def append(self, schema: TableSchema, *lines: Row) -> None:
            super().append(schema, *(line for line in lines if line["op"] != "D"))


class TestPositionsAreNumberedOnArrival(TestLog):
    promise = "test_changes_delivered_again_are_recorded_under_the_same_positions"

    class destination_class(LogDestination):
        _count = 0

        def line(self, event: RowEvent | TruncateEvent) -> Row:
            self._count += 1
            return super().line(event) | {"ordinal": self._count}


class TestAnUpdateIsRecordedAsAnInsert(TestLog):
    promise = "test_every_change_is_recorded_with_its_operation_and_position_in_order"

    class destination_class(LogDestination):
        def line(self, event: RowEvent | TruncateEvent) -> Row:
            line = super().line(event)
            return line | {"op": "I"} if line["op"] == "U" else line


class TestRecordedValuesHaveTheFirstSchema(TestLog):
    promise = "test_changes_under_another_schema_are_recorded_with_its_columns"

    class destination_class(LogDestination):
        def line(self, event: RowEvent | TruncateEvent) -> Row:
            line = super().line(event)
            if line["row"] is not None:
                line["row"].pop("extra", None)
            return line


class TestTheLogIsWrittenAtTheEnd(TestLog):
    promise = "test_recorded_changes_outlive_the_process"

    class destination_class(LogDestination):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            self._later: list[tuple[TableSchema, Row]] = []

        def append(self, schema: TableSchema, *lines: Row) -> None:
            copied = [line for line in lines if line["op"] == "copy"]
            super().append(schema, *copied)
            self._later += [(schema, line) for line in lines if line["op"] != "copy"]

        def shutdown(self) -> None:
            for schema, line in self._later:
                super().append(schema, line)


# -- what is offered, and several writes at a time -----------------------------------------------


class TestItDeclaresWhatItLacks(TestInMemory):
    promise = "test_it_has_the_methods_of_what_it_offers"

    class destination_class(MemoryDestination):
        capabilities = replace(MemoryDestination.capabilities, offers=frozenset({CountsRows}))


class TestItDoesNotDeclareWhatItHas(TestInMemory):
    promise = "test_it_has_the_methods_of_what_it_offers"

    class destination_class(MemoryDestination):
        capabilities = replace(MemoryDestination.capabilities, offers=frozenset())

        def interrupt(self) -> None: ...


class TestItHasHalfOfTheMethodsItNeeds(TestInMemory):
    promise = "test_it_has_the_methods_of_what_it_offers"

    class destination_class(MemoryDestination):
        def drop_tables_for_copy(self, schemas: Sequence[TableSchema]) -> None: ...


class TestAnInterruptionUndoesWhatIsDurable(TestInAFile):
    promise = "test_what_is_durable_when_it_is_interrupted_is_kept"

    class destination_class(FileDestination):
        def interrupt(self) -> None:
            self.path.unlink()


class _Late(Future[None]):
    """Does its work when a caller waits for it."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> None:
        if not self.done():
            self._work()
            self.set_result(None)


class TestOnlyTheNewestWriteUnderWayIsCarriedOut(TestInMemory):
    promise = "test_writes_of_several_tables_may_be_under_way_at_once"

    class destination_class(MemoryDestination):
        def write_events(self, events: EventBatch) -> WriteResult:  # type: ignore[override]
            self.newest = events
            write = super().write_events
            return _Late(lambda: write(self.newest))


# -- modes -------------------------------------------------------------------------------------


class _Kept(MemoryDestination):
    """Lets a derived class say what becomes of the rows that are kept, whenever they are read."""

    def rows(self, table_name: str) -> list[Row]:
        return self.told(super().rows(table_name))

    def told(self, rows: list[Row]) -> list[Row]:
        raise NotImplementedError


class TestADeletedRowDisappears(TestInMemory):
    promise = "test_a_deleted_row_stays_with_the_time_of_its_delete"

    class destination_class(_Kept):
        def told(self, rows: list[Row]) -> list[Row]:
            return [row for row in rows if row.get("_etl_deleted_at") is None]


class TestADeletedRowIsMarkedByTheClockOfTheDestination(TestInMemory):
    promise = "test_a_deleted_row_stays_with_the_time_of_its_delete"

    class destination_class(_Kept):
        def told(self, rows: list[Row]) -> list[Row]:
            now = datetime.now(UTC)
            return [
                row | {"_etl_deleted_at": now} if row.get("_etl_deleted_at") else row
                for row in rows
            ]


class _Applies(MemoryDestination):
    """Lets a derived class leave events out, of tables that keep more than a mirror."""

    def _apply(self, table: MemoryTable, step: TableStep) -> None:
        if table.schema.mode == "mirror" or not isinstance(step, TableChanges):
            super()._apply(table, step)
            return
        table.evolve(step.schema)
        for event in self.changed(table, list(step.events())):
            table.apply(event)
        self.positions[step.schema.id] = step.last_position

    def changed(self, table: MemoryTable, events: list[RowEvent]) -> list[RowEvent]:
        raise NotImplementedError


class TestOnlyTheLastChangeOfARowInABatchIsKept(TestInMemory):
    promise = "test_each_change_is_a_row_with_its_operation_place_and_time"

    class destination_class(_Applies):
        def changed(self, table: MemoryTable, events: list[RowEvent]) -> list[RowEvent]:
            return list({table._key(event.row): event for event in events}.values())


class TestARowThatComesAndGoesInABatchLeavesNothing(TestInMemory):
    promise = "test_a_row_that_comes_and_goes_in_one_batch_is_marked"

    class destination_class(_Applies):
        def changed(self, table: MemoryTable, events: list[RowEvent]) -> list[RowEvent]:
            return list({table._key(event.row): event for event in events}.values())


class TestAKeyThatARowLeftIsForgotten(TestInMemory):
    promise = "test_a_key_that_its_row_has_left_is_marked"

    class destination_class(_Kept):
        def told(self, rows: list[Row]) -> list[Row]:
            return [row for row in rows if row.get("note") != "a" or len(rows) != 2]


class TestVersionsOfOneBatchAreMerged(TestInMemory):
    promise = "test_several_transactions_of_a_row_in_one_batch_are_versions_each"

    class destination_class(_Applies):
        def changed(self, table: MemoryTable, events: list[RowEvent]) -> list[RowEvent]:
            return list({table._key(event.row): event for event in events}.values())


class TestEveryChangeIsAVersion(TestInMemory):
    promise = "test_what_a_row_had_inside_a_transaction_is_not_a_version"

    class destination_class(_Applies):
        def changed(self, table: MemoryTable, events: list[RowEvent]) -> list[RowEvent]:
            for entry in getattr(table, "_entries", ()):
                entry.lsn = None
            return events


class TestAnUnknownValueIsTakenForNull(TestInMemory):
    promise = "test_a_value_that_is_not_known_is_said_to_be_so"

    class destination_class(_Kept):
        def told(self, rows: list[Row]) -> list[Row]:
            return [
                row | {"_etl_unchanged": None} if "_etl_unchanged" in row else row for row in rows
            ]


class TestTheRowBeforeIsLost(TestInMemory):
    promise = "test_a_row_before_its_change_is_kept_where_postgres_sends_it"

    class destination_class(_Kept):
        def told(self, rows: list[Row]) -> list[Row]:
            return [row | {"_etl_before": None} if "_etl_before" in row else row for row in rows]


class _Copies(MemoryDestination):
    """Starts over with each copy, whatever was kept."""

    def _replace_table(self, schema: TableSchema, copy: Any, rows: TableRows) -> None:
        self.tables.pop(schema.id, None)
        super()._replace_table(schema, copy, rows)


class TestANewCopyForgetsMarkedRows(TestInMemory):
    promise = "test_a_new_copy_marks_the_rows_that_it_lacks"
    destination_class = _Copies


class TestANewCopyForgetsTheLog(TestInMemory):
    promise = "test_a_copy_is_rows_of_its_own_after_those_that_are_there"
    destination_class = _Copies


class TestANewCopyForgetsVersions(TestInMemory):
    promise = "test_a_new_copy_ends_what_vanished_and_begins_only_what_differs"
    destination_class = _Copies


class TestChangesBetweenTwoCopiesAreThereTwice(TestInMemory):
    promise = "test_changes_between_two_copies_are_left_to_the_second"

    class destination_class(MemoryDestination):
        def _is_between_copies(self, table_id: int) -> bool:
            return False


class TestARepairLeavesNothingOut(TestInMemory):
    promise = "test_a_repaired_table_has_its_rows_and_then_the_changes_since"

    class destination_class(MemoryDestination):
        def _is_between_copies(self, table_id: int) -> bool:
            return False


class TestARepairOutlivesTheNextCopy(TestInMemory):
    promise = "test_a_repair_is_over_once_a_copy_has_begun"

    class destination_class(MemoryDestination):
        def write_repair(self, changes: TableChanges, repair_id: str) -> None:
            for event in changes.events():
                self.tables[changes.schema.id].apply(event)


class TestAnyTableIsRepaired(TestInMemory):
    promise = "test_another_table_than_the_schema_says_is_not_repaired"

    class destination_class(MemoryDestination):
        def begin_repair(self, schema: TableSchema, repair_id: str) -> None:
            return


class TestHashesCoverKeysAlone(TestInMemory):
    promise = "test_rows_have_the_same_hashes_wherever_they_are"

    class destination_class(MemoryDestination):
        @contextmanager
        def read_hashes(self, schema: TableSchema) -> Iterator[Iterator[RowHashes]]:
            with self.read_rows(schema) as batches:
                yield (self.hash_rows(schema, batch, are_read=True) for batch in batches)

        def hash_rows(
            self, schema: TableSchema, rows: pa.RecordBatch, *, are_read: bool = False
        ) -> RowHashes:
            read = rows if are_read else self.as_read(schema, rows)
            keys = hash_rows(read, schema.key_columns)
            return RowHashes(keys, keys)
