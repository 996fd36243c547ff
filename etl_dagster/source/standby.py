"""A standby as the source: how far it is, what it is set to, and what a new slot waits for.

A standby replays the WAL of its primary, and a stream brings what is replayed. So its positions are
the primary's. Nothing can be written: where a primary is sent a message to reach a position, a
standby is asked how far it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg

from etl_dagster.config import SourceConfig
from etl_dagster.errors import SourceUnreachable, StandbyBehind
from etl_dagster.lsn import Lsn
from etl_dagster.source.connection import connect, translate

Connection = psycopg.Connection[Any]

#: What makes the primary log the record that a slot on a standby waits for.
LOG_SNAPSHOT = "SELECT pg_log_standby_snapshot();"
#: A WAL receiver that was just started has the segment again within so long.
_RECEIVED_WITHIN_S = 5.0
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class StandbyFacts:
    """What of a standby decides whether a slot on it lives, and what arrives."""

    has_feedback: bool
    #: The physical slot on the primary; empty without one.
    primary_slot_name: str
    apply_delay_ms: int
    is_paused: bool
    #: Whether it has asked its primary for WAL since it was started.
    has_streamed: bool


def is_standby(connection: Connection) -> bool:
    """Whether the server is in recovery; a promotion ends that."""
    return connection.execute("select pg_is_in_recovery()").fetchone() == (True,)


def fetch_standby_facts(connection: Connection) -> StandbyFacts:
    """Of a server in recovery."""
    row = connection.execute(
        """
        select current_setting('hot_standby_feedback')::bool,
               current_setting('primary_slot_name'),
               (select setting from pg_settings where name = 'recovery_min_apply_delay')::int,
               pg_is_wal_replay_paused(), pg_last_wal_receive_lsn() is not null
        """
    ).fetchone()
    assert row is not None
    return StandbyFacts(*row)


def require_replayed(connection: Connection) -> None:
    """Refuse a standby that may show less than a connection before has seen; not any other server.

    A standby that is started replays again from its last restart point, and answers meanwhile. It
    asks its primary for WAL only once everything that it has kept is replayed, which includes all
    that it ever showed.

    Raises:
        StandbyBehind: it has not asked its primary yet.

    Source: src/backend/access/transam/xlogrecovery.c, `WaitForWALToBecomeAvailable`.
    """
    row = connection.execute(
        "select pg_is_in_recovery() and pg_last_wal_receive_lsn() is null"
    ).fetchone()
    if row == (True,):
        raise StandbyBehind(
            "the standby was started and has not streamed from its primary since, so it may not "
            "have replayed again what was read from it before"
        )


def fetch_seen_lsn(connection: Connection) -> Lsn:
    """Past every transaction that this connection can see now.

    On a standby a transaction becomes visible while its commit record is replayed, so that the
    replayed position may still be where this record begins. What is replayed was received before,
    unless it came from an archive. A WAL receiver begins with the whole segment, so for a moment
    it has received less than is replayed.

    Raises:
        StandbyBehind: the standby replays WAL that it did not receive.
    """
    deadline = time.monotonic() + _RECEIVED_WITHIN_S
    while True:
        row = connection.execute(
            """
            select case when pg_is_in_recovery() then pg_last_wal_receive_lsn()
                        else pg_current_wal_insert_lsn() end::text,
                   case when pg_is_in_recovery() then pg_last_wal_replay_lsn() end::text
            """
        ).fetchone()
        assert row is not None
        seen, replayed = (None if text is None else Lsn.parse(text) for text in row)
        if seen is not None and (replayed is None or seen >= replayed):
            return seen
        if time.monotonic() > deadline:
            raise StandbyBehind(
                f"the standby has replayed WAL up to {replayed} and has received it up to "
                f"{seen or 'nowhere'}: it reads an archive, and does not stream from its primary"
            )
        time.sleep(_LOOK_S)


def fetch_standby_identity(config: SourceConfig) -> tuple[str, int]:
    """System identifier and timeline of a server; also of a standby, which names no WAL file.

    Raises:
        SourceError: the source can't be reached or refuses.

    Source: PostgreSQL documentation, "Streaming Replication Protocol", IDENTIFY_SYSTEM.
    """
    with connect(config, application_name="etl_dagster history", replication=True) as connection:
        try:
            row = connection.execute("IDENTIFY_SYSTEM").fetchone()
        except psycopg.Error as error:
            raise translate(error, "identifying the standby") from None
    if row is None:
        raise SourceUnreachable("the standby does not identify itself")
    return str(row[0]), int(row[1])


@dataclass(frozen=True, slots=True)
class PrimaryActivity:
    """What a slot waits for while it is created on a standby."""

    #: Whether it waits for transactions of the primary to end; else for a record in the WAL.
    is_for_transactions: bool

    where: ClassVar[str] = "On the primary"

    def __str__(self) -> str:
        if self.is_for_transactions:
            return "transactions that are open on the primary"
        return "the primary to log which transactions run, which it does not do while it is idle"

    @property
    def solution(self) -> str:
        if self.is_for_transactions:
            return f"end those that are long (see pg_stat_activity.xact_start); run {LOG_SNAPSHOT}"
        return f"run {LOG_SNAPSHOT} With source.primary_dsn, the pipeline does."


def fetch_primary_activity(connection: Connection, pid: int) -> PrimaryActivity | None:
    """What a backend waits for that creates a slot; None on a primary.

    Source: PostgreSQL documentation, "pg_stat_activity", wait events of type Client; a wait for a
    transaction of the primary has no event.
    """
    row = connection.execute(
        "select wait_event from pg_stat_activity where pid = %s and pg_is_in_recovery()", [pid]
    ).fetchone()
    return None if row is None else PrimaryActivity("waitforwal" not in (row[0] or "").lower())
