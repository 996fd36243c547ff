"""Which cluster, which history and which database a connection leads to, and how far it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import psycopg

from etl_dagster.config import SourceConfig
from etl_dagster.errors import SourceUnreachable
from etl_dagster.lsn import Lsn
from etl_dagster.model.identity import KnownSource
from etl_dagster.source.connection import connect, translate

Connection = psycopg.Connection[Any]

_SWITCH = re.compile(r"\A(\d+)\s+([0-9A-Fa-f]+/[0-9A-Fa-f]+)")


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A source as it is now."""

    known: KnownSource
    #: The end of its WAL.
    lsn: Lsn
    #: Every transaction that was committed so far has a smaller number; 64 bits, with the epoch.
    next_xid: int


def fetch_source(connection: Connection) -> FoundSource:
    """What the server says of itself.

    Raises:
        SourceUnreachable: it is a standby; a promotion may be under way.

    Source: PostgreSQL documentation, "Control Data Functions", "Backup Control Functions"; the
    first eight digits of a WAL file's name are its timeline.
    """
    if connection.execute("select pg_is_in_recovery()").fetchone() == (True,):
        raise SourceUnreachable(
            "the source is a standby now",
            solution="Point `source` to the primary; the pipeline continues once it is connected.",
        )
    try:
        row = connection.execute("select system_identifier::text from pg_control_system()")
        system_id = str((row.fetchone() or ("",))[0])
    except psycopg.errors.InsufficientPrivilege:
        system_id = ""  # not every service lets one ask; then it isn't compared
    found = connection.execute(
        """
        select d.oid::bigint, d.datname, pg_current_wal_insert_lsn()::text,
               pg_snapshot_xmax(pg_current_snapshot())::text,
               pg_walfile_name(pg_current_wal_insert_lsn())
        from pg_database d where d.datname = current_database()
        """
    ).fetchone()
    assert found is not None
    database_id, database, lsn, next_xid, file = found
    known = KnownSource(system_id, int(file[:8], 16), database_id, database)
    return FoundSource(known, Lsn.parse(lsn), int(next_xid))


def fetch_timeline_end(config: SourceConfig, timeline: int, current: int) -> Lsn | None:
    """Where `timeline` was left for the history that `current` is the newest of.

    Returns None when `current` does not descend from it.

    Raises:
        SourceError: the history can't be read.

    Source: PostgreSQL documentation, "Streaming Replication Protocol", TIMELINE_HISTORY.
    """
    connection = connect(config, application_name="etl_dagster history", replication=True)
    with connection:
        try:
            row = connection.execute(f"TIMELINE_HISTORY {int(current)}").fetchone()
        except psycopg.Error as error:
            raise translate(error, "reading the history of the timeline") from None
    content = row[1] if row else b""
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
    if text.startswith("\\x"):
        text = bytes.fromhex(text[2:]).decode("utf-8", "replace")
    for line in text.splitlines():
        match = _SWITCH.match(line.strip())
        if match and int(match[1]) == timeline:
            return Lsn.parse(match[2])
    return None
