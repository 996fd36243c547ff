"""DuckDB's own failures, in our words: those of one table, and those of the whole file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from etl_dagster.errors import (
    BatchTooLarge,
    DestinationError,
    DestinationReplaced,
    DestinationTooNew,
    DestinationUnreachable,
    TableWriteFailed,
)
from etl_dagster.model.schema import TableId

#: What a table or its values can be the reason of; anything else concerns the file.
OF_TABLE = (
    duckdb.DataError,
    duckdb.ProgrammingError,
    duckdb.NotSupportedError,
    duckdb.IntegrityError,
    pa.ArrowInvalid,
    pa.ArrowNotImplementedError,
)
NOT_OF_TABLE = (duckdb.TransactionException, duckdb.OutOfMemoryException)
_MISSING_TABLE = (
    "If the table was dropped or renamed at the destination, reset it: the copy creates it again. "
    "Otherwise fix the cause, then retry the table."
)
#: Inside quotes, DuckDB's messages repeat values.
VALUES = re.compile(r"'.*'|\".*\"", re.DOTALL)


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
            solution="Make room on its disk; the pipeline continues by itself.",
        )
    if "not a valid DuckDB database file" in message:
        return DestinationError(
            f"{path} is not a DuckDB file",
            solution="Correct destination.path, or move the file away.",
        )
    if "WAL does not match database file" in message:
        return DestinationReplaced(
            f"{path} was exchanged while it was written: the write-ahead log next to it, "
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
            solution="Restore it from a backup and start the pipeline: it reports what to do "
            "next. Or move the file away and reset the pipeline, which copies the tables again.",
        )
    if isinstance(error, duckdb.TransactionException):
        return DestinationUnreachable(f"{path} was changed by another process: {message}")
    return DestinationUnreachable(f"{path} can't be used: {message}")


@contextmanager
def blaming(table_id: TableId, name: str) -> Iterator[None]:
    """Turn failures that the table is to blame for into `TableWriteFailed`.

    Messages keep no value of a row.
    """
    try:
        yield
    except NOT_OF_TABLE:
        raise
    except OF_TABLE as error:
        message = (str(error).splitlines() or [""])[0]
        if isinstance(error, duckdb.ProgrammingError):
            missing = "does not exist" in message
            raise TableWriteFailed(
                table_id,
                f"DuckDB refuses {name}: {message}",
                solution=_MISSING_TABLE if missing else None,
            ) from error
        # The cause isn't kept either: it would be logged with its values.
        message = VALUES.sub("...", str(error)).splitlines()[0]
        raise TableWriteFailed(
            table_id,
            f"DuckDB refuses a value of {name}: {message}",
            solution="Compare the column's type at the destination with the source's, "
            "then reset the table: the copy creates it again.",
        ) from None
