"""By what a publication holds its tables: traces in the catalog that change when one leaves it.

Changes of a table that was out of the publication are not in the stream, also when the table has
returned since. Postgres keeps no history of it; it leaves these traces:

================================================== ===============================================
`pg_publication.oid`, `xmin`                       made again; ``ALTER PUBLICATION ... SET (...)``
`pg_publication_rel.oid`                           dropped and added, other columns or filter
`pg_publication_namespace.oid`                     the same with ``TABLES IN SCHEMA``
`xmin` of the table's `pg_depend` row for the      ``ALTER TABLE ... SET SCHEMA``, also when it
schema                                             moved back
`xmin` of `pg_inherits`                            ``DETACH`` and ``ATTACH PARTITION``
`xmin` of all columns in `pg_attribute`            the same, for a table that was not a partition
                                                   before and is not one now
`pg_class.relfilenode`, `reltoastrelid`            ``SET UNLOGGED``, ``SET LOGGED``: see `Storage`
================================================== ===============================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import psycopg
from psycopg import sql

from etl_dagster.errors import PublicationMissing
from etl_dagster.model.schema import TableId
from etl_dagster.source.catalog import fetch_publication
from etl_dagster.source.published import published_relations

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class PublicationTrace:
    """Changes whenever the publication's own row does."""

    oid: int
    xmin: str
    #: What it publishes: ``i``, ``u``, ``d``, ``t``, in this order.
    operations: str
    via_partition_root: bool


class Rewrite(Enum):
    """What may have happened to a relation between two `Storage` traces."""

    NONE = "none"
    #: TRUNCATE, VACUUM FULL, CLUSTER, SET TABLESPACE: the stream has every change of its rows.
    HARMLESS = "harmless"
    #: One of these, or one of the next: the relation has no TOAST table that would tell.
    UNCLEAR = "unclear"
    #: ALTER TABLE wrote the rows again, as SET UNLOGGED and SET LOGGED do.
    ALTERED = "altered"


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a relation's rows are.

    SET UNLOGGED and SET LOGGED write the rows into a new file with a new TOAST table. TRUNCATE and
    VACUUM FULL make a new file, too, but keep the TOAST table's OID.
    """

    file_node: int
    #: 0 without a TOAST table: no column can be large.
    toast_id: int
    #: The transaction that last changed the relation's `pg_class` row; VACUUM and ANALYZE don't.
    changed_by: str = field(default="", compare=False)

    def since(self, before: Storage) -> Rewrite:
        """What may have happened since `before`."""
        if self.file_node == before.file_node:
            return Rewrite.NONE
        if not before.toast_id:
            return Rewrite.UNCLEAR
        return Rewrite.HARMLESS if self.toast_id == before.toast_id else Rewrite.ALTERED


@dataclass(frozen=True, slots=True)
class Membership:
    """By what a table is in the publication."""

    #: Each way on which it is published: itself, an ancestor, the schema of either, all tables.
    #: One that is there unchanged, and limits neither rows nor columns, has published it all along.
    paths: frozenset[str]
    storage: Storage
    #: The different `xmin` of its columns. Only noted where a table is not published by itself
    #: while it is a partition (``publish_via_partition_root``).
    columns: frozenset[str] = frozenset()

    def is_unbroken_since(self, before: Membership) -> bool:
        """Whether the publication held the table all the time, as far as its own rows tell."""
        if self.paths == before.paths:
            return True
        return any(not path.endswith(_LIMITED) for path in self.paths & before.paths)

    def may_have_been_attached_since(self, before: Membership) -> bool:
        """Whether it may have been a partition, whose changes are published as its root's.

        ATTACH and DETACH PARTITION write the entries of all columns; other statements do so for a
        table of one column only.
        """
        known = before.columns and self.columns
        return bool(known) and self.columns.isdisjoint(before.columns)

    def rewrite_since(self, before: Membership) -> Rewrite:
        """Whether it may have been unlogged for a while, when its changes were not in the WAL."""
        # Postgres refuses SET UNLOGGED for a table that a publication names.
        if any(path.startswith(_NAMED) for path in self.paths & before.paths):
            return Rewrite.NONE
        return self.storage.since(before.storage)


@dataclass(frozen=True, slots=True)
class Partition:
    """A leaf of a table that is published through its partition root."""

    #: ``schema.table``, as it is now.
    name: str
    #: `pg_inherits.xmin` from the leaf up to the root.
    links: str
    storage: Storage


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the catalog found."""

    publication: PublicationTrace
    members: Mapping[TableId, Membership]
    #: By root and leaf. Foreign tables are left out: Postgres can't publish their changes.
    partitions: Mapping[TableId, Mapping[int, Partition]]


_NAMED = "named"
_LIMITED = " limited"

# pg_relation_filenode() would read the newest catalog, and together with the rest of the row, which
# is the snapshot's, hide a rewrite that commits meanwhile. It differs for system catalogs only.
_MEMBERS = """
with recursive published as materialized (
  select p.relid, c.relkind, c.relfilenode, c.reltoastrelid, c.xmin::text as changed_by
  from ({relations}) p join pg_class c on c.oid = p.relid
), chain (relid, member, links) as (
  select relid, relid, '' from published
  union all
  select h.relid, i.inhparent, h.links || '.' || i.xmin::text
  from chain h
  join pg_inherits i on i.inhrelid = h.member and not i.inhdetachpending
  join pg_class c on c.oid = i.inhparent and c.relkind = 'p'
), paths as (
  select h.relid,
         format('%%s %%s%%s%%s', case when h.relid = h.member then 'named' else 'ancestor' end,
                r.oid, h.links, {limited}) as path
  from chain h join pg_publication_rel r on r.prrelid = h.member and r.prpubid = %(oid)s
  {schemas}
  union all
  select relid, 'all tables' from published where %(all)s
)
select p.relid::bigint, p.relkind = 'p', array_agg(t.path order by t.path),
       {columns} as columns,
       p.relfilenode::bigint, p.reltoastrelid::bigint, p.changed_by
from published p join paths t on t.relid = p.relid
group by p.relid, p.relkind, p.relfilenode, p.reltoastrelid, p.changed_by
"""

_COLUMNS = """array(select distinct a.xmin::text from pg_attribute a
             where a.attrelid = p.relid and a.attnum > 0 and not a.attisdropped)"""

_SCHEMAS = """
  union all
  select h.relid,
         format('schema %%s/%%s%%s', s.oid, coalesce(d.xmin::text, ''), h.links)
  from chain h
  join pg_class c on c.oid = h.member
  join pg_publication_namespace s on s.pnnspid = c.relnamespace and s.pnpubid = %(oid)s
  left join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = c.oid
    and d.objsubid = 0 and d.refclassid = 'pg_namespace'::regclass
"""

_PARTITIONS = """
with recursive tree (root, relid, links) as (
  select oid, oid, '' from unnest(%(roots)s::oid[]) r (oid)
  union all
  select t.root, i.inhrelid, i.xmin::text || '.' || t.links
  from tree t join pg_inherits i on i.inhparent = t.relid and not i.inhdetachpending
)
select t.root::bigint, t.relid::bigint, n.nspname || '.' || c.relname, t.links,
       c.relfilenode::bigint, c.reltoastrelid::bigint, c.xmin::text
from tree t join pg_class c on c.oid = t.relid join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r'
"""


def look(connection: Connection, publication: str) -> Look:
    """Read the traces of a publication, its tables and their partitions.

    Raises:
        PublicationMissing: the database has none of that name.

    Source: PostgreSQL documentation, "System Catalogs"; the TOAST table's OID as `finish_heap_swap`
    in src/backend/commands/cluster.c exchanges it.
    """
    row = connection.execute(
        "select oid::bigint, xmin::text, concat(case when pubinsert then 'i' end,"
        " case when pubupdate then 'u' end, case when pubdelete then 'd' end,"
        " case when pubtruncate then 't' end), pubviaroot, puballtables"
        " from pg_publication where pubname = %s",
        [publication],
    ).fetchone()
    if row is None:
        fetch_publication(connection, publication)
        raise PublicationMissing(publication, [])
    trace, is_for_all = PublicationTrace(*row[:4]), row[4]
    version = connection.info.server_version
    query = sql.SQL(_MEMBERS).format(
        relations=published_relations(connection),
        limited=sql.SQL(
            f"case when r.prqual is null and r.prattrs is null then '' else '{_LIMITED}' end"
            if version >= 150000
            else "''"
        ),
        schemas=sql.SQL(_SCHEMAS if version >= 150000 else ""),
        columns=sql.SQL(_COLUMNS if trace.via_partition_root else "'{}'::text[]"),
    )
    values = {"publication": publication, "oid": trace.oid, "all": is_for_all}
    members: dict[TableId, Membership] = {}
    roots: list[TableId] = []
    for table_id, is_root, paths, columns, *storage in connection.execute(query, values):
        members[table_id] = Membership(frozenset(paths), Storage(*storage), frozenset(columns))
        if is_root:
            roots.append(table_id)
    return Look(trace, members, fetch_partitions(connection, roots))


def fetch_partitions(
    connection: Connection, roots: Sequence[TableId]
) -> dict[TableId, dict[int, Partition]]:
    """By root and leaf, the leaves of these tables that hold rows here."""
    found: dict[TableId, dict[int, Partition]] = {root: {} for root in roots}
    if roots:
        for root, leaf, name, links, *storage in connection.execute(
            _PARTITIONS, {"roots": list(roots)}
        ):
            found[root][leaf] = Partition(name, links, Storage(*storage))
    return found
