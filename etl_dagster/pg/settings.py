"""Settings that every session pins, whatever the server, the database or the role prefers.

Only what changes which rows are read, how values print, or how a transaction is committed. What
only costs time (planner settings, memory) is left to the administrator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import psycopg

#: By name, known to every version from 14 on. Source: PostgreSQL documentation, "Client Connection
#: Defaults" and "Version and Platform Compatibility".
PINNED: Final[Mapping[str, str]] = {
    # Values print in one spelling.
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "xmloption": "content",
    "quote_all_identifiers": "off",
    # Literals, arrays and conditions are read in one way.
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    # Without a search path, names and regclass values print qualified everywhere, and no
    # other role slips in an operator; Postgres' own subscribers do the same (libpqwalreceiver.c).
    "search_path": "",
    # A policy that hides rows makes the server refuse, where it would leave them out.
    "row_security": "off",
    "gin_fuzzy_search_limit": "0",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    # With synchronous_standby_names = '*' our own walsender is a synchronous standby. It confirms
    # what is durable at the destination and recorded in the store: a commit in the store that
    # waited for that would wait for itself.
    "synchronous_commit": "local",
    "exit_on_error": "off",
    "jit": "off",
}

#: How money prints. Unlike the others, a DSN may choose another one: it decides what an amount is,
#: since money has as many digits after the point as the currency.
MONEY: Final[Mapping[str, str]] = {"lc_monetary": "C"}

#: A role's own timeouts would end a copy, an idle stream or a lease in the middle.
TIMEOUTS: Final[Mapping[str, str]] = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}

#: What older servers don't know, with the first version that does, as libpq numbers them.
_NEWER: Final[Mapping[str, tuple[str, int]]] = {"transaction_timeout": ("0", 170000)}

#: Pins them as a query that every version takes, for clients other than psycopg.
PIN_NEWER: Final = (
    "SELECT set_config('transaction_timeout', '0', false) FROM pg_settings "
    "WHERE name = 'transaction_timeout'"
)
#: The same until the end of the transaction.
PIN_NEWER_LOCALLY: Final = PIN_NEWER.replace("false", "true")


def as_options(settings: Mapping[str, str]) -> str:
    """A value for libpq's ``options``, which also holds on a replication connection.

    A setting that the server doesn't know makes it refuse the connection.
    """
    escaped = {
        name: value.replace("\\", "\\\\").replace(" ", "\\ ") for name, value in settings.items()
    }
    return " ".join(f"-c {name}={value}" for name, value in escaped.items())


def newer_settings(server_version: int) -> dict[str, str]:
    """What this server knows and version 14 doesn't."""
    return {name: value for name, (value, since) in _NEWER.items() if server_version >= since}


def pin_newer(connection: psycopg.Connection[Any]) -> None:
    """Pin what can't be an option; on a replication connection, too.

    Args:
        connection: in autocommit.
    """
    for name, value in newer_settings(connection.info.server_version).items():
        connection.execute(f"SET {name} = {value}")


def pin_session(
    connection: psycopg.Connection[Any],
    settings: Mapping[str, str] | None = None,
    *,
    is_own: bool = False,
) -> bool:
    """Pin the settings for as long as the connection lives, in one round trip.

    A pooler may give the session to others after each transaction. They would get our settings,
    so nothing is changed then; `pin_transaction` does it for one transaction.

    Args:
        connection: in autocommit.
        settings: by default all of `PINNED` and `TIMEOUTS`.
        is_own: a pooler is known to keep the session for this connection.

    Returns:
        Whether the session is the connection's own.
    """
    pid = connection.info.backend_pid  # a pooler makes a number up
    query = "SELECT pg_backend_pid(), {settings}"
    other = "false" if is_own else f"pg_backend_pid() <> {pid}"
    row = connection.execute(_calls(connection, query, settings, is_local=other)).fetchone()
    assert row is not None
    is_own = is_own or row[0] == pid
    if not is_own and not (connection.info.parameter_status("DateStyle") or "ISO").startswith(
        "ISO"
    ):
        # psycopg reads no other one. Poolers keep this setting apart for each client.
        connection.execute("SET DateStyle = 'ISO'")
    return is_own


def pin_transaction(
    connection: psycopg.Connection[Any], settings: Mapping[str, str] | None = None
) -> None:
    """The same until the end of the transaction, which the connection is in."""
    connection.execute(_calls(connection, "SELECT {settings}", settings, is_local="true"))


def _calls(
    connection: psycopg.Connection[Any],
    query: str,
    settings: Mapping[str, str] | None,
    *,
    is_local: str,
) -> bytes:
    """The query with a call of set_config() for each setting; all of it is constants of ours."""
    if settings is None:
        settings = {**PINNED, **TIMEOUTS}
    settings = {**settings, **newer_settings(connection.info.server_version)}
    return query.format(settings=_set(settings, is_local)).encode()


def locally(settings: Mapping[str, str]) -> str:
    """A query that pins them until the end of the transaction; all of it is constants of ours."""
    return f"SELECT {_set(settings, 'true')}"


def _set(settings: Mapping[str, str], is_local: str) -> str:
    calls = (f"set_config('{name}', '{value}', {is_local})" for name, value in settings.items())
    return ", ".join(calls)
