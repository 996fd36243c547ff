"""The migrations of the state store."""

from __future__ import annotations

from psycopg import errors

from etl_dagster.errors import StoreError
from etl_dagster.pg import migrate as runner
from etl_dagster.pg.connection import Connection
from etl_dagster.pg.migrate import Migration, Migrations

STORE = Migrations("the state store", "etl_dagster.stores.migrations", StoreError)


def migrate(connection: Connection, schema: str) -> list[Migration]:
    """Run the migrations that this schema lacks; returns them.

    Several processes may do so at once. When there is nothing to do, no right to create anything
    is needed.

    Args:
        connection: in autocommit.

    Raises:
        StoreError: a newer version of this program was here, or the right to create is missing.
    """
    if not runner.pending(connection, schema, STORE):
        return []
    try:
        return runner.run(connection, schema, STORE)
    except errors.InsufficientPrivilege as error:
        user, database = connection.info.user, connection.info.dbname
        raise StoreError(
            f"{STORE.subject} needs tables in schema {schema!r}, which this user can't create",
            solution=f'Run once as an administrator: CREATE SCHEMA "{schema}" AUTHORIZATION '
            f'"{user}"; or GRANT CREATE ON DATABASE "{database}" TO "{user}"; or what '
            "`etl-dagster migrate --print` prints.",
        ) from error
