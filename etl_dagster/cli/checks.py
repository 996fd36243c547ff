"""What must be true of source, state store and destination; looks, and changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
from psycopg import sql

from etl_dagster.cli.failures import NotReady
from etl_dagster.config import DuckDBDestinationConfig, PipelineConfig
from etl_dagster.errors import DestinationError, EtlError, StoreError
from etl_dagster.runtime.preflight import Check, run_checks
from etl_dagster.source.connection import check_dsn
from etl_dagster.stores.postgres.connections import Connection, Connections
from etl_dagster.stores.postgres.migrate import migrations

#: At offset 8 of every DuckDB file.
_DUCKDB_MAGIC = b"DUCK"


def all_checks(config: PipelineConfig) -> list[Check]:
    """The report of the doctor."""
    return [*run_checks(config), *check_state_store(config), *check_destination(config)]


def require_all(config: PipelineConfig) -> None:
    """Refuse to start while there is an error.

    Raises:
        EtlError: the one thing in the way, or all of them at once.
    """
    failures = [check.failure for check in all_checks(config) if check.failure is not None]
    if len(failures) == 1:
        raise failures[0]
    if failures:
        lines = [f"{len(failures)} things stand in the way:"]
        for failure in failures:
            lines += [f"\n- {failure.reason}", f"  What to do: {failure.solution}"]
        raise NotReady("\n".join(lines))


# -- state store -------------------------------------------------------------------------------


def check_state_store(config: PipelineConfig) -> list[Check]:
    """Whether the state store can be reached, and its tables used or made."""
    name = "state store"
    if config.state_store.type != "postgres":
        return [
            Check.warning(
                name,
                "in memory: every start copies all tables again",
                "Set state_store.type to postgres to keep what was done.",
            )
        ]
    try:
        dsn = config.state_store_conninfo()
        if config.state_store.dsn is not None:
            check_dsn(dsn, "state_store.dsn")
        connections = Connections(dsn, application_name="etl-dagster doctor", max_size=1)
        with connections.connect() as connection:
            try:
                return _check_store(connection, config.state_store.schema_name)
            except psycopg.Error as error:
                return [Check.error(name, connections.translate(error))]
    except EtlError as error:
        return [Check.error(name, error)]


def _check_store(connection: Connection, schema: str) -> list[Check]:
    name = "state store"
    row = connection.execute(
        """
        select current_user::text, current_database()::text,
               pg_is_in_recovery() or current_setting('transaction_read_only')::bool,
               has_database_privilege(current_database(), 'create'),
               n.oid is not null, coalesce(has_schema_privilege(n.oid, 'usage'), false),
               coalesce(has_schema_privilege(n.oid, 'create'), false)
        from (select) one left join pg_namespace n on n.nspname = %s
        """,
        [schema],
    ).fetchone()
    assert row is not None
    user, database, is_read_only, may_create, exists, may_use, may_create_in = row
    where = f"schema {schema!r} of database {database!r}"
    if is_read_only:
        failure = StoreError(
            f"the state store, database {database!r}, is read only",
            solution="Point state_store.dsn to a primary.",
        )
        return [Check.error(name, failure)]
    if not exists:
        if may_create:
            return [Check.ok(name, f"{where} is not there yet; the first start creates it")]
        failure = StoreError(
            f"the state store needs {where}, which {user!r} may not create",
            solution=f'Run once as an administrator: CREATE SCHEMA "{schema}" '
            f'AUTHORIZATION "{user}"; or GRANT CREATE ON DATABASE "{database}" TO "{user}";',
        )
        return [Check.error(name, failure)]
    if not may_use:
        failure = StoreError(
            f"the state store refuses {user!r}: no right to use {where}",
            solution=f'GRANT USAGE, CREATE ON SCHEMA "{schema}" TO "{user}";',
        )
        return [Check.error(name, failure)]
    return [_check_tables(connection, schema, user, may_create_in)]


def _check_tables(connection: Connection, schema: str, user: str, may_create_in: bool) -> Check:
    name = "state store"
    known = [number for number, _, _ in migrations()]
    applied: set[int] = set()
    table = sql.Identifier(schema, "migrations")
    found = connection.execute("select to_regclass(%s)", [table.as_string()]).fetchone()
    if found != (None,):
        rows = connection.execute(sql.SQL("select number from {}").format(table))
        applied = {number for (number,) in rows}
    if applied and max(applied) > known[-1]:
        failure = StoreError(
            f"the state store has migration {max(applied)}, this version knows {known[-1]}",
            solution="Upgrade etl-dagster here to the version that runs elsewhere.",
        )
        return Check.error(name, failure)
    missing = len(set(known) - applied)
    if missing and not may_create_in:
        failure = StoreError(
            f"{missing} migrations are to be run in schema {schema!r}, and {user!r} may not "
            "create tables there",
            solution=f'GRANT CREATE ON SCHEMA "{schema}" TO "{user}";',
        )
        return Check.error(name, failure)
    if missing:
        return Check.ok(name, f"schema {schema!r}; {missing} migrations run at the next start")
    pipelines = sql.Identifier(schema, "pipelines").as_string()
    rights = connection.execute(
        "select has_table_privilege(%(table)s, 'select') and "
        "has_table_privilege(%(table)s, 'insert') and has_table_privilege(%(table)s, 'update') "
        "and has_table_privilege(%(table)s, 'delete')",
        {"table": pipelines},
    ).fetchone()
    if rights != (True,):
        failure = StoreError(
            f"the user {user!r} may not write the tables of the state store",
            solution="GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "
            f'"{schema}" TO "{user}";',
        )
        return Check.error(name, failure)
    return Check.ok(name, f"schema {schema!r} is up to date")


# -- destination -------------------------------------------------------------------------------


def check_destination(config: PipelineConfig) -> list[Check]:
    """Whether the destination can be written."""
    match config.destination:
        case DuckDBDestinationConfig() as duckdb:
            failure = _duckdb_obstacle(duckdb.path)
            if failure is not None:
                return [Check.error("destination", failure)]
            what = "" if duckdb.path.exists() else "; the first start creates it"
            return [Check.ok("destination", f"DuckDB file {duckdb.path}{what}")]
        case _:
            return [
                Check.warning(
                    "destination",
                    "memory: everything is gone when the process ends",
                    "For more than trying out, set destination.type to duckdb.",
                )
            ]


def _duckdb_obstacle(path: Path) -> DestinationError | None:
    folder = path.parent
    elsewhere = "Correct destination.path in the configuration."
    try:
        if path.is_dir():
            return DestinationError(
                f"the DuckDB file can't be written: {path} is a folder", solution=elsewhere
            )
        if not folder.is_dir():
            return DestinationError(
                f"the DuckDB file can't be written: there is no folder {folder}",
                solution=f"Create the folder, or correct destination.path. (mkdir -p '{folder}')",
            )
        # The write-ahead log and the lock file come beside it.
        if not os.access(folder, os.W_OK | os.X_OK):
            return DestinationError(
                f"the DuckDB file can't be written: no right to write in the folder {folder}",
                solution=f"Give this user the right to write there; or: {elsewhere}",
            )
        if not path.exists():
            return None
        if not os.access(path, os.R_OK | os.W_OK):
            return DestinationError(
                f"the DuckDB file can't be written: no right to write {path}",
                solution=f"Give this user the right to write it; or: {elsewhere}",
            )
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        return DestinationError(
            f"the DuckDB file can't be written: {path}: {error.strerror}", solution=elsewhere
        )
    if head and head[8:12] != _DUCKDB_MAGIC:
        return DestinationError(
            f"{path} is there, and is no DuckDB file", solution=f"Move it away; or: {elsewhere}"
        )
    return None
