"""Connections to the source: one way to open them, one way to say why they fail."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from etl_dagster.config import SourceConfig
from etl_dagster.errors import (
    ConfigError,
    EtlError,
    SourceAuthenticationFailed,
    SourceError,
    SourceNotPrepared,
    SourceUnreachable,
)
from etl_dagster.pg.failures import Failure, failure_of, message_of
from etl_dagster.pg.settings import PINNED, TIMEOUTS, as_options, pin_newer

#: A peer that vanished is noticed after some 60 seconds; a DSN may say otherwise.
_TCP = {
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


# -- opening -----------------------------------------------------------------------------------


def source_conninfo(
    config: SourceConfig,
    *,
    application_name: str,
    replication: bool = False,
    statement_timeout_s: float | None = None,
    lock_timeout_s: float | None = None,
) -> str:
    """A libpq connection string with all session settings; for psycopg and ADBC alike.

    It holds the password. Settings travel as ``options``, which need no round trip and also hold
    on a replication connection; options of the DSN are kept where they don't contradict.

    Raises:
        ConfigError: the DSN can't be read.
    """
    _check_dsn(config)
    given = conninfo_to_dict(config.conninfo())
    port = given.get("port")
    if port and not all(part.isdigit() for part in str(port).split(",")):
        # It may be a piece of a password that should have been percent-encoded.
        raise ConfigError(["source.dsn: the port is not a number"], origin="source")
    timeouts = dict(TIMEOUTS)
    if statement_timeout_s is not None:
        timeouts["statement_timeout"] = str(int(statement_timeout_s * 1000))
        timeouts["idle_in_transaction_session_timeout"] = timeouts["statement_timeout"]
    if lock_timeout_s is not None:
        timeouts["lock_timeout"] = str(int(lock_timeout_s * 1000))
    options = [as_options({**PINNED, **timeouts})]
    if given.get("options"):
        options.insert(0, str(given["options"]))
    values: dict[str, Any] = (
        _TCP
        | given
        | {
            "application_name": application_name,
            "client_encoding": "UTF8",
            "options": " ".join(options),
        }
    )
    if replication:
        values["replication"] = "database"
    return make_conninfo("", **values)


def connect(
    config: SourceConfig,
    *,
    application_name: str,
    replication: bool = False,
    autocommit: bool = True,
    statement_timeout_s: float | None = None,
    lock_timeout_s: float | None = None,
) -> psycopg.Connection[Any]:
    """Open a connection with the settings that every value and every comparison relies on.

    Args:
        replication: speak the replication protocol; ordinary queries without parameters work, too.
        statement_timeout_s: for bounded questions to the catalog; None waits without end.
        lock_timeout_s: also bounds how long CREATE_REPLICATION_SLOT waits for open transactions.

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
    )
    try:
        connection = psycopg.connect(conninfo, autocommit=True)
        try:
            pin_newer(connection)
            connection.autocommit = autocommit
        except BaseException:
            connection.close()
            raise
        return connection
    except psycopg.Error as error:
        failure = translate(error, f"connecting to {source_uri(config)}")
        failure.reason = _redact(failure.reason, config)
        failure.args = (failure.reason,)
    # Outside of the handler: libpq's text doesn't follow as a cause, should it hold a secret.
    raise failure


def source_uri(config: SourceConfig) -> str:
    """Where the source is, for people: a URI without password or parameters."""
    _check_dsn(config)
    given = conninfo_to_dict(config.conninfo())
    user, host, port = (str(given.get(key) or "") for key in ("user", "host", "port"))
    authority = quote(host, safe=",:[]") if not host.startswith("/") else quote(host, safe="")
    if user:
        authority = f"{quote(user, safe='')}@{authority}"
    if port:
        authority = f"{authority}:{port}"
    return f"postgresql://{authority}/{quote(str(given.get('dbname') or user), safe='')}"


def check_dsn(dsn: str, place: str) -> None:
    """Refuse a URI that libpq would take apart at the wrong place, in the middle of a password.

    It would then name the piece of the password as a host or port in its messages.

    Raises:
        ConfigError: the message names `place`, such as ``source.dsn``, and nothing of the DSN.
    """
    match = re.match(r"\Apostgres(?:ql)?://([^?]*)", dsn)
    if match is None:
        return
    before, at, after = match[1].rpartition("@")
    if at and ("@" in before or "/" in before or "@" in after):
        raise ConfigError(
            [
                f"{place}: user or password hold a character that must be percent-encoded "
                "(@ as %40, / as %2F); or use source.user and source.password"
            ],
            origin="configuration",
        )


def _check_dsn(config: SourceConfig) -> None:
    if config.dsn is not None:
        check_dsn(config.dsn.get_secret_value(), "source.dsn")


def _redact(text: str, config: SourceConfig) -> str:
    password = conninfo_to_dict(config.conninfo()).get("password")
    return text.replace(str(password), "***") if password and len(str(password)) > 3 else text


# -- failing -----------------------------------------------------------------------------------


def translate(error: psycopg.Error, what: str) -> EtlError:
    """The error that tells the person on call what to do.

    Args:
        error: whatever psycopg raised, at the connection or in a statement.
        what: what was being done, such as ``reading the publication``; begins the reason.
    """
    message = message_of(error)
    failure = failure_of(error)
    translated = _translated(failure, error.sqlstate, f"{what}: {message}", message)
    translated.retryable = failure.is_passing
    translated.is_starting = failure is Failure.STARTING
    return translated


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
            reason, solution="Set wal_level = logical on the source and restart it."
        )
    return SourceError(reason)


def solution_for_refusal(message: str) -> str:
    """What lets the user of source.user do what the server refused (SQLSTATE 42501)."""
    if "row-level security" in message:
        return (
            "A policy hides rows from the user of source.user, and a copy without them would be "
            "wrong. As a superuser: ALTER ROLE ... BYPASSRLS; or make it the table's owner, "
            "without FORCE ROW LEVEL SECURITY. Then reset the table."
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
