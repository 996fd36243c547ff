"""The heartbeat: a logical message in the source's WAL, which needs no table."""

from __future__ import annotations

from typing import Any

import psycopg

from etl_dagster.lsn import Lsn

#: Readers of other slots see it, too.
PREFIX = "etl_dagster heartbeat"

_REFUSALS = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.ObjectNotInPrerequisiteState,
)


def emit_heartbeat(connection: psycopg.Connection[Any]) -> Lsn | None:
    """Commit a logical message; a stream that is past the returned position has seen it.

    It is transactional, so that its commit moves every stream of the database, and has the WAL
    flushed. Returns None on a standby, and where the server refuses: a database that is read only,
    or a role without the right to call the function, which every role has by default.

    Source: PostgreSQL documentation, "pg_logical_emit_message".
    """
    try:
        row = connection.execute(
            "select case when not pg_is_in_recovery()"
            " then pg_catalog.pg_logical_emit_message(true, %s, '') end::text",
            [PREFIX],
        ).fetchone()
    except _REFUSALS:
        return None
    return None if row is None or row[0] is None else Lsn.parse(row[0])
