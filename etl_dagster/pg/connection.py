"""Connections with every setting pinned, straight to the server or through a pooler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from etl_dagster.pg.cancelling import answered_within
from etl_dagster.pg.dsn import Dsn
from etl_dagster.pg.settings import as_options, pin_newer, pin_session

Connection = psycopg.Connection[tuple[Any, ...]]

#: How often a pooler is tried, which other clients use at the same time.
_SESSION_TRIES = 10


def pinned_conninfo(
    dsn: Dsn,
    settings: Mapping[str, str],
    defaults: Mapping[str, str] | None = None,
    **parameters: str | int,
) -> str:
    """A libpq connection string that pins the settings; for psycopg and other clients alike.

    It holds the password. Settings travel as ``options``, which need no round trip and also hold
    on a replication connection, but which most poolers refuse. Options of the DSN are kept where
    they don't contradict.

    Args:
        defaults: settings that the DSN's options win over.
        parameters: more of libpq's; they win over the DSN.
    """
    options = [as_options(defaults or {}), dsn.get("options"), as_options(settings)]
    return dsn.conninfo(
        **parameters, client_encoding="UTF8", options=" ".join(filter(None, options))
    )


def connect_pinned(conninfo: str, *, autocommit: bool = True) -> psycopg.Connection[Any]:
    """A connection by `pinned_conninfo`, with the settings, too, that older servers don't know.

    Raises:
        psycopg.Error: the server is away, or refuses us.
    """
    connection = psycopg.connect(conninfo, autocommit=True)
    try:
        pin_newer(connection)
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


def connect_shared(
    dsn: Dsn, settings: Mapping[str, str] | None = None, *, limit_s: float | None = None
) -> tuple[Connection, bool]:
    """A connection in autocommit that may lead through a pooler.

    Args:
        settings: to be pinned; by default all. A session that isn't the connection's own is left
            as it is: `settings.pin_transaction` pins them for a transaction.
        limit_s: how long the server may take to answer, after the connection is made. A pooler
            accepts one also while its server is away.

    Returns:
        The connection, and whether its session is known to be its own.

    Raises:
        psycopg.Error: the server is away, or refuses us.
    """
    connection = psycopg.connect(
        dsn.conninfo(client_encoding="UTF8"),
        autocommit=True,
        # A pooler may give each transaction another server connection, which knows nothing of what
        # was prepared on the one before.
        prepare_threshold=None,
    )
    limit = contextlib.nullcontext() if limit_s is None else answered_within(connection, limit_s)
    try:
        with limit:
            return connection, pin_session(connection, settings)
    except BaseException:
        connection.close()
        raise


def server_pid(connection: Connection) -> int:
    """The process that serves the connection now; behind a pooler it may be another each time."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def has_own_session(connection: Connection) -> bool:
    """Whether no pooler is in between: a server tells its own process, a pooler makes one up."""
    return server_pid(connection) == connection.info.backend_pid


def keeps_session(connection: Connection, connect: Callable[[], Connection]) -> bool:
    """Whether what the connection locks and listens to stays its own; else a pooler shares it.

    Args:
        connect: makes another connection by the same way, in autocommit.
    """
    pid = server_pid(connection)
    if pid == connection.info.backend_pid:
        return True
    # A pooler in transaction mode gives a transaction whichever server connection is free, most
    # often the one used last. Other clients change which one that is, so it is asked many times,
    # and with one and two connections held.
    with connect() as first, connect() as second:
        for _ in range(_SESSION_TRIES):
            with first.transaction():
                if pid in (server_pid(first), server_pid(second)):
                    return False
                if server_pid(connection) != pid:
                    return False
            if server_pid(connection) != pid:
                return False
    return True
