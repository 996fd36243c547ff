"""Connections to the source: one way to open them, one way to say why they fail."""

from __future__ import annotations

import re
from typing import Any

import psycopg

from etl_dagster.config import SourceConfig
from etl_dagster.errors import (
    EtlError,
    ReadConflict,
    SourceAuthenticationFailed,
    SourceError,
    SourceNotPrepared,
    SourceUnreachable,
)
from etl_dagster.pg.connection import connect_pinned, pinned_conninfo
from etl_dagster.pg.dsn import Dsn, tcp_settings
from etl_dagster.pg.failures import Failure, failure_of, marked, message_of
from etl_dagster.pg.settings import MONEY, PINNED, TIMEOUTS

#: A peer that vanished is noticed after a minute; a DSN may say otherwise.
_TCP = tcp_settings(60)


# -- opening -----------------------------------------------------------------------------------


def source_conninfo(
    config: SourceConfig,
    *,
    application_name: str,
    replication: bool = False,
    statement_timeout_s: float | None = None,
    lock_timeout_s: float | None = None,
    pins_money: bool = True,
) -> str:
    """A libpq connection string with all session settings; for psycopg and ADBC alike.

    It holds the password. Settings travel as ``options``, which need no round trip and also hold
    on a replication connection; options of the DSN are kept where they don't contradict.

    Raises:
        ConfigError: the DSN can't be read.
    """
    timeouts = dict(TIMEOUTS)
    if statement_timeout_s is not None:
        timeouts["statement_timeout"] = str(int(statement_timeout_s * 1000))
        timeouts["idle_in_transaction_session_timeout"] = timeouts["statement_timeout"]
    if lock_timeout_s is not None:
        timeouts["lock_timeout"] = str(int(lock_timeout_s * 1000))
    more = {"replication": "database"} if replication else {}
    return pinned_conninfo(
        Dsn.parse(config.conninfo()).with_defaults(**_TCP),
        {**PINNED, **timeouts},
        MONEY if pins_money else None,
        application_name=application_name,
        **more,
    )


def connect(
    config: SourceConfig,
    *,
    application_name: str,
    replication: bool = False,
    autocommit: bool = True,
    statement_timeout_s: float | None = None,
    lock_timeout_s: float | None = None,
    pins_money: bool = True,
) -> psycopg.Connection[Any]:
    """Open a connection with the settings that every value and every comparison relies on.

    Args:
        replication: speak the replication protocol; ordinary queries without parameters work, too.
        statement_timeout_s: for bounded questions to the catalog; None waits without end.
        lock_timeout_s: also bounds how long CREATE_REPLICATION_SLOT waits for open transactions.
        pins_money: whether money prints as we want, or as the server's own settings have it.

    Raises:
        ConfigError: the DSN can't be read.
        SourceError: one of its kinds; see `translate`.
    """
    conninfo = source_conninfo(
        config,
        application_name=application_name,
        replication=replication,
        statement_timeout_s=statement_timeout_s,
        lock_timeout_s=lock_timeout_s,
        pins_money=pins_money,
    )
    try:
        return connect_pinned(conninfo, autocommit=autocommit)
    except psycopg.Error as error:
        dsn = Dsn.parse(config.conninfo())
        failure = translate(error, f"connecting to {dsn.uri}")
        failure.reason = dsn.redact(failure.reason)
        failure.args = (failure.reason,)
    # Outside of the handler: libpq's text doesn't follow as a cause, should it hold a secret.
    raise failure


def source_uri(config: SourceConfig) -> str:
    """Where the source is, for people: a URI without password or parameters.

    Raises:
        ConfigError: the DSN can't be used.
    """
    return Dsn.parse(config.conninfo()).uri


# -- failing -----------------------------------------------------------------------------------


def translate(error: psycopg.Error, what: str) -> EtlError:
    """The error that tells the person on call what to do.

    Args:
        error: whatever psycopg raised, at the connection or in a statement.
        what: what was being done, such as ``reading the publication``; begins the reason.
    """
    return error_for(failure_of(error), what, message_of(error), sqlstate=error.sqlstate)


def error_for(
    failure: Failure, what: str, message: str, *, sqlstate: str | None = None
) -> EtlError:
    """The same for a client other than psycopg.

    Args:
        message: the server's or libpq's; without row values.
    """
    return marked(_translated(failure, sqlstate, f"{what}: {message}", message), failure)


def _translated(failure: Failure, sqlstate: str | None, reason: str, message: str) -> EtlError:
    match failure:
        case Failure.LOST | Failure.STARTING:
            return SourceUnreachable(reason)
        case Failure.REFUSED:
            return SourceAuthenticationFailed(reason)
        case Failure.REPLICATION_FORBIDDEN:
            return SourceNotPrepared(
                reason,
                solution="Give the user of source.user the right to replicate: "
                "ALTER ROLE ... REPLICATION; (on Amazon RDS: GRANT rds_replication TO ...;)",
            )
        case Failure.TLS:
            return SourceError(
                reason, solution="Check source.sslmode, source.sslrootcert and the certificates."
            )
        case Failure.OPTIONS:
            return SourceError(
                reason, solution="Correct the options in source.dsn, or in PGOPTIONS."
            )
        case Failure.WAL_SENDERS_FULL:
            return SourceUnreachable(
                reason, solution="All WAL senders are busy: raise max_wal_senders on the source."
            )
        case Failure.LIMIT_REACHED:
            return SourceNotPrepared(
                reason,
                solution="Raise max_replication_slots on the source, or drop slots that are not "
                "read any more.",
            )
        case Failure.DATABASE_MISSING:
            return SourceError(reason, solution="Correct source.database, or create the database.")
        case Failure.FORBIDDEN:
            return SourceError(reason, solution=solution_for_refusal(message))
        case Failure.CONNECTIONS_FULL:
            return SourceUnreachable(
                reason,
                solution="All connections are in use: raise max_connections, or lower "
                "copy.max_table_sync_workers and copy.max_connections_per_table.",
            )
        case Failure.READ_ONLY:
            return SourceUnreachable(
                reason,
                solution="The source takes no writes now: after a failover, connect to the "
                "primary. The pipeline retries.",
            )
        case Failure.CONFLICT if "recovery" in message:
            return ReadConflict(reason)
        case Failure.DISK_FULL:
            return SourceUnreachable(
                reason, solution="Make room on the source's disk. The pipeline retries."
            )
        case Failure.ENCODING:
            return SourceError(
                reason,
                solution="A name in the source's catalog has bytes that are not in its encoding "
                "or not in UTF-8; rename what has it (see SHOW server_encoding).",
            )
    if sqlstate == "55000" and "wal_level" in message:
        return SourceNotPrepared(
            reason,
            solution="Set wal_level = logical on the source and restart it; where it is a "
            "standby, on its primary, too.",
        )
    return SourceError(reason)


def solution_for_refusal(message: str) -> str:
    """What lets the user of source.user do what the server refused (SQLSTATE 42501)."""
    if "row-level security" in message:
        return (
            "A policy hides rows from the user of source.user, and a copy without them would be "
            "wrong. As a superuser: ALTER ROLE ... BYPASSRLS; or make it the table's owner, "
            "without FORCE ROW LEVEL SECURITY. Then retry the table."
        )
    found = re.search(r"permission denied for (\w+) (\S+)", message)
    kind, name = (found[1], found[2]) if found else ("", "")
    if kind in ("table", "relation", "view"):
        return f"Let the user of source.user read it: GRANT SELECT ON {name} TO ...;"
    if kind == "schema":
        return f"Let the user of source.user see it: GRANT USAGE ON SCHEMA {name} TO ...;"
    if kind == "database":
        return f"Let the user of source.user in: GRANT CONNECT ON DATABASE {name} TO ...;"
    return "Grant the user of source.user the right named above; `etl-dagster doctor` lists all."
