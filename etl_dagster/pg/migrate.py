"""Creates and upgrades tables by numbered migrations, each run once in its schema.

Files that were released never change: a database remembers by their numbers which were run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

import psycopg
from psycopg import errors, sql

from etl_dagster.errors import EtlError
from etl_dagster.pg.advisory import lock_key
from etl_dagster.pg.connection import Connection

_NUMBERED = re.compile(r"\A(\d{4})_\w+\.sql\Z")
#: Others may be migrating, or use the tables; this long is waited for them.
_LOCK_TIMEOUT_S = 60.0
_LEDGER = (
    "CREATE TABLE IF NOT EXISTS {} (number integer PRIMARY KEY, "
    "name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
)


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
    #: The package that holds the files ``NNNN_name.sql``.
    package: str
    #: What is raised where a newer version was before.
    error: type[EtlError]
    #: The table that remembers which were run.
    ledger: str = "migrations"
    #: Its comment.
    comment: str | None = None
    #: For the names in braces in the files. Without any, a file is run as it is, with the schema as
    #: its `search_path`.
    names: Mapping[str, sql.Identifier] | None = None
    #: Of the advisory lock that one process at a time holds; by default made of schema and ledger.
    key: tuple[int, ...] | None = None

    def __iter__(self) -> Iterator[Migration]:
        folder = resources.files(self.package)
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            match = _NUMBERED.match(file.name)
            if match:
                name = file.name.removesuffix(".sql")
                yield Migration(int(match[1]), name, file.read_text("utf-8"))


def applied(connection: Connection, schema: str, series: Migrations) -> set[int]:
    """The numbers of the migrations that were run; none where the schema or ledger is missing.

    Raises:
        InsufficientPrivilege: the ledger may not be read.
    """
    query = sql.SQL("SELECT number FROM {}").format(_ledger(schema, series))
    try:
        return {number for (number,) in connection.execute(query)}
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return set()


def pending(connection: Connection, schema: str, series: Migrations) -> list[Migration]:
    """The migrations that this schema lacks; changes nothing.

    Args:
        connection: in autocommit.

    Raises:
        EtlError: of the series; a newer version of this program was here.
        psycopg.Error: the server refuses.
    """
    return due(applied(connection, schema, series), schema, series)


def due(done: Collection[int], schema: str, series: Migrations) -> list[Migration]:
    """The migrations that are not among those done.

    Raises:
        EtlError: of the series; a newer version of this program was here.
    """
    known = list(series)
    newest = max(done, default=0)
    if newest > known[-1].number:
        raise series.error(
            f"{series.subject} in schema {schema!r} has migration {newest}, this version of "
            f"etl-dagster knows {known[-1].number}",
            solution="Upgrade etl-dagster here to the version that runs elsewhere.",
        )
    return [migration for migration in known if migration.number not in done]


def run(
    connection: Connection,
    schema: str,
    series: Migrations,
    *,
    before: Callable[[], None] = lambda: None,
    after: Callable[[list[Migration]], None] = lambda run: None,
    lock_timeout_s: float = _LOCK_TIMEOUT_S,
) -> list[Migration]:
    """Create the schema if it is missing, and run what it lacks; returns what was run.

    All of it is one transaction. Several processes may do so at once.

    Args:
        connection: in autocommit.
        before: called first in the transaction, while no other process migrates.
        after: called last in it, with what was run.

    Raises:
        psycopg.Error: the server refuses; nothing was changed.
    """
    ledger = _ledger(schema, series)
    with connection.transaction():
        key = series.key or lock_key(schema, "", series.ledger)
        wait = sql.SQL(
            "SELECT set_config('lock_timeout', {}, true), pg_advisory_xact_lock({})"
        ).format(
            f"{lock_timeout_s * 1000:.0f}ms", sql.SQL(", ").join([sql.Placeholder()] * len(key))
        )
        connection.execute(wait, key)
        before()
        # CREATE SCHEMA IF NOT EXISTS wants the right to create also where it has nothing to do.
        exists = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
        if connection.execute(exists, (schema,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        for statement in _preamble(schema, series):
            connection.execute(statement)
        query = sql.SQL("SELECT number FROM {}").format(ledger)
        done = {number for (number,) in connection.execute(query)}
        missing = [migration for migration in series if migration.number not in done]
        for migration in missing:
            # Several statements in one string: only the simple protocol takes them.
            psycopg.ClientCursor(connection).execute(_statements(migration, series))
            connection.execute(_record(migration, ledger))
        after(missing)
    return missing


def script(missing: Collection[Migration], schema: str, series: Migrations) -> str:
    """The same as SQL for an administrator to read, and to run with psql; empty when none is."""
    if not missing:
        return ""
    identifier = sql.Identifier(schema).as_string()
    parts = [
        f"-- {series.subject} of etl_dagster, schema {identifier}",
        "BEGIN;",
        f"CREATE SCHEMA IF NOT EXISTS {identifier};",
        *(f"{statement.as_string()};" for statement in _preamble(schema, series)),
    ]
    for migration in missing:
        parts += [
            f"\n-- {migration.name}",
            _statements(migration, series).as_string().strip(),
            f"{_record(migration, _ledger(schema, series)).as_string()};",
        ]
    return "\n".join([*parts, "\nCOMMIT;", ""])


def _ledger(schema: str, series: Migrations) -> sql.Identifier:
    return sql.Identifier(schema, series.ledger)


def _preamble(schema: str, series: Migrations) -> Iterator[sql.Composed]:
    """What comes before the migrations, once the schema is there."""
    if series.names is None:
        yield sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema))
    ledger = _ledger(schema, series)
    yield sql.SQL(_LEDGER).format(ledger)
    if series.comment is not None:
        yield sql.SQL("COMMENT ON TABLE {} IS {}").format(ledger, series.comment)


def _statements(migration: Migration, series: Migrations) -> sql.SQL | sql.Composed:
    text = sql.SQL(migration.statements)
    return text if series.names is None else text.format(**series.names)


def _record(migration: Migration, ledger: sql.Identifier) -> sql.Composed:
    insert = sql.SQL("INSERT INTO {} (number, name) VALUES ({}, {})")
    return insert.format(ledger, migration.number, migration.name)
