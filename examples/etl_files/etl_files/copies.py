"""Copies under way: their chunks, each in a file of its own until the end of the copy."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from etl_dagster.errors import InvalidState
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableSchema

from etl_files.table_file import first_line, sync_folder, to_line


class TableCopies:
    """The copies of one table, in a folder of their own.

    `copies.json` has the copy that is running or was the last, and all those that were given up,
    whose workers may still be alive. Calls need the destination's lock, but for those that write
    a new file under a name that no other process knows.
    """

    def __init__(self, folder: Path, schema: TableSchema) -> None:
        self._schema = schema
        self._folder = folder / str(schema.id)
        self._record = self._folder / "copies.json"

    # -- with the lock -------------------------------------------------------------------------

    def enter(self, copy_id: str) -> None:
        """Make it the running copy; one never heard of gives the one before up.

        Raises:
            InvalidState: it was given up.
        """
        running, given_up = self._load()
        if copy_id in given_up:
            raise InvalidState(f"a newer copy of {self._schema.name} has begun than {copy_id}")
        if copy_id != running:
            self.give_up()
            self._store(copy_id, self._load()[1])

    def give_up(self) -> None:
        """Refuse the running copy from now on, and forget its chunks."""
        running, given_up = self._load()
        if running is not None:
            self._store(None, [*given_up, running])
        self.forget_chunks()

    def forget_chunks(self) -> None:
        shutil.rmtree(self._chunks, ignore_errors=True)

    def has_chunk(self, index: int) -> bool:
        return self._chunk(index).exists()

    def keep_chunk(self, index: int, written: Path) -> None:
        """Make what was written the chunk, durably."""
        written.replace(self._chunk(index))
        sync_folder(self._chunks)

    def _load(self) -> tuple[str | None, list[str]]:
        try:
            record = json.loads(self._record.read_bytes())
        except FileNotFoundError:
            return None, []
        return record["running"], record["given_up"]

    def _store(self, running: str | None, given_up: list[str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        record = to_line({"running": running, "given_up": given_up})
        write_new(self._folder, [record]).replace(self._record)
        sync_folder(self._folder)

    # -- without it ----------------------------------------------------------------------------

    def write_chunk(self, lines: Iterable[bytes]) -> Path:
        self._chunks.mkdir(parents=True, exist_ok=True)
        return write_new(self._chunks, lines)

    def write_table(self, copy_id: str, replay_from: Lsn) -> Path:
        """A whole file of the table, of all chunks."""
        chunks = sorted(self._chunks.glob("*.jsonl"), key=lambda chunk: int(chunk.stem))
        beginning = [first_line(self._schema, copy_id, replay_from)]
        return write_new(self._folder, beginning, chunks)

    @property
    def _chunks(self) -> Path:
        return self._folder / "chunks"

    def _chunk(self, index: int) -> Path:
        return self._chunks / f"{index}.jsonl"


def write_new(folder: Path, lines: Iterable[bytes], parts: Iterable[Path] = ()) -> Path:
    """A new file, durable, with these lines and after them what the parts hold."""
    path = folder / f"new-{secrets.token_hex(8)}"
    try:
        with path.open("xb") as file:
            file.writelines(lines)
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path
