"""DuckDB's own failures that aren't about one table."""

from __future__ import annotations

from pathlib import Path

import duckdb

from etl_dagster.errors import (
    BatchTooLarge,
    DestinationError,
    DestinationReplaced,
    DestinationTooNew,
    DestinationUnreachable,
)


def translate(error: duckdb.Error, path: Path) -> DestinationError:
    """A failure that isn't about one table, in our own words."""
    message = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # A commit fails with an exception of its own, whatever the cause.
    if isinstance(error, duckdb.OutOfMemoryException) or "failed to pin block" in message:
        # What others write at the same time counts, too, so waiting may help a single row.
        return BatchTooLarge(
            f"DuckDB needs more memory than it may use: {message}",
            solution="Raise destination.memory_limit, or lower batch.max_bytes, copy.chunk_rows or "
            "copy.max_connections_per_table.",
        )
    if "No space left on device" in message:
        return DestinationUnreachable(
            f"no space is left for {path}",
            solution="Make room on its disk; the pipeline goes on by itself.",
        )
    if "not a valid DuckDB database file" in message:
        return DestinationError(
            f"{path} is no DuckDB file",
            solution="Correct destination.path, or move the file away.",
        )
    if "WAL does not match database file" in message:
        return DestinationReplaced(
            f"{path} was exchanged while it was written: the write-ahead log beside it, "
            f"{path.name}.wal, belongs to another file or to an older copy"
        )
    if "but we can only read" in message:
        return DestinationTooNew(
            f"{path} was written by a newer DuckDB than {duckdb.__version__}, which is installed "
            "here",
            solution="Install that version: pip install --upgrade duckdb. Or name another file in "
            "destination.path, and reset the pipeline.",
        )
    if "Corrupt database file" in message:
        return DestinationError(
            f"{path} is damaged: {message}",
            solution="Restore it from a backup and start the pipeline: it says what to do next. Or "
            "move the file away and reset the pipeline, which copies the tables again.",
        )
    if isinstance(error, duckdb.TransactionException):
        return DestinationUnreachable(f"{path} was changed by somebody else: {message}")
    return DestinationUnreachable(f"{path} can't be used: {message}")
