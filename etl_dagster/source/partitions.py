"""Reading single partitions of a table that is published through its root."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from etl_dagster.errors import TableRewritten
from etl_dagster.model.schema import TableId

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class ReadFrom:
    """From where to select the rows of one relation, and of no other."""

    schema_name: str
    table_name: str
    #: An SQL condition by which the root of the relation's table gives only its rows; None where
    #: the relation itself is read.
    condition: str | None = None

    def from_clause(self) -> sql.Composed:
        only = sql.SQL("" if self.condition else "only ")
        return only + sql.Identifier(self.schema_name, self.table_name)


def fetch_read_from(connection: Connection, table_id: TableId, relation_id: int) -> ReadFrom | None:
    """How to read a relation of the table; None when it is gone.

    A partition that the user may not select from is read through the root, for which Postgres asks
    for rights on the root alone. The partition's bound keeps the others from being scanned.

    Raises:
        TableRewritten: the partition is being detached.
    """
    named = (
        "select n.nspname, c.relname,"
        " has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')"
        " from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = %s::oid"
    )
    row = connection.execute(named, [relation_id]).fetchone()
    if row is None:
        return None
    schema_name, table_name, may_select = row
    if may_select or relation_id == table_id:
        return ReadFrom(schema_name, table_name)
    root = connection.execute(named, [table_id]).fetchone()
    if root is None:
        return None
    try:
        bound = connection.execute(
            "select pg_get_partition_constraintdef(%s::oid)", [relation_id]
        ).fetchone()
    except psycopg.errors.InternalError_ as error:
        # It is being detached: "could not find tuple for parent of relation ...".
        raise TableRewritten(f"a partition of {root[0]}.{root[1]} was detached") from error
    condition = f"tableoid = {int(relation_id)}"
    if bound is not None and bound[0] is not None:
        condition += f" and ({bound[0]})"
    return ReadFrom(root[0], root[1], condition)


def is_relation_empty(connection: Connection, table_id: TableId, relation_id: int) -> bool:
    """Whether a relation of the table has no row now, or is gone."""
    source = fetch_read_from(connection, table_id, relation_id)
    if source is None:
        return True
    where = (
        sql.SQL(" where {}").format(sql.SQL(source.condition)) if source.condition else sql.SQL("")
    )
    with connection.transaction():
        # Others wait for the connection, which must not wait for another session's lock.
        connection.execute("set local lock_timeout = '200ms'")
        row = connection.execute(
            sql.SQL("select not exists (select from {}{})").format(source.from_clause(), where)
        ).fetchone()
    assert row is not None
    if fetch_read_from(connection, table_id, relation_id) != source:
        # It may have waited, and then read another relation, which has the name by now.
        return is_relation_empty(connection, table_id, relation_id)
    return bool(row[0])


def fetch_born_partitions(connection: Connection, leaf_ids: Collection[int]) -> set[int]:
    """Those of the leaves that were made as partitions, so that every row of them was streamed.

    ATTACH PARTITION, of the leaf or of what it is a part of, writes every column's row in
    `pg_attribute` again. CREATE TABLE ... PARTITION OF writes them with the same command as those
    of the system columns, which nothing ever changes.

    Source: PostgreSQL documentation, "System Columns" (xmin, cmin); `MergeAttributesIntoExisting`
    in src/backend/commands/tablecmds.c.
    """
    if not leaf_ids:
        return set()
    rows = connection.execute(
        """
        with recursive path (leaf, relid, parent) as (
          select inhrelid, inhrelid, inhparent from pg_inherits
          where inhrelid = any (%s::oid[]) and not inhdetachpending
          union all
          select p.leaf, i.inhrelid, i.inhparent
          from path p join pg_inherits i on i.inhrelid = p.parent and not i.inhdetachpending
        )
        select leaf::bigint from path
        group by leaf
        having bool_and(exists (
          select from pg_attribute made join pg_attribute a on a.attrelid = made.attrelid
          where made.attrelid = path.relid and made.attnum = -1 and a.attnum > 0
          and a.xmin::text = made.xmin::text and a.cmin::text = made.cmin::text))
        """,
        [list(leaf_ids)],
    )
    return {leaf for (leaf,) in rows}


def fetch_leaf_identities(
    connection: Connection, table_ids: Collection[TableId]
) -> dict[TableId, dict[tuple[str, ...], str]]:
    """By root, the columns by which its leaves identify old rows, with the name of one such leaf.

    Postgres sends the old row by the identity of the leaf, also where a table is published through
    its root. Leaves with REPLICA IDENTITY FULL send all columns; those without an identity can't
    be updated. Both are left out.

    Source: PostgreSQL documentation, "Publication"; `RelationGetIdentityKeyBitmap` in
    src/backend/utils/cache/relcache.c.
    """
    if not table_ids:
        return {}
    rows = connection.execute(
        """
        with recursive tree (root, relid) as (
          select oid, oid from unnest(%s::oid[]) r (oid)
          union all
          select t.root, i.inhrelid
          from tree t join pg_inherits i on i.inhparent = t.relid and not i.inhdetachpending
        ), leaves as (
          select t.root, n.nspname || '.' || c.relname as name, (
            select array_agg(a.attname::text order by a.attname)
            from pg_index x join pg_attribute a on a.attrelid = x.indrelid
              and a.attnum = any ((x.indkey::int2[])[0:x.indnkeyatts - 1])
            where x.indrelid = c.oid and x.indimmediate
            and case c.relreplident when 'd' then x.indisprimary when 'i' then x.indisreplident
                else false end) as identity
          from tree t join pg_class c on c.oid = t.relid and c.relkind = 'r'
          join pg_namespace n on n.oid = c.relnamespace
          where t.relid <> t.root
        )
        select root::bigint, identity, min(name) from leaves
        where identity is not null group by root, identity
        """,
        [list(table_ids)],
    )
    found: dict[TableId, dict[tuple[str, ...], str]] = {}
    for root, identity, leaf in rows:
        found.setdefault(root, {})[tuple(identity)] = leaf
    return found


def fetch_partition_ids(connection: Connection, table_ids: Sequence[TableId]) -> set[int]:
    """The partitions of these tables, on all levels."""
    if not table_ids:
        return set()
    rows = connection.execute(
        """
        with recursive tree (relid) as (
          select inhrelid from pg_inherits where inhparent = any (%s::oid[])
          union
          select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.relid
        )
        select relid::bigint from tree
        """,
        [list(table_ids)],
    )
    return {relation_id for (relation_id,) in rows}


def fetch_foreign_partitions(connection: Connection, table_ids: Sequence[TableId]) -> list[str]:
    """The names of the tables' partitions that are foreign tables, as ``schema.table``."""
    if not table_ids:
        return []
    rows = connection.execute(
        """
        with recursive tree (relid) as (
          select * from unnest(%s::oid[])
          union
          select i.inhrelid
          from tree t join pg_inherits i on i.inhparent = t.relid and not i.inhdetachpending
        )
        select n.nspname || '.' || c.relname
        from tree t join pg_class c on c.oid = t.relid join pg_namespace n on n.oid = c.relnamespace
        where c.relkind = 'f' order by 1
        """,
        [list(table_ids)],
    )
    return [name for (name,) in rows]
