"""Settings that every session pins, whatever the server, the database or the role prefers.

Only what changes which rows are read, how values print, or how a transaction is committed. What
only costs time (planner settings, memory) is left to the administrator, and so is ``lc_monetary``:
it decides the currency.
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
    # Without a search path, names and regclass values print qualified everywhere, and nobody
    # slips us an operator; Postgres' own subscribers do the same (libpqwalreceiver.c).
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
