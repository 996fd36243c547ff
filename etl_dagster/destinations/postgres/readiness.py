"""Whether a database can be a destination; looks, and changes nothing."""

from __future__ import annotations

import contextlib
from typing import Final

import psycopg

from etl_dagster.destinations.postgres.connections import GRANTS
from etl_dagster.errors import DestinationError
from etl_dagster.pg.connection import Connection

_OLDEST: Final = 140000
#: A database of a server; for any role, other than the cluster's own identifier.
_IDENTITY: Final = (
    "SELECT pg_catalog.pg_postmaster_start_time(), oid FROM pg_catalog.pg_database "
    "WHERE datname = pg_catalog.current_database()"
)
_TABLES: Final = ("meta", "tables", "positions")


def require_usable(connection: Connection, uri: str, source: str | None) -> str:
    """What was found, in a few words.

    Args:
        connection: in a transaction.
        source: a connection string of the source, or None where there is none to compare with.

    Raises:
        DestinationError: it can't be written, with what to do.
    """
    version = connection.info.server_version
    if version < _OLDEST:
        raise DestinationError(
            f"{uri} is Postgres {version // 10000}", solution="Use version 14 or later."
        )
    encoding, is_standby, is_read_only = _row(
        connection,
        "SELECT pg_catalog.current_setting('server_encoding'), pg_catalog.pg_is_in_recovery(), "
        "pg_catalog.current_setting('transaction_read_only') = 'on'",
    )
    if encoding != "UTF8":
        raise DestinationError(
            f"{uri} keeps its text as {encoding}, which can't hold every text of the source",
            solution="Use a database that was created with ENCODING 'UTF8'.",
        )
    if is_standby:
        raise DestinationError(
            f"{uri} is a standby, which takes no writes",
            solution="Point destination.dsn to the primary (target_session_attrs=read-write finds "
            "it among several hosts), or promote this server.",
        )
    if is_read_only:
        raise DestinationError(
            f"{uri} takes no writes: default_transaction_read_only is on for this database, role "
            "or server",
            solution="Find out why: some providers set it when the disk is nearly full. Then turn "
            "it off: ALTER DATABASE ... RESET default_transaction_read_only, or the same for the "
            "role or the server.",
        )
    if source is not None:
        _require_another(connection, uri, source)
    return _require_rights(connection, uri)


def _require_another(connection: Connection, uri: str, source: str) -> None:
    here, there = _row(connection, _IDENTITY), None
    # Whether the source can be reached is not asked here.
    with (
        contextlib.suppress(psycopg.Error),
        psycopg.connect(source, connect_timeout=10, autocommit=True) as other,
    ):
        there = _row(other, _IDENTITY)
    if here == there:
        raise DestinationError(
            f"{uri} is the source's own database, in which the tables of the source have the "
            "names that theirs would have",
            solution="Set destination.dsn to another database; it may be on the same server.",
        )


def _require_rights(connection: Connection, uri: str) -> str:
    may_create, has_schema, may_use = _row(
        connection,
        "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'), "
        "pg_catalog.to_regnamespace('_etl') IS NOT NULL, "
        "(SELECT pg_catalog.has_schema_privilege(oid, 'CREATE') "
        "FROM pg_catalog.pg_namespace WHERE nspname = '_etl')",
    )
    if not has_schema:
        if not may_create:
            raise DestinationError(f"the role may not create schema _etl in {uri}", solution=GRANTS)
        return f"{uri}; the first start creates schema _etl"
    if not may_use:
        raise DestinationError(f"the role may not use schema _etl of {uri}", solution=GRANTS)
    rows = connection.execute(
        "SELECT relname FROM pg_catalog.pg_class "
        "WHERE relnamespace = pg_catalog.to_regnamespace('_etl') AND relkind = 'r'"
    ).fetchall()
    names = {name for (name,) in rows}
    if names and not names.issuperset(_TABLES):
        raise DestinationError(
            f"schema _etl of {uri} is in use by other software: no pipeline created its tables",
            solution="Use another database.",
        )
    return uri


def _row(connection: Connection, query: str) -> tuple[object, ...]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row
