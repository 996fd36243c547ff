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
from etl_dagster.source.standby import fetch_standby_identity, is_standby, require_replayed

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
    #: It replays the WAL of another server, of which it may have more later.
    is_standby: bool = False


def fetch_source(connection: Connection, config: SourceConfig) -> FoundSource:
    """What the server says of itself.

    Raises:
        SourceUnreachable: it is a standby and is not meant to be one (a promotion may be under
            way), or may show less than it did before.

    Source: PostgreSQL documentation, "Control Data Functions", "Backup Control Functions"; the
    first eight digits of a WAL file's name are its timeline.
    """
    if is_standby(connection):
        if config.standby:
            return _fetch_standby(connection, config)
        raise SourceUnreachable(
            "the source is a standby now",
            solution="Point `source` to the primary; the pipeline continues once it is connected. "
            "To read from the standby: source.standby: true.",
        )
    system_id = fetch_system_id(connection)
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


def fetch_system_id(connection: Connection) -> str:
    """The cluster's system identifier, which its standbys have, too.

    Empty where the service doesn't let one ask; then it isn't compared.
    """
    try:
        row = connection.execute("select system_identifier::text from pg_control_system()")
    except psycopg.errors.InsufficientPrivilege:
        return ""
    return str((row.fetchone() or ("",))[0])


def _fetch_standby(connection: Connection, config: SourceConfig) -> FoundSource:
    require_replayed(connection)
    system_id, timeline = fetch_standby_identity(config)
    found = connection.execute(
        """
        select oid::bigint, datname, pg_last_wal_replay_lsn()::text,
               pg_snapshot_xmax(pg_current_snapshot())::text
        from pg_database where datname = current_database()
        """
    ).fetchone()
    assert found is not None
    database_id, database, lsn, next_xid = found
    known = KnownSource(system_id, timeline, database_id, database)
    return FoundSource(known, Lsn.parse(lsn), int(next_xid), is_standby=True)


def fetch_timeline_ends(config: SourceConfig, current: int) -> dict[int, Lsn]:
    """Where each timeline that `current` descends from was left, the oldest first.

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
    switches = filter(None, (_SWITCH.match(line.strip()) for line in text.splitlines()))
    return {int(switch[1]): Lsn.parse(switch[2]) for switch in switches}
