"""Which relations a publication has, from catalog tables alone.

`pg_publication_tables` and `pg_get_publication_tables()` open each table, so they wait while
another session has one of them locked, and so does all that asks them. Nothing here waits.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

#: OIDs below are those of Postgres' own tables, which are never published.
_FIRST_OWN_OID = 16384

_PUBLISHED = f"""
with recursive publication as (
  select oid, puballtables, pubviaroot from pg_publication where pubname = %(publication)s
), named (relid, kind) as (
  select c.oid, c.relkind
  from publication p join pg_publication_rel r on r.prpubid = p.oid
  join pg_class c on c.oid = r.prrelid
  {{schemas}}
), below (relid) as (
  select i.inhrelid
  from named n join pg_inherits i on i.inhparent = n.relid and not i.inhdetachpending
  where n.kind = 'p'
  union
  select i.inhrelid
  from below b join pg_inherits i on i.inhparent = b.relid and not i.inhdetachpending
)
select n.relid from named n, publication p
where case when p.pubviaroot then n.relid not in (select relid from below) else n.kind <> 'p' end
union
select b.relid from below b join pg_class c on c.oid = b.relid and c.relkind <> 'p', publication p
where not p.pubviaroot
union
select c.oid from pg_class c, publication p
where p.puballtables and c.oid >= {_FIRST_OWN_OID} and c.relpersistence = 'p'
and case when p.pubviaroot then c.relkind in ('r', 'p') and not c.relispartition
         else c.relkind = 'r' end
"""  # noqa: S608  (our own text)

_IN_SCHEMAS = f"""
  union
  select c.oid, c.relkind
  from publication p join pg_publication_namespace s on s.pnpubid = p.oid
  join pg_class c on c.relnamespace = s.pnnspid
  where c.relkind in ('r', 'p') and c.relpersistence = 'p' and c.oid >= {_FIRST_OWN_OID}
"""  # noqa: S608  (our own text)


def published_relations(connection: psycopg.Connection[object]) -> sql.SQL:
    """A query for the ``relid`` of each relation that the publication ``%(publication)s`` has.

    Where it publishes through roots, these are roots and tables, else the partitions themselves.

    Source: `pg_get_publication_tables` in src/backend/catalog/pg_publication.c, versions 14 to 18.
    """
    has_schemas = connection.info.server_version >= 150000
    return sql.SQL(_PUBLISHED.format(schemas=_IN_SCHEMAS if has_schemas else ""))
