"""Creates and upgrades the tables of `StateStorage`, and takes over those of an earlier backend."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import psycopg
from psycopg import errors, sql

from etl_dagster.integrations.meltano.states.errors import (
    StateSchemaMissing,
    StateStorageError,
    StateTablesMissing,
)
from etl_dagster.pg.connection import Connection

_NUMBERED = re.compile(r"\A(\d{4})_\w+\.sql\Z")


@dataclass(frozen=True, slots=True)
class StateTables:
    """The names of the tables, all in one schema."""

    schema: str
    state: str = "meltano_state"
    locks: str = "meltano_state_locks"

    @property
    def history(self) -> str:
        return f"{self.state}_history"

    @property
    def migrations(self) -> str:
        return f"{self.state}_migrations"

    def identifiers(self) -> dict[str, sql.Identifier]:
        """For `SQL.format`: ``{state}``, ``{locks}``, ``{history}``, ``{migrations}``."""
        names = {
            "state": self.state,
            "locks": self.locks,
            "history": self.history,
            "migrations": self.migrations,
        }
        return {key: sql.Identifier(self.schema, name) for key, name in names.items()}


def advisory_key(*names: str) -> int:
    """The int8 key of an advisory lock, the same in every process and version."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def migrations() -> Iterator[tuple[int, str, str]]:
    """Number, name and SQL of each migration, in order."""
    folder = resources.files("etl_dagster.integrations.meltano.states.migrations")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        match = _NUMBERED.match(file.name)
        if match:
            yield int(match[1]), file.name.removesuffix(".sql"), file.read_text("utf-8")


def ensure_tables(
    connection: Connection, tables: StateTables, *, create: bool, create_schema: bool
) -> int:
    """Run the migrations that are missing; returns how many.

    Several processes may do so at once. When there is nothing to do, no right to create anything is
    needed, and the tables alone decide: who may not read the record of migrations gets along.

    Args:
        connection: in autocommit.
        create: whether missing tables may be made.
        create_schema: whether a missing schema may be made. A mistyped name would look like empty
            state, and everything would be loaded again.

    Raises:
        StateTablesMissing: there is something to do, and it is not allowed.
        StateStorageError: a newer version of this program was here.
    """
    known = list(migrations())
    applied = _applied(connection, tables)
    if applied is not None:
        if max(applied, default=0) > known[-1][0]:
            raise StateStorageError(
                f"the tables in schema {tables.schema!r} have migration {max(applied)}, this "
                f"version of etl-dagster knows {known[-1][0]}",
                solution="Upgrade etl-dagster here to the version that runs elsewhere.",
            )
        if applied >= {number for number, _, _ in known}:
            return 0
    if not create:
        _require_schema(connection, tables.schema, create=False)
        raise StateTablesMissing(
            f"the tables for state are missing or old in schema {tables.schema!r}, and are not "
            "to be made now",
            solution="`meltano upgrade` makes them, with create_tables on, as a role that may; "
            "`etl-dagster state import` does, too.",
        )
    try:
        with connection.transaction():
            return _run(connection, tables, known, create_schema=create_schema)
    except errors.InsufficientPrivilege as error:
        user, database = connection.info.user, connection.info.dbname
        raise StateTablesMissing(
            f"the tables for state are missing or old in schema {tables.schema!r} of database "
            f"{database!r}, and the role {user!r} may not make them: "
            f"{str(error).splitlines()[0]}",
            solution=f'GRANT USAGE, CREATE ON SCHEMA "{tables.schema}" TO "{user}"; or run '
            "`meltano upgrade` once as a role that may, and grant this one SELECT, INSERT, UPDATE, "
            "DELETE on the tables.",
        ) from None


def script(tables: StateTables, connection: Connection | None = None) -> str:
    """What `ensure_tables` would run, for an administrator to read and to run with psql.

    Args:
        connection: to a database that may have some of it already; without one, all of it is due.

    Returns:
        SQL; empty when nothing is due.
    """
    done = set() if connection is None else _applied(connection, tables) or set()
    due = [migration for migration in migrations() if migration[0] not in done]
    if not due:
        return ""
    names = tables.identifiers()
    schema = sql.Identifier(tables.schema).as_string()
    parts = [
        f"-- Meltano states, schema {schema}",
        "BEGIN;",
        f"CREATE SCHEMA IF NOT EXISTS {schema};",
        *(sql.SQL(statement).format(**names).as_string() + ";" for statement in _LEDGER),
    ]
    for number, name, statements in due:
        record = sql.SQL("INSERT INTO {migrations} (number, name) VALUES ({number}, {name});")
        parts += [
            f"\n-- {name}",
            sql.SQL(statements).format(**names).as_string().strip(),
            record.format(**names, number=number, name=name).as_string(),
        ]
    return "\n".join([*parts, "\nCOMMIT;", ""])


_LEDGER = (
    "CREATE TABLE IF NOT EXISTS {migrations} (number integer PRIMARY KEY, "
    "name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())",
    "COMMENT ON TABLE {migrations} IS 'etl_dagster state store'",
)


def _applied(connection: Connection, tables: StateTables) -> set[int] | None:
    """The migrations that were run; None when the tables are not all there.

    Raises:
        InsufficientPrivilege: no USAGE on the schema.
    """
    names = [name.as_string(connection) for name in tables.identifiers().values()]
    row = connection.execute(
        "SELECT to_regclass(%s) IS NOT NULL AND to_regclass(%s) IS NOT NULL "
        "AND to_regclass(%s) IS NOT NULL AND to_regclass(%s) IS NOT NULL",
        names,
    ).fetchone()
    if row != (True,):
        return None
    query = sql.SQL("SELECT number FROM {migrations}").format(**tables.identifiers())
    try:
        return {number for (number,) in connection.execute(query)}
    except errors.InsufficientPrivilege:
        # The tables are there; an administrator granted what is needed for them and no more.
        return {number for number, _, _ in migrations()}


def _run(
    connection: Connection,
    tables: StateTables,
    known: list[tuple[int, str, str]],
    *,
    create_schema: bool,
) -> int:
    connection.execute(
        "SELECT set_config('lock_timeout', '60s', true), pg_advisory_xact_lock(%s)",
        (advisory_key(tables.schema, tables.state, "", "migrate"),),
    )
    _require_schema(connection, tables.schema, create=create_schema)
    names = tables.identifiers()
    _put_aside_earlier_backend(connection, tables)
    # Inside the lock, CREATE TABLE can't meet another one.
    for statement in _LEDGER:
        connection.execute(sql.SQL(statement).format(**names))
    done = {
        number
        for (number,) in connection.execute(
            sql.SQL("SELECT number FROM {migrations}").format(**names)
        )
    }
    count = 0
    for number, name, statements in known:
        if number in done:
            continue
        # Several statements in one string: only the simple protocol takes them.
        psycopg.ClientCursor(connection).execute(sql.SQL(statements).format(**names))
        connection.execute(
            sql.SQL("INSERT INTO {migrations} (number, name) VALUES (%s, %s)").format(**names),
            (number, name),
        )
        count += 1
    if 1 not in done:
        _take_over_earlier_backend(connection, tables)
    return count


def _require_schema(connection: Connection, schema: str, *, create: bool) -> None:
    exists = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
    if connection.execute(exists, (schema,)).fetchone() is not None:
        return
    if create:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        return
    there = connection.execute(
        "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' "
        "AND nspname <> 'information_schema' ORDER BY 1 LIMIT 10"
    ).fetchall()
    raise StateSchemaMissing(
        f"schema {schema!r} does not exist in database {connection.info.dbname!r}; it has "
        + (", ".join(repr(name) for (name,) in there) or "none"),
        solution="Correct the schema in state_backend.uri, or make it "
        f'(CREATE SCHEMA "{schema}";). '
        "It isn't made here, because a mistyped name would look like empty state.",
    )


# -- tables of meltano-state-backend-postgres, which have the same names ------------------------

_ASIDE = "_before_etl_dagster"


def _columns(connection: Connection, schema: str, table: str) -> set[str]:
    rows = connection.execute(
        "SELECT a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped",
        (schema, table),
    )
    return {name for (name,) in rows}


def _put_aside_earlier_backend(connection: Connection, tables: StateTables) -> None:
    """Rename its tables; what they hold comes into ours, and they stay there."""
    earlier = {
        tables.state: {"state_id", "partial_state", "completed_state", "updated_at"},
        tables.locks: {"state_id", "locked_at", "lock_id"},
    }
    for table, expected in earlier.items():
        columns = _columns(connection, tables.schema, table)
        if columns == expected:
            connection.execute(
                sql.SQL("ALTER TABLE {} RENAME TO {}").format(
                    sql.Identifier(tables.schema, table), sql.Identifier(table + _ASIDE)
                )
            )
        elif columns and "version" not in columns and "fencing_token" not in columns:
            raise StateTablesMissing(
                f"schema {tables.schema!r} has a table {table!r} that is not ours",
                solution="Choose other names with state_backend.postgres.state_table and "
                "locks_table, or another schema.",
            )


def _take_over_earlier_backend(connection: Connection, tables: StateTables) -> None:
    aside = tables.state + _ASIDE
    if not _columns(connection, tables.schema, aside):
        return
    connection.execute(
        sql.SQL(
            "WITH added AS ("
            "INSERT INTO {state} (state_id, partial_state, completed_state, updated_at, writer) "
            "SELECT state_id, partial_state::text, completed_state::text, "
            "coalesce(updated_at, clock_timestamp()), 'meltano-state-backend-postgres' "
            "FROM {aside} WHERE NOT EXISTS (SELECT FROM {state}) RETURNING *) "
            "INSERT INTO {history} (state_id, version, operation, partial_state, completed_state, "
            "written_at, writer) SELECT state_id, version, 'import', partial_state, "
            "completed_state, updated_at, writer FROM added"
        ).format(**tables.identifiers(), aside=sql.Identifier(tables.schema, aside))
    )
