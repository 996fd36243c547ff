"""Whether a path can be a DuckDB file; looks, and changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb

from etl_dagster.destinations.duckdb.failures import translate
from etl_dagster.errors import DestinationError, DestinationTooNew

#: At offset 8 of every DuckDB file.
_MAGIC = b"DUCK"
#: Three headers of 4 KiB; DuckDB writes them one after the other when it creates a file.
_HEADER_BYTES = 3 * 4096


def is_unfinished(path: Path) -> bool:
    """Whether a process died while it created the file: it never held a table.

    DuckDB refuses such a file for ever. Without content it may be taken for one that isn't there.
    """
    try:
        if path.stat().st_size >= _HEADER_BYTES or wal_of(path).exists():
            return False
        content = path.read_bytes()
    except OSError:
        return False
    return content[8:12] == _MAGIC or not content.strip(b"\0")


def wal_of(path: Path) -> Path:
    return Path(f"{path}.wal")


def check_file(path: Path) -> None:
    """Refuse what can't be, or become, a DuckDB file.

    Raises:
        DestinationError: with what to do.
    """
    check_place(path)
    is_there = path.exists() and not is_unfinished(path)
    if is_there and (failure := _newer_version(path)) is not None:
        raise failure


def check_place(path: Path) -> None:
    """The same without opening the file, for what opens it next.

    Raises:
        DestinationError: with what to do.
    """
    failure = _obstacle(path)
    if failure is not None:
        raise failure


def _obstacle(path: Path) -> DestinationError | None:
    folder = path.parent
    elsewhere = "Correct destination.path in the configuration."
    try:
        if path.is_dir():
            return DestinationError(
                f"the DuckDB file can't be written: {path} is a folder", solution=elsewhere
            )
        if not folder.is_dir():
            return DestinationError(
                f"the DuckDB file can't be written: there is no folder {folder}",
                solution=f"Create the folder, or correct destination.path. (mkdir -p '{folder}')",
            )
        # The write-ahead log and the lock file come next to it.
        if not os.access(folder, os.W_OK | os.X_OK):
            return DestinationError(
                f"the DuckDB file can't be written: no right to write in the folder {folder}",
                solution=f"Give this user the right to write there; or: {elsewhere}",
            )
        if not path.exists():
            return None
        if not os.access(path, os.R_OK | os.W_OK):
            return DestinationError(
                f"the DuckDB file can't be written: no right to write {path}",
                solution=f"Give this user the right to write it; or: {elsewhere}",
            )
        with path.open("rb") as file:
            head = file.read(12)
        if is_unfinished(path):
            return None
    except OSError as error:
        return DestinationError(
            f"the DuckDB file can't be written: {path}: {error.strerror}", solution=elsewhere
        )
    if head[8:12] != _MAGIC:
        return DestinationError(
            f"{path} exists and is not a DuckDB file", solution=f"Move it away; or: {elsewhere}"
        )
    return None


def _newer_version(path: Path) -> DestinationError | None:
    try:
        duckdb.connect(str(path), read_only=True).close()
    except duckdb.Error as error:
        failure = translate(error, path)
        # Others, such as that the file is in use, may be over when it is needed.
        return failure if isinstance(failure, DestinationTooNew) else None
    return None
