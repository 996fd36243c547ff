"""Creates and upgrades tables by numbered migrations, those of `PostgresStore` to begin with."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import resources

import psycopg
from psycopg import errors, sql

from etl_dagster.errors import StoreError
from etl_dagster.pg.advisory import lock_key
from etl_dagster.pg.connection import Connection

_NUMBERED = re.compile(r"\A(\d{4})_\w+\.sql\Z")


@dataclass(frozen=True, slots=True)
class Migration:
    """Statements that are run once in each schema."""

    number: int
    name: str
    statements: str


@dataclass(frozen=True, slots=True)
class Migrations:
    """A numbered series of migrations; several may live in one schema."""

    #: For people: whose tables they make.
    subject: str
    #: The package that holds the files ``NNNN_name.sql``. Each runs with the schema as its
    #: `search_path`.
    package: str
    #: The table that remembers which were run.
    ledger: str = "migrations"

    def __iter__(self) -> Iterator[Migration]:
        folder = resources.files(self.package)
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            match = _NUMBERED.match(file.name)
            if match:
                name = file.name.removesuffix(".sql")
                yield Migration(int(match[1]), name, file.read_text("utf-8"))


STORE = Migrations("the state store", "etl_dagster.stores.migrations")


def migrate(connection: Connection, schema: str, series: Migrations = STORE) -> list[Migration]:
    """Run the migrations that this schema lacks; returns them.

    Several processes may do so at once. When there is nothing to do, no right to create anything
    is needed.

    Args:
        connection: in autocommit.

    Raises:
        StoreError: a newer version of this program was here, or the right to create is missing.
    """
    if not pending(connection, schema, series):
        return []
    try:
        return _run(connection, schema, series)
    except errors.InsufficientPrivilege as error:
        raise StoreError(
            f"{series.subject} needs tables in schema {schema!r}, which this user can't create",
            solution=f'Run once as an administrator: CREATE SCHEMA "{schema}" AUTHORIZATION '
            f'"{connection.info.user}"; or GRANT CREATE ON DATABASE "{connection.info.dbname}" '
            f'TO "{connection.info.user}"; or what `etl-dagster migrate --print` prints.',
        ) from error


def pending(connection: Connection, schema: str, series: Migrations = STORE) -> list[Migration]:
    """The migrations that this schema lacks; changes nothing.

    Raises:
        StoreError: a newer version of this program was here.
    """
    known = list(series)
    applied = _applied(connection, schema, series)
    if applied and max(applied) > known[-1].number:
        raise StoreError(
            f"{series.subject} in schema {schema!r} has migration {max(applied)}, "
            f"this version of etl-dagster knows {known[-1].number}",
            solution="Upgrade etl-dagster here to the version that runs elsewhere.",
        )
    return [migration for migration in known if migration.number not in applied]


def script(missing: Collection[Migration], schema: str, series: Migrations = STORE) -> str:
    """The same as SQL for an administrator to read, and to run with psql; empty when none is."""
    if not missing:
        return ""
    identifier = sql.Identifier(schema).as_string()
    ledger = sql.Identifier(series.ledger).as_string()
    parts = [
        f"-- {series.subject} of etl_dagster, schema {identifier}",
        "BEGIN;",
        f"CREATE SCHEMA IF NOT EXISTS {identifier};",
        f"SET LOCAL search_path TO {identifier};",
        _LEDGER.format(ledger=ledger) + ";",
    ]
    for migration in missing:
        parts += [
            f"\n-- {migration.name}",
            migration.statements.strip(),
            f"INSERT INTO {ledger} (number, name) "  # noqa: S608 (our own file's name)
            f"VALUES ({migration.number}, '{migration.name}');",
        ]
    return "\n".join([*parts, "\nCOMMIT;", ""])


_LEDGER = (
    "CREATE TABLE IF NOT EXISTS {ledger} (number integer PRIMARY KEY, "
    "name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
)


def _applied(connection: Connection, schema: str, series: Migrations) -> set[int]:
    query = sql.SQL("SELECT number FROM {}").format(sql.Identifier(schema, series.ledger))
    try:
        return {number for (number,) in connection.execute(query)}
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return set()


def _run(connection: Connection, schema: str, series: Migrations) -> list[Migration]:
    run: list[Migration] = []
    ledger = sql.Identifier(series.ledger)
    with connection.transaction():
        connection.execute(
            "SELECT pg_advisory_xact_lock(%s, %s)", lock_key(schema, "", series.ledger)
        )
        # CREATE SCHEMA IF NOT EXISTS wants the right to create also where it has nothing to do.
        exists = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
        if connection.execute(exists, (schema,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        connection.execute(
            sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema)),
        )
        connection.execute(sql.SQL(_LEDGER).format(ledger=ledger))
        query = sql.SQL("SELECT number FROM {}").format(ledger)
        applied = {number for (number,) in connection.execute(query)}
        for migration in series:
            if migration.number in applied:
                continue
            # Several statements in one string: only the simple protocol takes them.
            psycopg.ClientCursor(connection).execute(migration.statements.encode())
            connection.execute(
                sql.SQL("INSERT INTO {} (number, name) VALUES (%s, %s)").format(ledger),
                (migration.number, migration.name),
            )
            run.append(migration)
    return run
