"""Takes a table out of one publication and into another, so that no change is in neither."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from etl_dagster.errors import EtlError, MoveRefused, TableLocked
from etl_dagster.model.schema import TableId
from etl_dagster.source.membership import look
from etl_dagster.table_name import TableName

Connection = psycopg.Connection[Any]

#: Other sessions that want to write the table wait behind us for as long.
_LOCK_WAIT = "5s"


def fetch_table_id(connection: Connection, name: TableName) -> TableId | None:
    """The table of this name; None where there is none."""
    row = connection.execute(
        "select c.oid::bigint from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = %s and c.relname = %s",
        [name.schema_name, name.table_name],
    ).fetchone()
    return None if row is None else row[0]


def require_movable(connection: Connection, table_id: TableId, name: str, of: str, to: str) -> None:
    """See that the first publication holds the table in a way in which the second one can, too.

    Raises:
        MoveRefused: it holds it, or publishes, in another way than the other would.
        PublicationMissing: there is none of a name.
    """
    ours, theirs = look(connection, of), look(connection, to)
    member = ours.members.get(table_id)
    if table_id in theirs.members:
        raise MoveRefused(
            f"{name} is in publication {to!r} already",
            solution=f"Take it out there, leave it in {of!r}, and move it then.",
        )
    if member is None:
        raise MoveRefused(f"{name} is not in publication {of!r}")
    if table_id in ours.partitions:
        raise MoveRefused(f"{name} is published through its partition root")
    [path, *more] = sorted(member.paths)
    if more or not path.startswith("named ") or path.endswith(" limited"):
        raise MoveRefused(
            f"publication {of!r} does not list {name} as a whole: it publishes all tables of the "
            "database or of a schema, or some of its rows or columns"
        )
    differs = (
        ours.publication.operations != theirs.publication.operations
        or ours.publication.via_partition_root != theirs.publication.via_partition_root
    )
    if differs or _generated_differ(connection, of, to):
        raise MoveRefused(
            f"publications {of!r} and {to!r} differ in what they publish",
            solution="Give both the same settings: ALTER PUBLICATION ... SET (publish = ..., "
            "publish_via_partition_root = ..., and from PostgreSQL 18 on "
            "publish_generated_columns = ...). Then start the pipeline once before the move.",
        )


def _generated_differ(connection: Connection, of: str, to: str) -> bool:
    """Whether only one of the publications sends generated columns, which Postgres 18 brought."""
    row = connection.execute(
        "select count(distinct to_jsonb(p) ->> 'pubgencols') > 1 from pg_publication p"
        " where pubname in (%s, %s)",
        [of, to],
    ).fetchone()
    assert row is not None
    return bool(row[0])


def move_between_publications(
    connection: Connection, table_id: TableId, name: str, of: str, to: str
) -> None:
    """Move it in one transaction.

    Postgres decides by the catalog as of each change which publication has it. So a transaction
    that wrote the table before the move and commits after it would be in both by halves. The lock
    waits for all that have written it; none comes in between.

    Raises:
        TableLocked: transactions that write the table didn't end in time; nothing was changed.
        MoveRefused: it has another name meanwhile, or we may not; nothing was changed.

    Source: PostgreSQL documentation, "Explicit Locking"; SnapBuildDistributeNewCatalogSnapshot in
    src/backend/replication/logical/snapbuild.c.
    """
    row = connection.execute(
        "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where c.oid = %s",
        [table_id],
    ).fetchone()
    if row is None:
        raise MoveRefused(f"{name} was dropped")
    table = sql.Identifier(*row)
    statements = [
        sql.SQL("ALTER PUBLICATION {} DROP TABLE ONLY {}").format(sql.Identifier(of), table),
        sql.SQL("ALTER PUBLICATION {} ADD TABLE ONLY {}").format(sql.Identifier(to), table),
    ]
    try:
        with connection.transaction():
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(_LOCK_WAIT))
            connection.execute(sql.SQL("LOCK TABLE ONLY {} IN SHARE MODE").format(table))
            locked = connection.execute(
                "select to_regclass(%s)::oid::bigint", [table.as_string()]
            ).fetchone()
            if locked != (table_id,):
                raise MoveRefused(f"{name} was renamed meanwhile", solution="Move it again.")
            for statement in statements:
                connection.execute(statement)
    except psycopg.errors.LockNotAvailable:
        raise _locked(name) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise _not_ours(name, of, to, error) from None


def _locked(name: str) -> EtlError:
    return TableLocked(
        f"{name} is written by transactions that are still open after {_LOCK_WAIT}, or locked",
        solution="End them, or wait, and move it again; pg_locks on the source shows them.",
    )


def _not_ours(name: str, of: str, to: str, error: psycopg.Error) -> EtlError:
    return MoveRefused(
        f"the source's user may not move {name} from publication {of!r} to {to!r}: "
        f"{error.diag.message_primary}",
        solution="Move it as a user who owns the table and both publications, such as by "
        "ETL_DAGSTER__SOURCE__USER and ETL_DAGSTER__SOURCE__PASSWORD for this one command.",
    )
