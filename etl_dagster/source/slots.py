"""Replication slots: made, looked at, dropped."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import psycopg
from psycopg import sql

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import (
    EQUAL_AGAIN,
    NoSlotFree,
    SlotInUse,
    SlotInvalidated,
    SlotMissing,
    SlotNotCreated,
    SlotOfAnotherDatabase,
    SlotOfPrimary,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.source.connection import translate
from etl_dagster.source.standby import PrimaryActivity, fetch_primary_activity

Connection = psycopg.Connection[Any]


def apply_slot_name(pipeline: str) -> str:
    """The slot that the pipeline's apply worker reads, for as long as the pipeline exists."""
    return f"etl_dagster_apply_{pipeline}"


def apply_slot_names(config: PipelineConfig) -> tuple[str, ...]:
    """The slots that may keep a pipeline's changes; the first that exists does.

    Of one destination among several: its own slot, while it is set aside, else the shared one.
    """
    member = config.membership
    if member is None:
        return (apply_slot_name(config.pipeline),)
    return apply_slot_name(member.own_slot_of), apply_slot_name(member.pipeline)


def fetch_apply_slot(connection: Connection, config: PipelineConfig) -> Slot | None:
    """The slot that keeps the pipeline's changes now, or None when there is none."""
    found = {slot.name: slot for slot in _fetch(connection, apply_slot_names(config))}
    return next((found[name] for name in apply_slot_names(config) if name in found), None)


def table_sync_slot_name(pipeline: str, table_id: TableId) -> str:
    """The slot that keeps a table's changes while it is copied."""
    return f"etl_dagster_sync_{pipeline}_{table_id}"


def group_slot_name(pipeline: str, table_id: TableId) -> str:
    """The slot that keeps the changes of a group of tables, named after one of them.

    Not that table's own: it may leave the group, and be copied by itself at the same time.
    """
    return f"etl_dagster_group_{pipeline}_{table_id}"


@dataclass(frozen=True, slots=True)
class Slot:
    """A row of pg_replication_slots."""

    name: str
    plugin: str
    database: str
    active: bool
    active_pid: int | None
    #: reserved, extended, unreserved or lost.
    wal_status: str | None
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    #: WAL that the server keeps for the slot, bytes.
    retained_bytes: int
    #: Why it can't be read any more, from PostgreSQL 17 on: wal_removed, rows_removed,
    #: wal_level_insufficient or idle_timeout.
    invalidation_reason: str | None = None
    #: Whether it is of the database that was asked. A server has one list for all of them.
    is_of_this_database: bool = True
    #: Whether standbys are to have it, too; from PostgreSQL 17 on.
    is_failover: bool = False
    #: Whether this server is a standby that keeps it for its primary, and that reads it.
    is_of_primary: bool = False
    #: max_slot_wal_keep_size: the most that the server keeps for any slot; None: no limit.
    wal_limit_bytes: int | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether a backend is still making it, which waits for open transactions.

        It does so, too, after the process that asked for the slot has died.
        """
        is_ours = self.plugin == "pgoutput" and self.is_of_this_database
        return is_ours and self.active and self.confirmed_flush_lsn is None

    @property
    def is_lost(self) -> bool:
        return self.wal_status == "lost"


def fetch_slot(connection: Connection, slot_name: str) -> Slot | None:
    """The slot, or None when there is none of that name."""
    return next(iter(_fetch(connection, [slot_name])), None)


def _fetch(connection: Connection, names: Sequence[str]) -> list[Slot]:
    rows = connection.execute(
        """
        select slot_name, plugin, database, active, active_pid, wal_status,
               restart_lsn::text, confirmed_flush_lsn::text,
               coalesce(pg_wal_lsn_diff(
                 case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                      else pg_current_wal_lsn() end, restart_lsn), 0)::bigint,
               coalesce(to_jsonb(s) ->> 'invalidation_reason',
                        case to_jsonb(s) ->> 'conflicting' when 'true' then 'rows_removed' end),
               database is not distinct from current_database(),
               coalesce(to_jsonb(s) ->> 'failover' = 'true', false),
               coalesce(to_jsonb(s) ->> 'synced' = 'true', false) and pg_is_in_recovery(),
               (select nullif(setting::bigint, -1) * 1024 * 1024
                from pg_settings where name = 'max_slot_wal_keep_size')
        from pg_replication_slots s where slot_name = any (%s) order by slot_name
        """,
        [list(names)],
    ).fetchall()
    return [_slot_from(row) for row in rows]


def _slot_from(row: tuple[Any, ...]) -> Slot:
    name, plugin, database, active, pid, status, restart, confirmed, *rest = row
    return Slot(name, plugin, database, active, pid, status, _lsn(restart), _lsn(confirmed), *rest)


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else Lsn.parse(text)


def require_usable(slot: Slot) -> None:
    """Refuse a slot whose WAL is gone, and one of another program.

    Raises:
        SlotOfAnotherDatabase, SlotOfPrimary: it is another pipeline's.
        SlotInvalidated: it is lost.
    """
    if not slot.is_of_this_database:
        raise SlotOfAnotherDatabase(
            f"slot {slot.name!r} is there already, and belongs to database {slot.database!r} of "
            "the same server: a pipeline of the same name replicates that"
        )
    if slot.is_of_primary:
        raise SlotOfPrimary(
            f"slot {slot.name!r} is the primary's, and the source is a standby that keeps it for a "
            "failover: a pipeline of the same name reads the primary"
        )
    if slot.is_lost:
        raise _invalidated(slot)


def _invalidated(slot: Slot) -> SlotInvalidated:
    match slot.invalidation_reason:
        case "idle_timeout":
            return SlotInvalidated(
                f"slot {slot.name!r} is lost: it was idle for longer than "
                "idle_replication_slot_timeout",
                solution="Set idle_replication_slot_timeout on the source to 0, or to more than "
                f"the longest pause of the pipeline, then {EQUAL_AGAIN}",
            )
        case "wal_level_insufficient":
            return SlotInvalidated(
                f"slot {slot.name!r} is lost: wal_level was lower than 'logical' for a while",
                solution="Set wal_level to 'logical' on the source, and on the primary where the "
                f"source is a standby, and restart it, then {EQUAL_AGAIN}",
            )
        case "rows_removed":
            return SlotInvalidated(
                f"slot {slot.name!r} is lost: it is on a standby, and the primary removed catalog "
                "rows that the slot still needed",
                solution="On the standby: hot_standby_feedback = on, and primary_slot_name, which "
                f"keeps them while it is disconnected; then {EQUAL_AGAIN}",
            )
    return SlotInvalidated(f"slot {slot.name!r} is lost: the server removed WAL it still needed")


@dataclass(frozen=True, slots=True)
class CreatedSlot:
    """The answer to CREATE_REPLICATION_SLOT."""

    name: str
    #: Every transaction that commits from here on will be streamed.
    consistent_point: Lsn
    #: For SET TRANSACTION SNAPSHOT while the connection that made the slot stays as it is.
    snapshot_name: str | None


def create_slot(
    replication_connection: Connection,
    name: str,
    *,
    export_snapshot: bool = False,
    is_failover: bool = False,
    is_temporary: bool = False,
) -> CreatedSlot:
    """Make a logical slot for pgoutput.

    Args:
        is_failover: have standbys keep it, too; from PostgreSQL 17 on.
        is_temporary: Postgres drops it at the end of the connection.

    Postgres waits here for every transaction that is open now. The connection's lock_timeout ends
    the wait (statement_timeout doesn't).

    Raises:
        SlotError: it took too long, the name is taken, or no slot is free.

    Source: PostgreSQL documentation, "Streaming Replication Protocol".
    """
    if is_failover:
        snapshot = "export" if export_snapshot else "nothing"
        options = f"(SNAPSHOT '{snapshot}', FAILOVER true)"
    else:  # a form that every version since 10 takes
        options = "EXPORT_SNAPSHOT" if export_snapshot else "NOEXPORT_SNAPSHOT"
    command = sql.SQL("CREATE_REPLICATION_SLOT {}{} LOGICAL pgoutput {}").format(
        sql.Identifier(name), sql.SQL(" TEMPORARY" if is_temporary else ""), sql.SQL(options)
    )
    try:
        row = replication_connection.execute(command).fetchone()
    except psycopg.errors.LockNotAvailable as error:
        raise SlotNotCreated(
            f"slot {name!r} could not be created: a transaction that was open before is still open",
            solution="End long-running transactions on the source "
            "(select pid, xact_start, query from pg_stat_activity order by xact_start; "
            "and select gid, prepared from pg_prepared_xacts); the pipeline tries again.",
        ) from error
    except psycopg.errors.ConfigurationLimitExceeded as error:
        raise _none_free(name) from error
    except psycopg.errors.DuplicateObject as error:
        raise SlotInUse(f"slot {name!r} exists already") from error
    except psycopg.Error as error:
        raise translate(error, f"creating slot {name!r}") from None
    assert row is not None
    return CreatedSlot(row[0], Lsn.parse(row[1]), row[2])


def _none_free(name: str) -> NoSlotFree:
    return NoSlotFree(
        f"slot {name!r} could not be created: all replication slots of the server are in use"
    )


def copy_slot(connection: Connection, name: str, copy: str) -> Lsn:
    """Make a permanent slot that begins where another one is; returns where that is.

    The other may be read meanwhile. Unlike a new slot, a copy waits for no transaction: what is
    needed to decode from there on is kept already. Whether standbys are to have it, too, is
    not copied: see `make_failover_slot`.

    Raises:
        SlotError: no slot is free, the name is taken, or the other slot is lost.

    Source: PostgreSQL documentation, "Replication Management Functions".
    """
    try:
        connection.execute("select pg_copy_logical_replication_slot(%s, %s, false)", [name, copy])
    except psycopg.errors.ConfigurationLimitExceeded as error:
        raise _none_free(copy) from error
    except psycopg.errors.DuplicateObject as error:
        raise SlotInUse(f"slot {copy!r} exists already") from error
    except psycopg.errors.UndefinedObject as error:
        raise SlotMissing(f"slot {name!r} does not exist on the source") from error
    except psycopg.Error as error:
        raise translate(error, f"copying slot {name!r}") from None
    made = fetch_slot(connection, copy)
    if made is None or made.confirmed_flush_lsn is None:
        raise SlotNotCreated(f"slot {copy!r} was dropped as soon as it was made")
    return made.confirmed_flush_lsn


def make_failover_slot(replication_connection: Connection, name: str) -> None:
    """Have standbys keep the slot, too, which is not read now; from PostgreSQL 17 on.

    Raises:
        SlotError: the server refuses.
    """
    try:
        replication_connection.execute(
            sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER true)").format(sql.Identifier(name))
        )
    except psycopg.Error as error:
        raise translate(error, f"having standbys keep slot {name!r}") from None


@dataclass(frozen=True, slots=True)
class BlockingTransaction:
    """A transaction that the creation of a slot waits for."""

    #: The backend; None of a prepared transaction, which has none.
    pid: int | None
    application_name: str | None
    #: Since it began, or was prepared; None where we may not see that.
    age_s: float | None
    #: The name that PREPARE TRANSACTION gave it.
    gid: str | None

    #: Where the solution is to be run.
    where: ClassVar[str] = "On the source"

    def __str__(self) -> str:
        age = "" if self.age_s is None else f", open for {self.age_s:.0f} s"
        if self.gid is not None:
            return f"the prepared transaction {self.gid!r}{age}"
        who = f" ({self.application_name})" if self.application_name else ""
        return f"the transaction of backend {self.pid}{who}{age}"

    @property
    def solution(self) -> str:
        if self.gid is not None:
            name = self.gid.replace("'", "''")
            return f"COMMIT PREPARED '{name}'; or ROLLBACK PREPARED '{name}';"
        return f"end it, or: select pg_terminate_backend({self.pid});"


#: What the creation of a slot waits for, on a primary and on a standby.
CreationWait: TypeAlias = BlockingTransaction | PrimaryActivity


def fetch_waited_for(connection: Connection, pid: int) -> list[BlockingTransaction]:
    """The transactions that a backend waits for, now.

    Source: PostgreSQL documentation, "pg_locks": who waits for a transaction asks for a lock on
    its ID.
    """
    cursor = connection.execute(
        """
        select held.pid, activity.application_name,
               extract(epoch from now() - coalesce(prepared.prepared, activity.xact_start))::float,
               prepared.gid
        from pg_locks as wanted
        join pg_locks as held on held.locktype = 'transactionid' and held.granted
          and held.transactionid = wanted.transactionid
        left join pg_stat_activity as activity on activity.pid = held.pid
        left join pg_prepared_xacts as prepared on prepared.transaction = wanted.transactionid
        where wanted.pid = %s and wanted.locktype = 'transactionid' and not wanted.granted
        """,
        [pid],
    )
    return [BlockingTransaction(*row) for row in cursor]


def fetch_creation_waits(connection: Connection, slot: Slot) -> Sequence[CreationWait]:
    """What a slot waits for that is being created now; nothing for any other."""
    if not slot.is_unfinished or slot.active_pid is None:
        return []
    activity = fetch_primary_activity(connection, slot.active_pid)
    return fetch_waited_for(connection, slot.active_pid) if activity is None else [activity]


def drop_slot(connection: Connection, name: str, *, wait_s: float = 30.0) -> bool:
    """Drop the slot if it exists; whether it did.

    Postgres would also drop one of another database, which is another pipeline's. A backend that
    is still making the slot, for a process that is gone, is ended.

    Raises:
        SlotInUse: another process still reads it after `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            dropped = connection.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots "
                "where slot_name = %s and database = current_database()",
                [name],
            )
        except psycopg.errors.UndefinedObject:
            return False
        except psycopg.errors.ObjectInUse as error:
            if time.monotonic() > deadline:
                raise SlotInUse(f"slot {name!r} is read by another process") from error
            _end_maker(connection, name)
            # The server frees a slot a moment after its reader's connection ended; nothing tells.
            time.sleep(0.1)
        else:
            return dropped.rowcount > 0


def _end_maker(connection: Connection, name: str) -> None:
    """Without the right to do so, it ends after the lock_timeout that it was given."""
    slot = fetch_slot(connection, name)
    if slot is not None and slot.is_unfinished:
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            connection.execute("select pg_terminate_backend(%s)", [slot.active_pid])


def end_slot_reader(connection: Connection, name: str) -> None:
    """End the connection that reads the slot, if any; it is free a moment later."""
    slot = fetch_slot(connection, name)
    if slot is not None and slot.active_pid is not None:
        connection.execute("select pg_terminate_backend(%s)", [slot.active_pid])


_SYNC_SLOT = re.compile(
    r"\Aetl_dagster_(?P<kind>sync|group)_(?P<pipeline>.+)_(?P<table>\d+)\Z", re.ASCII
)


def fetch_table_sync_slots(connection: Connection, pipeline: str) -> dict[TableId, str]:
    """The table sync slots that exist for the pipeline, by table; not those of groups."""
    return _fetch_slots(connection, pipeline, "sync")


def fetch_group_slots(connection: Connection, pipeline: str) -> dict[TableId, str]:
    """The slots that groups of tables have, by the table that each is named after."""
    return _fetch_slots(connection, pipeline, "group")


def fetch_copying_slots(connection: Connection, pipeline: str) -> list[Slot]:
    """Every slot of the pipeline but the one of its apply worker, by name."""
    names = [
        *fetch_table_sync_slots(connection, pipeline).values(),
        *fetch_group_slots(connection, pipeline).values(),
    ]
    return _fetch(connection, names) if names else []


def fetch_leftover_slots(connection: Connection, config: PipelineConfig) -> list[Slot]:
    """Slots of destinations and shards that the pipeline does not have (any more), by name."""
    member = config.membership
    pipeline = config.pipeline if member is None else member.pipeline
    known = () if member is None else member.all_members
    if config.sharding is not None:
        # Of a shard, those of the pipeline as a whole are looked at.
        pipeline, known = config.sharding.pipeline, tuple(config.sharding.pipelines.values())
    begins = [f"etl_dagster_{kind}_{pipeline}__" for kind in ("apply", "sync", "group")]
    rows = connection.execute(
        "select slot_name from pg_replication_slots where database = current_database()"
    )
    found = [name for (name,) in rows if any(map(name.startswith, begins))]
    return [slot for slot in _fetch(connection, found) if _owner(slot.name) not in known]


def _owner(slot_name: str) -> str:
    """The pipeline that a slot of ours is named after."""
    copying = _SYNC_SLOT.match(slot_name)
    return copying["pipeline"] if copying else slot_name.removeprefix("etl_dagster_apply_")


def _fetch_slots(connection: Connection, pipeline: str, kind: str) -> dict[TableId, str]:
    names = connection.execute(
        "select slot_name from pg_replication_slots where database = current_database()"
    )
    found = {}
    for (name,) in names:
        match = _SYNC_SLOT.match(name)
        if match and match["kind"] == kind and match["pipeline"] == pipeline:
            found[int(match["table"])] = name
    return found
