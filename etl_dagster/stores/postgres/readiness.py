"""Whether a database can be the state store; looks, and changes nothing."""

from __future__ import annotations

from etl_dagster.errors import StoreError
from etl_dagster.pg.connection import Connection
from etl_dagster.pg.migrate import pending
from etl_dagster.stores.postgres.migrate import STORE

#: The tables that are written; the migrations make them.
TABLES = (
    "pipelines",
    "table_states",
    "table_schemas",
    "replication_progress",
    "destination_tables",
    "copy_plans",
    "copy_chunks",
    "status",
    "known_destinations",
    "known_sources",
    "notes",
)


def check_store(connection: Connection, schema: str) -> str:
    """What is there, in a few words.

    Args:
        connection: in autocommit.

    Raises:
        StoreError: something is in the way, with what to do.
    """
    with connection.transaction():  # a pooler's session may be read only by default
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
        raise StoreError(
            f"the state store, database {database!r}, is read only",
            solution="Point state_store.dsn to a primary.",
        )
    if not exists:
        if may_create:
            return f"{where} is not there yet; the first start creates it"
        raise StoreError(
            f"the state store needs {where}, which {user!r} may not create",
            solution=f'Run once as an administrator: CREATE SCHEMA "{schema}" '
            f'AUTHORIZATION "{user}"; or GRANT CREATE ON DATABASE "{database}" TO "{user}"; '
            "or what `etl-dagster migrate --print` prints.",
        )
    if not may_use:
        raise StoreError(
            f"the state store refuses {user!r}: no right to use {where}",
            solution=f'GRANT USAGE, CREATE ON SCHEMA "{schema}" TO "{user}";',
        )
    return _check_tables(connection, schema, user, may_create_in)


def _check_tables(connection: Connection, schema: str, user: str, may_create_in: bool) -> str:
    missing = len(pending(connection, schema, STORE))
    if missing and not may_create_in:
        raise StoreError(
            f"{missing} migrations are to be run in schema {schema!r}, and {user!r} may not "
            "create tables there",
            solution=f'GRANT CREATE ON SCHEMA "{schema}" TO "{user}"; or run what '
            "`etl-dagster migrate --print` prints as an administrator.",
        )
    if missing:
        return f"schema {schema!r}; {missing} migrations run at the next start"
    # The ledger of migrations is only read.
    rows = connection.execute(
        """
        select relname from pg_class
        where relnamespace = to_regnamespace(quote_ident(%(schema)s)) and relkind = 'r'
            and relname = any (%(tables)s)
            and not (has_table_privilege(oid, 'select') and has_table_privilege(oid, 'insert')
                and has_table_privilege(oid, 'update') and has_table_privilege(oid, 'delete'))
        """,
        {"schema": schema, "tables": list(TABLES)},
    ).fetchall()
    if rows:
        names = ", ".join(sorted(name for (name,) in rows))
        raise StoreError(
            f"the user {user!r} may not write the state store's {names}",
            solution="GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "
            f'"{schema}" TO "{user}";',
        )
    return f"schema {schema!r} is up to date"
