"""Creates and upgrades the tables of `StateStorage`, and takes over those of an earlier backend."""

from __future__ import annotations

from psycopg import errors, sql

from etl_dagster.integrations.meltano.states.errors import (
    StateSchemaMissing,
    StateStorageError,
    StateTablesMissing,
)
from etl_dagster.integrations.meltano.states.tables import StateTables
from etl_dagster.pg import migrate as runner
from etl_dagster.pg.advisory import text_key
from etl_dagster.pg.connection import Connection
from etl_dagster.pg.migrate import Migration, Migrations


def ensure_tables(
    connection: Connection, tables: StateTables, *, create: bool, create_schema: bool
) -> int:
    """Run the migrations that are missing; returns how many.

    Several processes may do so at once. When there is nothing to do, no right to create anything is
    needed. For a role that may not read the record of migrations there is nothing to do once all
    tables are there.

    Args:
        connection: in autocommit.
        create: whether missing tables may be created.
        create_schema: whether a missing schema may be created. A mistyped name would look like
            empty state, and everything would be loaded again.

    Raises:
        StateTablesMissing: there is something to do, and it is not allowed.
        StateStorageError: a newer version of this program was here.
    """
    series = _series(tables)
    done = _applied(connection, tables)
    if done is not None and not runner.due(done, tables.schema, series):
        return 0
    if not create:
        _require_schema(connection, tables.schema, create=False)
        raise StateTablesMissing(
            f"the tables for state are missing or old in schema {tables.schema!r}, and must not be "
            "created here",
            solution="Run `meltano upgrade` with create_tables on, as a role that may create them; "
            "or `etl-dagster state import`.",
        )
    try:
        return len(
            runner.run(
                connection,
                tables.schema,
                series,
                before=lambda: _prepare(connection, tables, create_schema=create_schema),
                after=lambda run: _take_over_earlier_backend(connection, tables, run),
            )
        )
    except errors.InsufficientPrivilege as error:
        user, database = connection.info.user, connection.info.dbname
        raise StateTablesMissing(
            f"the tables for state are missing or old in schema {tables.schema!r} of database "
            f"{database!r}, and the role {user!r} may not create them: "
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
    series = _series(tables)
    return runner.script(runner.due(done, tables.schema, series), tables.schema, series)


def _series(tables: StateTables) -> Migrations:
    return Migrations(
        "the tables of Meltano states",
        "etl_dagster.integrations.meltano.states.migrations",
        StateStorageError,
        ledger=tables.migrations,
        comment="etl_dagster state store",
        names=tables.identifiers(),
        key=(text_key(tables.schema, tables.state, "", "migrate"),),
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
    series = _series(tables)
    try:
        return runner.applied(connection, tables.schema, series)
    except errors.InsufficientPrivilege:
        # The tables are there; an administrator granted what is needed for them and no more.
        return {migration.number for migration in series}


def _prepare(connection: Connection, tables: StateTables, *, create_schema: bool) -> None:
    _require_schema(connection, tables.schema, create=create_schema)
    _put_aside_earlier_backend(connection, tables)
    _require_all_or_none(connection, tables)


def _require_all_or_none(connection: Connection, tables: StateTables) -> None:
    """Raises StateTablesMissing where some are there, as after restoring a part of them.

    The record of migrations would be wrong: nothing would create the missing ones.
    """
    names = (tables.state, tables.history, tables.locks, tables.migrations)
    there = [name for name in names if _columns(connection, tables.schema, name)]
    missing = [name for name in names if name not in there]
    if not there or not missing:
        return
    raise StateTablesMissing(
        f"schema {tables.schema!r} has {', '.join(there)}, but not {', '.join(missing)}",
        solution="Restore the missing tables from the same backup. Or rename the tables that are "
        "there, run `meltano upgrade` to create new ones, and import the states: "
        "`etl-dagster state import --from URI --table NAME`.",
    )


def _require_schema(connection: Connection, schema: str, *, create: bool) -> None:
    exists = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
    if connection.execute(exists, (schema,)).fetchone() is not None:
        return
    if create:
        return  # the runner does
    there = connection.execute(
        "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' "
        "AND nspname <> 'information_schema' ORDER BY 1 LIMIT 10"
    ).fetchall()
    raise StateSchemaMissing(
        f"schema {schema!r} does not exist in database {connection.info.dbname!r}, which has "
        + (", ".join(repr(name) for (name,) in there) or "none"),
        solution="Correct the schema in state_backend.uri, or create it "
        f'(CREATE SCHEMA "{schema}";). '
        "It is not created by itself, because a mistyped name would look like empty state.",
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
    """Rename its tables. Their states are copied into ours later, and the old tables stay."""
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
                f"schema {tables.schema!r} has a table {table!r} that etl_dagster did not create",
                solution="Choose other names with state_backend.postgres.state_table and "
                "locks_table, or another schema.",
            )


def _take_over_earlier_backend(
    connection: Connection, tables: StateTables, run: list[Migration]
) -> None:
    aside = tables.state + _ASIDE
    if all(migration.number != 1 for migration in run):
        return
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
