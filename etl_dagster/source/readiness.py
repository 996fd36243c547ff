"""What the source's server and rights allow; read only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from etl_dagster.source.catalog import PublishedTable

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What logical replication needs to know of a server."""

    #: As libpq numbers it: 180001 is 18.1.
    version: int
    version_text: str
    user: str
    database: str
    is_standby: bool
    wal_level: str
    max_replication_slots: int
    used_replication_slots: int
    max_wal_senders: int
    used_wal_senders: int
    #: 0: never.
    wal_sender_timeout_ms: int
    #: None: no limit.
    max_slot_wal_keep_bytes: int | None
    #: 0, or a server before 18: never.
    idle_slot_timeout_s: int
    synchronous_standby_names: str
    #: Empty on a server before 17.
    synchronized_standby_slots: str


def fetch_server_facts(connection: Connection) -> ServerFacts:
    """The server's settings, and what of its slots and senders is in use now."""
    row = connection.execute(
        """
        select current_setting('server_version'), current_user::text, current_database()::text,
               pg_is_in_recovery(), current_setting('wal_level'),
               current_setting('max_replication_slots')::int,
               (select count(*) from pg_replication_slots)::int,
               current_setting('max_wal_senders')::int,
               (select count(*) from pg_stat_replication)::int,
               (select setting from pg_settings where name = 'wal_sender_timeout')::int,
               (select nullif(setting::bigint, -1) * 1024 * 1024
                from pg_settings where name = 'max_slot_wal_keep_size'),
               coalesce((select setting::int * case unit when 'min' then 60 else 1 end
                         from pg_settings where name = 'idle_replication_slot_timeout'), 0),
               current_setting('synchronous_standby_names'),
               coalesce(current_setting('synchronized_standby_slots', true), '')
        """
    ).fetchone()
    assert row is not None
    return ServerFacts(connection.info.server_version, *row)


def names_standby(synchronous_standby_names: str, prefix: str) -> str | None:
    """The entry that makes a walsender with such an application name a synchronous standby.

    Args:
        prefix: how the application names begin.

    Source: PostgreSQL documentation, "synchronous_standby_names"; names match in any case.
    """
    listed = re.sub(r"(?i)\A\s*((first|any)\s+)?\d+\s*\(|\)\s*\Z", "", synchronous_standby_names)
    for quoted, plain in re.findall(r'"((?:[^"]|"")*)"|([^\s,"]+)', listed):
        name: str = quoted.replace('""', '"') or plain
        if name == "*" or name.lower().startswith(prefix.lower()):
            return name
    return None


def fetch_absent_standbys(connection: Connection, slots: str) -> list[str]:
    """Those of `synchronized_standby_slots` that no standby reads now, or that don't exist.

    Source: PostgreSQL documentation, "synchronized_standby_slots"; names are in lower case.
    """
    names = [name.strip(' "') for name in slots.split(",") if name.strip()]
    rows = connection.execute(
        "select slot_name from pg_replication_slots"
        " where slot_type = 'physical' and active and slot_name = any (%s)",
        [names],
    )
    present = {name for (name,) in rows}
    return [name for name in names if name not in present]


@dataclass(frozen=True, slots=True)
class ReadRights:
    """What the connection's user may read of a table."""

    may_use_schema: bool
    #: Whether it may read every column that a copy reads.
    may_select: bool
    #: Whether it may read ``ctid``, which cuts a large table into chunks. The right on the whole
    #: table includes it, those on columns don't.
    may_cut: bool
    #: A policy of the table, or of a partition that is read for it, decides which rows it sees;
    #: Postgres refuses to copy it, as we ask it to.
    is_filtered_by_policy: bool


def fetch_read_rights(
    connection: Connection, tables: Sequence[PublishedTable]
) -> dict[int, ReadRights]:
    """By table OID, the rights on each column that a copy reads.

    Args:
        tables: with the schemas that a new copy has; what those leave out isn't read.
    """
    pairs = [
        (table.schema.id, column.attnum)
        for table in tables
        for column in table.schema.columns
        if column.is_read
    ]
    rows = connection.execute(
        """
        select c.oid, has_schema_privilege(c.relnamespace, 'usage'),
               bool_and(has_column_privilege(c.oid, wanted.attnum, 'select')),
               has_column_privilege(c.oid, 'ctid', 'select'),
               row_security_active(c.oid) or exists (
                 with recursive tree (oid) as (
                   select c.oid where c.relkind = 'p'
                   union all
                   select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.oid
                 )
                 select from tree join pg_class leaf using (oid)
                 where leaf.relkind <> 'p' and row_security_active(leaf.oid))
        from unnest(%s::oid[], %s::int2[]) wanted (oid, attnum)
        join pg_class c on c.oid = wanted.oid
        group by c.oid, c.relkind, c.relnamespace
        """,
        [[oid for oid, _ in pairs], [attnum for _, attnum in pairs]],
    )
    return {oid: ReadRights(*rights) for oid, *rights in rows}
