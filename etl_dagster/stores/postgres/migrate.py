"""Creates and upgrades the tables of `PostgresStore`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources

import psycopg
from psycopg import errors, sql

from etl_dagster.errors import StoreError
from etl_dagster.stores.postgres.connections import Connection
from etl_dagster.stores.postgres.leases import lock_key

_NUMBERED = re.compile(r"\A(\d{4})_\w+\.sql\Z")


def migrations() -> Iterator[tuple[int, str, str]]:
    """Number, name and SQL of each migration, in order."""
    folder = resources.files("etl_dagster.stores.migrations")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        match = _NUMBERED.match(file.name)
        if match:
            yield int(match[1]), file.name.removesuffix(".sql"), file.read_text("utf-8")


def migrate(connection: Connection, schema: str) -> int:
    """Run the migrations that this schema lacks; returns how many.

    Several processes may do so at once. When there is nothing to do, no right to create anything
    is needed.

    Args:
        connection: in autocommit.

    Raises:
        StoreError: a newer version of this program was here, or the right to create is missing.
    """
    known = list(migrations())
    applied = _applied(connection, schema)
    if applied and max(applied) > known[-1][0]:
        raise StoreError(
            f"the state store's schema {schema!r} has migration {max(applied)}, "
            f"this version of etl-dagster knows {known[-1][0]}",
            solution="Upgrade etl-dagster here to the version that runs elsewhere.",
        )
    if len(applied) == len(known):
        return 0
    try:
        return _run(connection, schema, known)
    except errors.InsufficientPrivilege as error:
        raise StoreError(
            f"the state store needs tables in schema {schema!r}, which this user can't create",
            solution=f'Run once as an administrator: CREATE SCHEMA "{schema}" AUTHORIZATION '
            f'"{connection.info.user}"; or GRANT CREATE ON DATABASE "{connection.info.dbname}" '
            f'TO "{connection.info.user}";',
        ) from error


def _applied(connection: Connection, schema: str) -> set[int]:
    query = sql.SQL("SELECT number FROM {}").format(sql.Identifier(schema, "migrations"))
    try:
        return {number for (number,) in connection.execute(query)}
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return set()


def _run(connection: Connection, schema: str, known: list[tuple[int, str, str]]) -> int:
    count = 0
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", lock_key(schema, "", "migrate"))
        # CREATE SCHEMA IF NOT EXISTS wants the right to create also where it has nothing to do.
        exists = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
        if connection.execute(exists, (schema,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        connection.execute(
            sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema)),
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (number integer PRIMARY KEY, "
            "name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        applied = {number for (number,) in connection.execute("SELECT number FROM migrations")}
        for number, name, statements in known:
            if number in applied:
                continue
            # Several statements in one string: only the simple protocol takes them.
            psycopg.ClientCursor(connection).execute(statements.encode())
            connection.execute(
                "INSERT INTO migrations (number, name) VALUES (%s, %s)", (number, name)
            )
            count += 1
    return count
