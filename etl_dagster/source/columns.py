"""What the catalog says of a table's columns beyond those that are published now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.source.catalog import fetch_table_schema

Connection = psycopg.Connection[Any]

#: A partitioned table has no rows and no missing values of its own; those of its partitions count.
#: Unlike pg_partition_tree(), this waits for no lock on any of them.
_HOLDERS = """
select c.oid, c.relfilenode from pg_class c where c.oid = t.oid and c.relkind <> 'p'
union all
(with recursive tree (oid) as (
   select t.oid where t.relkind = 'p'
   union all
   select i.inhrelid from tree r join pg_inherits i on i.inhparent = r.oid
 )
 select l.oid, l.relfilenode from tree r join pg_class l on l.oid = r.oid where l.relkind <> 'p')
"""


@dataclass(frozen=True, slots=True)
class TableToday:
    """A table as the catalog has it at the moment of the question."""

    #: The published columns; an added one with its `missing_value`.
    schema: TableSchema
    #: Every column that exists, published or not.
    attnums: frozenset[int] = frozenset()
    #: The largest attnum ever given to a column, dropped ones included.
    last_attnum: int = 0
    #: Added columns whose value in earlier rows differs among the partitions.
    unclear: frozenset[int] = field(default=frozenset())


def fetch_table_today(
    connection: Connection, publication: str, table_id: TableId
) -> TableToday | None:
    """The table with all of its columns; None when it isn't published.

    Source: PostgreSQL documentation, "pg_attribute" (atthasmissing, attmissingval).
    """
    schema = fetch_table_schema(connection, publication, table_id)
    if schema is None:
        return None
    rows = connection.execute(
        f"""
        select a.attnum, a.attisdropped,
               m.holders > 0 and not a.attisdropped, m.holders = m.agreeing, m.value
        from pg_class t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0
        left join lateral (
          select count(*) filter (where h.atthasmissing) as holders,
                 count(*) as leaves,
                 case when count(distinct h.attmissingval::text)
                           + bool_or(not h.atthasmissing)::int <= 1
                      then count(*) filter (where h.atthasmissing) else -1 end as agreeing,
                 min((h.attmissingval::text::text[])[1]) as value
          from ({_HOLDERS}) leaf
          join pg_attribute h on h.attrelid = leaf.oid and h.attname = a.attname
                                 and not h.attisdropped
        ) m on true
        where t.oid = %s::oid
        """,  # noqa: S608 (our own text)
        [table_id],
    ).fetchall()
    missing = {attnum: value for attnum, _, has, agree, value in rows if has and agree}
    return TableToday(
        replace(
            schema,
            columns=tuple(
                replace(column, missing_value=missing.get(column.attnum))
                for column in schema.columns
            ),
        ),
        frozenset(attnum for attnum, is_dropped, *_ in rows if not is_dropped),
        max((attnum for attnum, *_ in rows), default=0),
        frozenset(attnum for attnum, _, has, agree, _ in rows if has and not agree),
    )


@dataclass(frozen=True, slots=True)
class Traces:
    """What an ALTER TABLE leaves in the catalog, in short."""

    #: Changes whenever a column's entry in pg_attribute is written.
    columns: str
    #: Changes when rows are written again, or the partitions are others.
    files: str
    #: The attnums of generated columns, and of the others.
    generated: frozenset[int] = frozenset()
    plain: frozenset[int] = field(default=frozenset(), compare=False)


def fetch_traces(
    connection: Connection, table_ids: Collection[TableId]
) -> Mapping[TableId, Traces]:
    """The traces of each of the tables that exist."""
    rows = connection.execute(
        f"""
        select t.oid, coalesce(a.entries, ''),
               (select md5(string_agg(leaf.oid || ':' || leaf.relfilenode, ' ' order by leaf.oid))
                from ({_HOLDERS}) leaf),
               coalesce(a.generated, '{{}}'), coalesce(a.plain, '{{}}')
        from pg_class t
        cross join lateral (
          select md5(string_agg(a.attnum || ':' || a.xmin, ' ' order by a.attnum)) as entries,
                 array_agg(a.attnum) filter (where a.attgenerated <> '' and not a.attisdropped)
                   as generated,
                 array_agg(a.attnum) filter (where a.attgenerated = '' and not a.attisdropped)
                   as plain
          from pg_attribute a where a.attrelid = t.oid and a.attnum > 0) a
        where t.oid = any (%s::oid[])
        """,  # noqa: S608 (our own text)
        [list(table_ids)],
    )
    return {
        table_id: Traces(columns[:12], (files or "")[:12], frozenset(generated), frozenset(plain))
        for table_id, columns, files, generated, plain in rows
    }
