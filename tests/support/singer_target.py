"""The scripted target as a program, and what is in its tables."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from etl_dagster.destinations.singer import SingerDestination
from tests.support import scripted_target


@functools.cache
def program() -> Path:
    """A program that this interpreter runs, without what it would import at its start."""
    folder = Path(tempfile.mkdtemp(prefix="etl-test-target-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "target-scripted"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{scripted_target.__file__}" "$@"\n')
    path.chmod(0o755)
    return path


def scripted(folder: Path, config: dict[str, Any] | None = None, **settings: Any) -> Any:
    """A destination whose target writes into the folder."""
    config = {"folder": str(folder), **(config or {})}
    return SingerDestination(str(program()), config=config, **settings)


def set_fault(folder: Path, *faults: dict[str, Any]) -> None:
    """What goes wrong with the next runs of the target, one after the other."""
    (folder / "fault.json").write_text(json.dumps(list(faults)))


class Tables:
    """What a scripted target has written."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "tables.sqlite"

    def _query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        if not self._path.exists():
            return []
        with closing(sqlite3.connect(self._path, timeout=30)) as file:
            made = file.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'")
            # The target makes them one after the other.
            return file.execute(sql, values).fetchall() if made.fetchone() == (4,) else []

    def records(self, stream: str) -> list[dict[str, Any]]:
        """The rows as they are in the table, in the order in which they came."""
        sql = "SELECT record FROM rows WHERE stream = ? ORDER BY number"
        return [json.loads(text) for (text,) in self._query(sql, stream)]

    def received(self, stream: str) -> list[dict[str, Any]]:
        """Every RECORD message that came."""
        sql = "SELECT record FROM received WHERE stream = ? ORDER BY rowid"
        return [json.loads(text) for (text,) in self._query(sql, stream)]

    def streams(self) -> list[str]:
        return [stream for (stream,) in self._query("SELECT stream FROM streams ORDER BY 1")]

    def schema(self, stream: str) -> dict[str, Any]:
        [[text]] = self._query("SELECT schema FROM streams WHERE stream = ?", stream)
        found: dict[str, Any] = json.loads(text)
        return found

    def starts(self) -> int:
        """How often the target was started."""
        return len(self._query("SELECT pid FROM starts"))
