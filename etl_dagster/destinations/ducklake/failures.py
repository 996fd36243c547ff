"""DuckLake's failures, in our words: those of one table, and those of the whole lake.

DuckDB's messages hold what was attached, with its password, and the statements that it sent to the
catalog, with the values of rows. So none of them is passed on as it is, nor kept as a cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import duckdb
import psycopg

from etl_dagster.destinations.duckdb.failures import NOT_OF_TABLE, OF_TABLE, VALUES
from etl_dagster.destinations.ducklake.attaching import LakePlace
from etl_dagster.destinations.ducklake.catalogs import PostgresCatalog
from etl_dagster.errors import (
    BatchTooLarge,
    DestinationError,
    DestinationTooNew,
    DestinationUnreachable,
    TableWriteFailed,
)
from etl_dagster.model.schema import TableId
from etl_dagster.pg.failures import Failure, derive, failure_of_text, marked

#: A line of the server's own, or of libpq, inside of DuckDB's message.
_SERVER: Final = re.compile(r"(?:FATAL|ERROR|PANIC): +(.*)")
_LIBPQ: Final = re.compile(
    r"(connection to server .*|could not (?:connect|translate|receive|send).*"
    r"|server closed the connection.*|no connection to the server.*"
    r"|SSL (?:connection|SYSCALL|error).*|Unable to connect to Postgres.*)"
)
_MISSING_FILE: Final = re.compile(r"(No such file or directory|HTTP 404|No files found that match)")
_HTTP: Final = re.compile(r"HTTP(?: Error)?:? *(?:HTTP )?\D*?([1-5]\d\d)\b")
_NAME_OF_FILE: Final = re.compile(r"ducklake-[0-9a-f-]+\.(?:parquet|puffin)")


class LakeConflict(DestinationUnreachable):
    """Another transaction changed the same since this one began; nothing of this one is kept."""

    solution = "No action needed: it is tried again."


def is_missing(error: duckdb.Error) -> bool:
    """Whether there is no lake, where none was to be made."""
    return "creating a new DuckLake is explicitly disabled" in str(error)


def is_conflict(error: duckdb.Error) -> bool:
    return "Transaction conflict" in str(error)


def translate(error: duckdb.Error, place: LakePlace) -> DestinationError:
    """A failure that isn't about one table, in our own words."""
    text = str(error)
    if is_conflict(error):
        return LakeConflict(f"another process has just written the same in {place.shown}")
    if isinstance(error, duckdb.OutOfMemoryException) or "failed to pin block" in text:
        # What others write at the same time counts, too, so waiting may help a single row.
        return BatchTooLarge(
            f"DuckDB needs more memory than it may use: {_shown(text, place)}",
            solution="Raise destination.memory_limit, or lower batch.max_bytes, copy.chunk_rows or "
            "copy.max_connections_per_table.",
        )
    if "No space left on device" in text:
        return DestinationUnreachable(
            f"no space is left for {place.shown}",
            solution="Make room on its disk; the pipeline continues by itself.",
        )
    if "does not match existing data path" in text:
        return DestinationError(
            f"{place.shown} has its files elsewhere than in {place.data_path}",
            solution="Correct destination.data_path, or use another catalog.",
        )
    if "only supports versions" in text or "newer than the" in text or "DuckLake version" in text:
        return DestinationTooNew(
            f"{place.shown} has another version than the extension that is installed here reads",
            solution="Install the DuckDB and the extension that wrote it; or upgrade the lake with "
            "DuckDB (ATTACH ... (AUTOMATIC_MIGRATION TRUE)).",
        )
    if is_missing(error):
        return no_lake(place)
    if _MISSING_FILE.search(text) and (found := _NAME_OF_FILE.search(text)):
        return DestinationError(
            f"a file of {place.shown} is missing in {place.data_path}: {found[0]}",
            solution="Restore it from a backup. Else reset the tables that can't be read: "
            "`etl-dagster reset SCHEMA.TABLE` copies one again, and replaces its files.",
        )
    if place.s3 and (found := _HTTP.search(text)):
        return _of_bucket(int(found[1]), place)
    if isinstance(place.catalog, PostgresCatalog) and (failure := _of_server(text, place.catalog)):
        return failure
    return DestinationUnreachable(f"{place.shown} can't be used: {_shown(text, place)}")


def no_lake(place: LakePlace) -> DestinationError:
    return DestinationError(
        f"there is no lake in {place.catalog.place}",
        solution="Start the pipeline first; it creates it. Or correct destination.catalog.",
    )


def _of_bucket(status: int, place: LakePlace) -> DestinationError:
    if status in (400, 401, 403):
        return DestinationError(
            f"the bucket of {place.data_path} refuses us (HTTP {status})",
            solution="Check destination.s3_key_id, s3_secret, s3_region and s3_endpoint, and that "
            "the key may read, write, list and delete there.",
        )
    if status == 404:
        return DestinationError(
            f"there is no bucket for {place.data_path} (HTTP 404)",
            solution="Create it, or correct destination.data_path or s3_endpoint.",
        )
    return DestinationUnreachable(f"the bucket of {place.data_path} answers HTTP {status}")


def _of_server(text: str, catalog: PostgresCatalog) -> DestinationError | None:
    """What the server of the catalog said, or libpq."""
    found = _SERVER.findall(text) or [match[0] for match in _LIBPQ.finditer(text)]
    if not found:
        return None
    message = catalog.redact(VALUES.sub("...", found[-1]).strip())
    failure = failure_of_text(text)
    if re.search(r"read-only transaction|recovery", text):
        failure = Failure.READ_ONLY
    elif _SERVER.search(text) and failure is Failure.LOST and "terminating connection" not in text:
        failure = Failure.OTHER
        if "could not serialize" in text or "deadlock" in text or "duplicate key" in text:
            failure = Failure.CONFLICT
    return marked(_at_server(failure, message, catalog), failure)


def from_postgres(error: psycopg.Error, catalog: PostgresCatalog) -> DestinationError:
    """A failure of our own connection to the catalog's server."""
    return derive(error, lambda kind, text: _at_server(kind, text, catalog), catalog.redact)


def _at_server(failure: Failure, message: str, catalog: PostgresCatalog) -> DestinationError:
    where = f"the catalog of the lake ({catalog.place})"
    match failure:
        case Failure.LOST | Failure.STARTING | Failure.CONNECTIONS_FULL | Failure.RESOURCES_SHORT:
            return DestinationUnreachable(
                f"{where} can't be reached: {message}",
                solution="Check destination.catalog and that the server is up; the pipeline "
                "reconnects by itself.",
            )
        case Failure.REFUSED | Failure.DATABASE_MISSING | Failure.OPTIONS | Failure.TLS:
            return DestinationError(
                f"{where} refuses the connection: {message}",
                solution="Check user, password, database and options in destination.catalog, and "
                "the server's pg_hba.conf.",
            )
        case Failure.FORBIDDEN:
            return DestinationError(
                f"{where} refuses us: {message}",
                solution="Grant the user of destination.catalog CREATE on the schema of its tables "
                "(destination.metadata_schema, by default public), or make it their owner.",
            )
        case Failure.READ_ONLY:
            return DestinationUnreachable(
                f"{where} takes no writes now: {message}",
                solution="After a failover, point destination.catalog to the primary "
                "(target_session_attrs=read-write finds it among several hosts). The pipeline "
                "retries.",
            )
        case Failure.DISK_FULL:
            return DestinationUnreachable(
                f"{where} has no room: {message}",
                solution="Make room on its server's disk. The pipeline retries.",
            )
        case Failure.CONFLICT:
            return LakeConflict(f"{where} gave up: {message}")
        case Failure.LOCKED | Failure.CANCELED:
            return DestinationUnreachable(
                f"{where} gave up: {message}",
                solution="No action needed: the pipeline tries again.",
            )
    return DestinationError(f"{where} failed: {message}")


def is_of_catalog(text: str) -> bool:
    """Whether a message tells of the catalog or the files, and so of no single table."""
    return bool(
        _SERVER.search(text)
        or _LIBPQ.search(text)
        or "Transaction conflict" in text
        or "for DuckLake" in text
        or _NAME_OF_FILE.search(text)
    )


@contextmanager
def blaming(table_id: TableId, name: str, place: LakePlace) -> Iterator[None]:
    """Turn failures that the table is to blame for into `TableWriteFailed`.

    Messages keep no value of a row.
    """
    try:
        yield
    except NOT_OF_TABLE:
        raise
    except OF_TABLE as error:
        text = str(error)
        if isinstance(error, duckdb.Error) and is_of_catalog(text):
            raise
        is_value = not isinstance(error, duckdb.ProgrammingError)
        message = (VALUES.sub("...", text) if is_value else text).splitlines() or [""]
        failure = _of_table(table_id, name, place.redact(message[0]), is_value=is_value)
    else:
        return
    raise failure from None


def _of_table(table_id: TableId, name: str, message: str, *, is_value: bool) -> TableWriteFailed:
    if is_value:
        return TableWriteFailed(
            table_id,
            f"DuckLake refuses a value of {name}: {message}",
            solution="Compare the column's type at the destination with the source's, "
            "then reset the table: the copy creates it again.",
        )
    return TableWriteFailed(table_id, f"DuckLake refuses {name}: {message}")


def _shown(text: str, place: LakePlace) -> str:
    lines = VALUES.sub("...", text).strip().splitlines() or ["?"]
    return place.redact(lines[0])
