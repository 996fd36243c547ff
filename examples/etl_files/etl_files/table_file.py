"""The file of one table, as the destination writes it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etl_dagster.lsn import Lsn
from etl_dagster.model.events import RelationEvent
from etl_dagster.model.json_values import event_to_json
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableSchema

#: How much is read at first to find the last position; most lines are shorter.
_TAIL_BYTES = 16 * 1024


def to_line(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def first_line(schema: TableSchema, copy_id: str | None, replay_from: Lsn) -> bytes:
    """Begins a file; `copy_id` is None where changes come before any copy."""
    relation = event_to_json(RelationEvent(schema, None, 0))
    return to_line(relation | {"copy_id": copy_id, "replay_from": str(replay_from)})


def read_first_line(path: Path) -> dict[str, Any] | None:
    """What `first_line` wrote; None where there is no such line."""
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline())
    except (FileNotFoundError, ValueError):
        return None
    return first if isinstance(first, dict) and "copy_id" in first else None


class TableFile:
    """A table's file, open to be appended to; for one thread that holds the folder's lock.

    The position is in the lines themselves, so that it can't differ from them: a writer that is
    killed leaves some of its lines, and the next one continues behind the last whole line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        first = read_first_line(path)
        if first is None:
            raise FileNotFoundError(errno.ENOENT, "its first line is missing", str(path))
        self.copy_id: str | None = first["copy_id"]
        self.replay_from = Lsn.parse(first["replay_from"])
        # Without a buffer, so that nothing is written after a failure.
        self._file = path.open("r+b", buffering=0)
        #: Where it ended when it was opened, without a line that was cut.
        self.length, self.position = self._find_end()

    def _find_end(self) -> tuple[int, Position]:
        """Where the last whole line ends, and the position of the last change."""
        size, wanted = self._file.seek(0, os.SEEK_END), _TAIL_BYTES
        while True:
            start = self._file.seek(max(0, size - wanted))
            *lines, cut = self._file.read(size - start).split(b"\n")
            # Of the first line, the beginning may lie before what was read.
            for line in reversed(lines if start == 0 else lines[1:]):
                found = json.loads(line)
                if "position" in found:
                    at = found["position"]
                    position = Position(Lsn.parse(at["commit_lsn"]), at["ordinal"])
                    return size - len(cut), position
                if found["type"] == "row" or "copy_id" in found:
                    return size - len(cut), Position.just_before(self.replay_from)
            wanted *= 8

    def append(self, lines: bytes) -> None:
        """Write behind the last whole line; durable after `sync`."""
        self._file.truncate(self.length)
        self._file.seek(self.length)
        rest = memoryview(lines)
        while rest:
            rest = rest[self._file.write(rest) :]

    def sync(self) -> int:
        """Have all of it on disk, also what a writer left that was killed; its length now."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def undo(self) -> None:
        """Take away what was appended."""
        self._file.truncate(self.length)

    def close(self) -> None:
        self._file.close()


def sync_folder(folder: Path) -> None:
    """Have on disk which files there are in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
