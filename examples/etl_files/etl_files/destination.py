"""A destination of JSON lines: one file for each table, to which every change is appended."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, Self

from etl_dagster.config import DestinationConfig, PipelineConfig
from etl_dagster.errors import DestinationError, DestinationUnreachable, Superseded
from etl_dagster.lsn import LSN_ZERO
from etl_dagster.model.destination import Capabilities, ChecksItself, Destination
from etl_dagster.model.events import (
    EventBatch,
    RelationEvent,
    TableChanges,
    TableRows,
    TableStep,
    TruncateEvent,
    steps_after,
)
from etl_dagster.model.json_values import event_to_json, row_to_json
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import DestinationStore
from pydantic import Field

from etl_files.copies import TableCopies, write_new
from etl_files.locks import locked
from etl_files.reading import table_path
from etl_files.table_file import TableFile, first_line, read_first_line, sync_folder, to_line


class JsonLinesConfig(DestinationConfig):
    """The section ``destination`` of `etl.yaml`."""

    type: Literal["jsonl"]
    folder: Path = Field(description="Where the files are; made when it is missing.")
    lock_timeout_s: float = Field(60.0, gt=0, description="How long to wait for another process.")

    @property
    def place(self) -> str:
        return str(self.folder)


class JsonLinesDestination(Destination):
    """Appends each change exactly once, also after a crash, by the positions in the lines.

    Read a table with `etl_files.read_table`. What isn't a table is in the folder ``.etl``: the
    lock that all processes share, the newest epoch, and copies under way.
    """

    name = "jsonl"
    # No mirror: the files hold every change; who folds them (`read_table`) has the rows.
    capabilities = Capabilities(
        transactional=True, mirror=False, schema_changes=True, offers=frozenset({ChecksItself})
    )
    config_model = JsonLinesConfig

    @classmethod
    def from_config(cls, config: JsonLinesConfig, pipeline: PipelineConfig) -> Self:
        return cls(config.folder, lock_timeout_s=config.lock_timeout_s)

    def __init__(self, folder: Path, *, lock_timeout_s: float = 60.0) -> None:
        self.folder = folder
        self._hidden = folder / ".etl"
        self._lock_timeout_s = lock_timeout_s
        self._paths: dict[TableId, Path] = {}
        #: What we know of a file while it is as we left it: its copy and length, and the columns
        #: that its last lines have.
        self._known: dict[TableId, tuple[str | None, int, TableSchema]] = {}

    def check(self) -> str:
        """Whether files can be written; changes nothing.

        Raises:
            DestinationError: they can't, with what to do.
        """
        there = next(
            path for path in (self.folder, *self.folder.absolute().parents) if path.exists()
        )
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise DestinationError(
                f"destination.folder: {there} is not a folder that can be written to",
                solution="Give this user the right to write there, or correct destination.folder.",
            )
        return str(self.folder) if there == self.folder else f"{self.folder}: made at the start"

    def startup(self, store: DestinationStore) -> None:
        self.check()
        with self._explained():
            self._hidden.mkdir(parents=True, exist_ok=True)

    # -- the copy ------------------------------------------------------------------------------

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        """The file stays as it is until the end of the copy, and so does its position."""
        with self._explained(), self._alone():
            TableCopies(self._hidden, schema).give_up()

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        copies = TableCopies(self._hidden, schema)
        with self._explained(), self._alone():
            copies.enter(rows.copy_id)
            if self._is_complete(schema.id, rows.copy_id):
                return
            if rows.chunk is not None and copies.has_chunk(rows.chunk.index):
                return
        # What takes long is done without the lock: others write meanwhile.
        with self._explained():
            if rows.chunk is None:
                written = copies.write_table(rows.copy_id, rows.replay_from)
            else:
                lines = (to_line({"type": "row", "row": row_to_json(schema, row)}) for row in rows)
                written = copies.write_chunk(lines)
        with self._explained(), self._alone():
            try:
                copies.enter(rows.copy_id)
                if rows.chunk is None:
                    self._replace_table(schema, written)
                    copies.forget_chunks()
                else:
                    copies.keep_chunk(rows.chunk.index, written)
            finally:
                written.unlink(missing_ok=True)

    def _is_complete(self, table_id: TableId, copy_id: str) -> bool:
        path = self._find(table_id)
        first = None if path is None else read_first_line(path)
        return first is not None and first["copy_id"] == copy_id

    def _replace_table(self, schema: TableSchema, written: Path) -> None:
        """In one moment for readers, whatever the table was called and held before."""
        path = table_path(self.folder, schema.schema_name, schema.table_name)
        _require_ours(path)
        before = self._find(schema.id)
        if before is not None and before != path:
            before.replace(path)
        written.replace(path)
        sync_folder(self.folder)
        self._paths[schema.id] = path

    # -- the stream ----------------------------------------------------------------------------

    def write_events(self, events: EventBatch) -> None:
        with self._explained(), self._alone():
            self._raise_epoch(events.epoch)
            appended: list[TableFile] = []
            try:
                # Two tables may have one name in a batch: the one that was given it last has it.
                for table_id, steps in sorted(events.tables.items(), key=_named_at):
                    file = self._open(table_id, steps)
                    appended.append(file)
                    if not events.is_outdated(table_id, file.replay_from):
                        self._append(file, table_id, steps_after(steps, file.position))
            except BaseException:
                for file in appended:
                    file.undo()
                raise
            finally:
                for file in appended:
                    file.close()

    def _append(self, file: TableFile, table_id: TableId, steps: Sequence[TableStep]) -> None:
        copy_id, length, schema = self._known.pop(table_id, (None, -1, None))
        if (copy_id, length) != (file.copy_id, file.length):
            schema = None
        lines = []
        is_described = False
        for step in steps:
            if schema is None or _is_news(step, schema):
                lines.append(to_line(event_to_json(RelationEvent(step.schema, schema, 0))))
                schema, is_described = step.schema, True
            lines += [to_line(line) for line in _changes(step)]
        if schema is not None and is_described:
            self._rename(file, schema)
        file.append(b"".join(lines))
        length = file.sync()
        if schema is not None:
            self._known[table_id] = file.copy_id, length, schema

    def _open(self, table_id: TableId, steps: Sequence[TableStep]) -> TableFile:
        path = self._find(table_id)
        if path is None:
            # Changes of a table that was never copied: the file begins with them.
            schema = steps[0].schema
            path = table_path(self.folder, schema.schema_name, schema.table_name)
            self._make_room(path, table_id)
            write_new(self._hidden, [first_line(schema, None, LSN_ZERO)]).replace(path)
            sync_folder(self.folder)
            self._paths[table_id] = path
        return TableFile(path)

    def _raise_epoch(self, epoch: int) -> None:
        """Remember the epoch of a newer replicator, and refuse that of an older."""
        path = self._hidden / "epoch"
        newest = int(path.read_text()) if path.exists() else 0
        if epoch and epoch < newest:
            raise Superseded(f"epoch {epoch} was followed by epoch {newest}")
        if epoch > newest:
            write_new(self._hidden, [str(epoch).encode()]).replace(path)
            sync_folder(self._hidden)

    # -- names ---------------------------------------------------------------------------------

    def _find(self, table_id: TableId) -> Path | None:
        """The table's file, whatever the table is called by now."""
        known = self._paths.get(table_id)
        if known is not None and _table_of(known) == table_id:
            return known
        self._paths = {
            found: path
            for path in self.folder.glob("*.jsonl")
            if (found := _table_of(path)) is not None
        }
        return self._paths.get(table_id)

    def _rename(self, file: TableFile, schema: TableSchema) -> None:
        path = table_path(self.folder, schema.schema_name, schema.table_name)
        if file.path != path:
            self._make_room(path, schema.id)
            file.path.replace(path)
            sync_folder(self.folder)
            self._paths[schema.id] = file.path = path

    def _make_room(self, path: Path, table_id: TableId) -> None:
        """Move another table's file out of the way: that table was dropped, or has another name by
        now, which its next change brings."""
        _require_ours(path)
        holder = _table_of(path)
        if holder not in (None, table_id):
            path.replace(path.with_suffix(f".{holder}.jsonl"))

    # -- around everything ---------------------------------------------------------------------

    def _alone(self) -> AbstractContextManager[None]:
        """The only writer meanwhile, in this process or another."""
        return locked(self._hidden / "lock", self._lock_timeout_s)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ConnectionError:
            raise  # of the source, whose rows were read
        except OSError as error:
            raise DestinationUnreachable(
                f"{self.folder} can't be written: {error.strerror or error}",
                solution="Check the disk, the rights on destination.folder, and who else writes "
                "there; the pipeline tries again by itself.",
            ) from error


def _table_of(path: Path) -> TableId | None:
    """Whose file it is; None where there is none, or another one."""
    first = read_first_line(path)
    return None if first is None else first["table_id"]


def _named_at(table: tuple[TableId, Sequence[TableStep]]) -> int:
    """Where in a batch a table was last described; -1 where it wasn't."""
    _, steps = table
    return max((step.sequence for step in steps if isinstance(step, RelationEvent)), default=-1)


def _require_ours(path: Path) -> None:
    if path.exists() and _table_of(path) is None:
        raise DestinationError(
            f"{path} exists and is not a file of this destination", solution="Move it away."
        )


def _is_news(step: TableStep, schema: TableSchema) -> bool:
    """Whether the step has other columns. An older description is one that was sent again."""
    if isinstance(step, RelationEvent) and step.schema.snapshot_id < schema.snapshot_id:
        return False
    return not schema.describes_same_columns(step.schema)


def _changes(step: TableStep) -> Iterator[dict[str, object]]:
    if isinstance(step, TableChanges):
        yield from map(event_to_json, step.events())
    elif isinstance(step, TruncateEvent):
        yield event_to_json(step)
