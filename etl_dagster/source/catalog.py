"""What the source's catalog says: publications, tables, columns, identities, positions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from etl_dagster.errors import CopyOutdated, PublicationEmpty, PublicationMissing
from etl_dagster.lsn import Lsn
from etl_dagster.model.modes import HISTORY_MODES
from etl_dagster.model.schema import ColumnSchema, TableId, TableSchema
from etl_dagster.pg.encodings import StoredEncoding, stored_encoding
from etl_dagster.source.locks import fetch_exclusive_locks
from etl_dagster.source.published import published_relations
from etl_dagster.source.standby import fetch_seen_lsn
from etl_dagster.source.types import fetch_types, unknown_types
from etl_dagster.values.adbc import text_expression

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Publication:
    """A row of pg_publication."""

    name: str
    insert: bool
    update: bool
    delete: bool
    truncate: bool
    via_partition_root: bool


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table of a publication, with what a copy needs to know of it."""

    schema: TableSchema
    #: The publication's WHERE clause for the table, an SQL expression; None without one.
    row_filter: str | None
    #: ``pg_class.reltuples``, never negative; a guess.
    estimated_rows: int
    #: Whether the publication publishes updates.
    has_updates: bool = True
    #: Whether it publishes deletes.
    has_deletes: bool = True
    #: Whether its rows are in partitions: it is published through its root.
    is_partitioned: bool = False
    #: Whether it has a row filter, known or not.
    has_row_filter: bool = False

    @property
    def can_resume_copy(self) -> bool:
        """Whether chunks may have differing snapshots: replayed updates find their row by key.

        Without a key, or without the updates, a row that an update moved between two chunks would
        be there twice, or not at all. A history begins with the rows of one moment.
        """
        is_found_again = bool(self.schema.key_columns) and self.has_updates
        return is_found_again and self.schema.mode not in HISTORY_MODES


#: The tables that a state store had before each of them had a comment to be known by.
_STORE_TABLES = (
    "copy_chunks",
    "copy_plans",
    "destination_tables",
    "replication_progress",
    "migrations",
    "status",
    "table_schemas",
    "table_states",
)

_TABLES = """
-- Materialized, or the list of a table's columns would be built again for each of its columns.
with published as materialized (
  select c.oid, n.nspname, c.relname, c.relreplident, c.relkind,
         greatest(c.reltuples, 0)::bigint as estimated_rows,
         {attnums} as attnums, {rowfilter} as rowfilter, {has_filter} as has_row_filter,
         {sends_generated} as sends_generated, pub.pubupdate, pub.pubdelete
  from ({relations}) p
  join pg_publication pub on pub.pubname = %(publication)s
  join pg_class c on c.oid = p.relid
  join pg_namespace n on n.oid = c.relnamespace
  -- The lists count only where a table is published by its name alone.
  left join pg_publication_rel r on r.prrelid = c.oid and r.prpubid = pub.oid
    and not pub.puballtables{not_by_schema}
  where (%(table_ids)s::oid[] is null or c.oid = any (%(table_ids)s::oid[]))
  -- A state store may share its schema with tables that are replicated.
  and obj_description(c.oid, 'pg_class') is distinct from 'etl_dagster state store'
  and not (c.relname = any (%(store_tables)s) and n.oid in (
    select relnamespace from pg_class
    where relname = 'pipelines' and obj_description(oid, 'pg_class') = 'etl_dagster state store'))
), keys as not materialized (
  -- Not materialized, or each column would be compared with every key of the database.
  -- Without INCLUDE columns, and without indexes that are checked late: between two changes of one
  -- transaction, several rows may have one key. Postgres doesn't identify rows by either.
  select indrelid, indisprimary, indisreplident,
         (indkey::int2[])[0:indnkeyatts - 1] as attnums
  from pg_index where (indisprimary or indisreplident) and indimmediate
)
select t.oid, t.nspname, t.relname, t.relreplident::text, t.estimated_rows, t.rowfilter,
       t.has_row_filter,
       t.pubupdate, t.pubdelete, t.relkind = 'p' as is_partitioned,
       a.attnum, a.attname, a.atttypid, a.attndims,
       case when a.atttypmod = -1 then coalesce(b.typmod, -1) else a.atttypmod end as typmod,
       format_type(a.atttypid, a.atttypmod) as type_name, a.attnotnull,
       coalesce(b.oid, a.atttypid) as base_type,
       array_position(pk.attnums, a.attnum) as pk_ordinal, cardinality(pk.attnums) as pk_size,
       case t.relreplident when 'f' then true when 'n' then false
            when 'd' then coalesce(a.attnum = any (pk.attnums), false)
            else coalesce(a.attnum = any (ri.attnums), false) end as is_identity
from published t
join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
left join keys pk on pk.indrelid = t.oid and pk.indisprimary
left join keys ri on ri.indrelid = t.oid and ri.indisreplident
left join lateral (
  with recursive base (oid, kind, parent, typmod) as (
    select oid, typtype, typbasetype, typtypmod from pg_type where oid = a.atttypid
    union all
    select y.oid, y.typtype, y.typbasetype,
           case when base.typmod = -1 then y.typtypmod else base.typmod end
    from base join pg_type y on y.oid = base.parent where base.kind = 'd'
  )
  select oid, typmod from base where kind <> 'd'
) b on true
where case when t.attnums is null
           then a.attgenerated = '' or a.attgenerated = 's' and t.sends_generated
           else a.attnum = any (t.attnums) and (a.attgenerated = '' or {lists_generated}) end
order by t.nspname, t.relname, a.attnum
"""


def fetch_publication(connection: Connection, name: str) -> Publication:
    """The publication.

    Raises:
        PublicationMissing: the database has none of that name.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("select * from pg_publication order by pubname")
        rows = {row["pubname"]: row for row in cursor}
    if name not in rows:
        raise PublicationMissing(name, list(rows))
    row = rows[name]
    return Publication(
        name,
        insert=row["pubinsert"],
        update=row["pubupdate"],
        delete=row["pubdelete"],
        truncate=row["pubtruncate"],
        via_partition_root=row["pubviaroot"],
    )


_NOT_BY_SCHEMA = """
    and not exists (select from pg_publication_namespace s
                    where s.pnpubid = pub.oid and s.pnnspid = c.relnamespace)"""


def fetch_published_tables(
    connection: Connection,
    publication: str,
    table_ids: Collection[TableId] | None = None,
    *,
    with_filters: bool = True,
) -> list[PublishedTable]:
    """The publication's tables by name, with their published columns; maybe none.

    Args:
        table_ids: only these tables, as far as they are published; None for all.
        with_filters: whether `row_filter` is wanted, for which a table with one is opened. Without
            it, no other session's lock is waited for.

    Tables of a state store are left out: under FOR ALL TABLES they are published where the store
    lives in the source, and every batch would make work for the next one.

    Source: PostgreSQL documentation, "pg_publication_rel"; the view "pg_publication_tables" says
    the same. Column lists and row filters are there from version 15 on.
    """
    version = connection.info.server_version
    has_lists = version >= 150000
    query = sql.SQL(_TABLES).format(
        relations=published_relations(connection),
        attnums=sql.SQL("r.prattrs::int2[]" if has_lists else "null::int2[]"),
        # It would wait for the lock that another session may have on the table.
        rowfilter=sql.SQL(
            "pg_get_expr(r.prqual, r.prrelid)" if has_lists and with_filters else "null::text"
        ),
        has_filter=sql.SQL("r.prqual is not null" if has_lists else "false"),
        not_by_schema=sql.SQL(_NOT_BY_SCHEMA if has_lists else ""),
        # Before 18 a generated column is never sent, though a column list may name it.
        sends_generated=sql.SQL("pub.pubgencols = 's'" if version >= 180000 else "false"),
        lists_generated=sql.Literal(version >= 180000),
    )
    with connection.cursor(row_factory=dict_row) as cursor:
        values = {
            "publication": publication,
            "table_ids": None if table_ids is None else list(table_ids),
            "store_tables": list(_STORE_TABLES),
        }
        cursor.execute(query, values)
        found = cursor.fetchall()
    asked = unknown_types(row["atttypid"] for row in found)
    types = fetch_types(connection, asked)
    tables: dict[TableId, tuple[dict[str, Any], list[ColumnSchema]]] = {}
    for row in found:
        column = ColumnSchema(
            name=row["attname"],
            type_oid=row["atttypid"],
            type_modifier=row["typmod"],
            type_name=row["type_name"],
            attnum=row["attnum"],
            nullable=not row["attnotnull"],
            primary_key_ordinal=row["pk_ordinal"],
            is_identity=row["is_identity"],
            base_type_oid=row["base_type"],
            type=types.type_of(row["atttypid"], row["typmod"], row["attndims"])
            if row["atttypid"] in asked
            else None,
        )
        tables.setdefault(row["oid"], (row, []))[1].append(column)
    return [
        PublishedTable(
            TableSchema(
                id=oid,
                schema_name=row["nspname"],
                table_name=row["relname"],
                columns=_without_partial_key(columns, row["pk_size"] or 0),
                replica_identity=row["relreplident"],
            ),
            row_filter=row["rowfilter"],
            estimated_rows=row["estimated_rows"],
            has_updates=row["pubupdate"],
            has_deletes=row["pubdelete"],
            is_partitioned=row["is_partitioned"],
            has_row_filter=row["has_row_filter"],
        )
        for oid, (row, columns) in tables.items()
    ]


def _without_partial_key(
    columns: Sequence[ColumnSchema], key_size: int
) -> tuple[ColumnSchema, ...]:
    """The columns, of no key when a column list leaves out some of it: rows are not told apart by
    the rest. Postgres allows that where only inserts are published."""
    if sum(column.primary_key_ordinal is not None for column in columns) == key_size:
        return tuple(columns)
    return tuple(replace(column, primary_key_ordinal=None) for column in columns)


def fetch_publication_tables(connection: Connection, publication: str) -> list[TableSchema]:
    """The schemas of the publication's tables.

    Raises:
        PublicationMissing: the database has no such publication.
        PublicationEmpty: it contains no table.
    """
    fetch_publication(connection, publication)
    tables = fetch_published_tables(connection, publication, with_filters=False)
    if not tables:
        raise PublicationEmpty(publication)
    return [table.schema for table in tables]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A relation that holds rows of a table: the table itself, or a partition without parts."""

    relation_id: int
    #: Blocks of 8 KiB, measured, not guessed.
    block_count: int
    estimated_rows: int
    #: pg_class.relfilenode: changes when all rows are rewritten.
    file_node: int
    #: Of values stored out of line.
    toast_bytes: int = 0

    @property
    def bytes(self) -> int:
        """What the rows take on the source's disk, without indexes."""
        return self.block_count * 8192 + self.toast_bytes


def fetch_leaves(connection: Connection, table_id: TableId) -> list[Leaf]:
    """Where the table's rows are: one relation, or every leaf partition. Waits for locks."""
    return fetch_leaves_of(connection, [table_id]).get(table_id, [])


def fetch_leaves_of(
    connection: Connection, table_ids: Collection[TableId], *, without_locked: bool = False
) -> dict[TableId, list[Leaf]]:
    """Where the rows of each table are; tables that are gone are missing.

    Args:
        without_locked: tables that another session has to itself are missing, too. To measure one
            would wait for that session.

    Source: PostgreSQL documentation, "Database Object Size Functions", "pg_inherits".
    """
    locked: list[int] = []
    if without_locked:
        locked = [lock.relation_id for lock in fetch_exclusive_locks(connection, older_than_s=0.0)]
    cursor = connection.execute(
        """
        with recursive tree (root, relid, kind) as (
          select oid, oid, relkind from pg_class where oid = any (%(tables)s::oid[])
          union all
          select t.root, c.oid, c.relkind
          from tree t join pg_inherits i on i.inhparent = t.relid and not i.inhdetachpending
          join pg_class c on c.oid = i.inhrelid
          where t.kind = 'p'
        )
        select t.root::bigint, bool_or(c.oid = any (%(locked)s::oid[])) over (partition by t.root),
               c.oid, case when c.oid <> all (%(locked)s::oid[]) then
                 pg_relation_size(c.oid) / current_setting('block_size')::bigint end,
               greatest(c.reltuples, 0)::bigint, pg_relation_filenode(c.oid)::bigint,
               case when c.oid <> all (%(locked)s::oid[]) then
                 coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0) end
        from tree t join pg_class c on c.oid = t.relid
        -- A foreign table has no rows here, and Postgres can't publish its changes.
        where t.kind not in ('p', 'f')
        order by c.oid
        """,
        {"tables": list(table_ids), "locked": locked},
    )
    leaves: dict[TableId, list[Leaf]] = {}
    for table_id, is_locked, *leaf in cursor:
        # The query's snapshot still has a relation that was dropped since; its file is gone.
        if not is_locked and None not in leaf:
            leaves.setdefault(table_id, []).append(Leaf(*leaf))
    return leaves


@dataclass(frozen=True, slots=True)
class StoredRelation:
    """What a relation is called now, and which file its rows are in."""

    schema_name: str
    name: str
    #: pg_class.relfilenode; None where it has no file.
    file_node: int | None


def fetch_relations(
    connection: Connection, relation_ids: Collection[int]
) -> dict[int, StoredRelation]:
    """The relations by OID; those that are gone are missing."""
    cursor = connection.execute(
        "select c.oid, n.nspname, c.relname, pg_relation_filenode(c.oid)::bigint "
        "from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where c.oid = any (%s::oid[])",
        [list(relation_ids)],
    )
    return {oid: StoredRelation(*relation) for oid, *relation in cursor}


def fetch_table_id(connection: Connection, schema_name: str, table_name: str) -> TableId | None:
    """The OID of the relation that has this name now; None where none has."""
    row = connection.execute(
        "select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = %s",
        [schema_name, table_name],
    ).fetchone()
    return None if row is None else row[0]


def fetch_qualified_name(connection: Connection, relation_id: int) -> tuple[str, str] | None:
    """Schema and name of a relation, None when it is gone."""
    row = connection.execute(
        "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where c.oid = %s::oid",
        [relation_id],
    ).fetchone()
    return None if row is None else (row[0], row[1])


def fetch_file_node(connection: Connection, relation_id: int) -> int | None:
    """pg_class.relfilenode, None when the relation is gone."""
    row = connection.execute(
        "select pg_relation_filenode(oid)::bigint from pg_class where oid = %s::oid", [relation_id]
    ).fetchone()
    return None if row is None else row[0]


def fetch_insert_lsn(connection: Connection) -> Lsn:
    """How far a stream can come now: the end of the WAL, or of what a standby has replayed.

    What a standby shows may be past it: see `fetch_seen_lsn`.
    """
    row = connection.execute(
        "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn()"
        " else pg_current_wal_insert_lsn() end::text"
    ).fetchone()
    assert row is not None
    return Lsn.parse(row[0])


def fetch_clock(connection: Connection) -> datetime:
    """What the server's clock says now."""
    row = connection.execute("select clock_timestamp()").fetchone()
    assert row is not None
    now: datetime = row[0]
    return now.astimezone(UTC)


def emit_marker(connection: Connection) -> Lsn:
    """Write an empty record to the WAL and return a position that the stream will soon reach.

    On an idle server the stream ends at the last record, which may lie a page header before the
    insert position; waiting for that one could last until the next write. The transactional
    message also has the WAL flushed. Where it isn't allowed nothing is written; neither is it on a
    standby, which replays whole records, so that the stream reaches the position by itself.

    Source: PostgreSQL documentation, "pg_logical_emit_message".
    """
    position = fetch_seen_lsn(connection)
    try:
        connection.execute(
            "select case when not pg_is_in_recovery()"
            " then pg_logical_emit_message(true, 'etl_dagster', '') end"
        )
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
        row = connection.execute("select pg_current_wal_flush_lsn()::text").fetchone()
        assert row is not None
        return Lsn.parse(row[0])
    return position


def fetch_table_schema(
    connection: Connection, publication: str, table_id: TableId
) -> TableSchema | None:
    """The table as the catalog has it now; None when it isn't published."""
    tables = fetch_published_tables(connection, publication, [table_id], with_filters=False)
    return tables[0].schema if tables else None


@dataclass(frozen=True, slots=True)
class FetchedValues:
    """Values of some rows as they are now."""

    #: By the row's key; rows that are gone are missing. As Postgres' text, or that text's bytes as
    #: the database keeps them.
    rows: Mapping[tuple[str | None, ...], tuple[str | bytes | None, ...]]
    #: At or past their snapshot.
    read_lsn: Lsn
    #: How the database keeps its text, as Python calls it, where there are bytes.
    codec: str | None = None


def fetch_row_values(
    connection: Connection,
    schema: TableSchema,
    columns: Sequence[str],
    keys: Sequence[Sequence[str | None]],
) -> FetchedValues:
    """The current values of some columns of the rows with these keys (as text).

    Raises:
        CopyOutdated: the table's columns changed since.
    """
    while True:
        relation = fetch_qualified_name(connection, schema.id)
        if relation is None or not keys:
            return FetchedValues({}, fetch_seen_lsn(connection))
        fetched = _fetch_row_values(connection, schema, relation, columns, keys)
        _require_names(connection, schema, [*schema.key_columns, *columns])
        # A statement that waited for a lock may have read another table, which has the name by now.
        if fetch_qualified_name(connection, schema.id) == relation:
            return fetched


def _require_names(connection: Connection, schema: TableSchema, columns: Sequence[str]) -> None:
    """See that the columns are called as the schema says.

    Raises:
        CopyOutdated: they are not; another column may have the name.
    """
    known = {c.attnum: c.name for c in schema.columns if c.attnum and c.name in columns}
    rows = connection.execute(
        "select attnum::int, attname from pg_attribute"
        " where attrelid = %s::oid and attnum = any (%s::int[]) and not attisdropped",
        [schema.id, list(known)],
    )
    if dict(rows.fetchall()) != known:
        raise _columns_changed(schema)


def _columns_changed(schema: TableSchema) -> CopyOutdated:
    return CopyOutdated(
        f"columns of {schema.name} were renamed or dropped while it was being copied"
    )


def _fetch_row_values(
    connection: Connection,
    schema: TableSchema,
    relation: tuple[str, str],
    columns: Sequence[str],
    keys: Sequence[Sequence[str | None]],
) -> FetchedValues:
    described = {column.name: column for column in schema.columns}
    numbered = [
        (sql.Identifier(f"k{place}"), name) for place, name in enumerate(schema.key_columns)
    ]
    equals = _fetch_equality(connection, schema)
    stored = stored_encoding(connection)
    query = sql.SQL(
        "select {keys}, {columns} from {table} t join unnest({arrays}) k ({names}) on {condition}"
    ).format(
        keys=sql.SQL(", ").join(sql.SQL("k.{}").format(key) for key, _ in numbered),
        columns=sql.SQL(", ").join(
            _value(described[name], stored).format(_quoted("t", name)) for name in columns
        ),
        table=_quoted(*relation),
        arrays=sql.SQL(", ").join(sql.SQL("%s::text[]") for _ in numbered),
        names=sql.SQL(", ").join(key for key, _ in numbered),
        condition=sql.SQL(" and ").join(
            # The type's name is as format_type() quotes it.
            sql.SQL("t.{} {} k.{}::{}").format(
                _quoted(name), equals[name], key, _with_percent(described[name].type_name)
            )
            for key, name in numbered
        ),
    )
    try:
        rows = connection.execute(query, [list(column) for column in zip(*keys, strict=True)])
    except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable) as error:
        raise _columns_changed(schema) from error
    width = len(numbered)
    values = {tuple(row[:width]): tuple(row[width:]) for row in rows}
    codec = None if stored is None else stored.codec
    return FetchedValues(values, fetch_seen_lsn(connection), codec)


def _value(column: ColumnSchema, stored: StoredEncoding | None) -> sql.SQL:
    """A template of the column's text, as bytes where the database doesn't keep it as UTF-8."""
    # Its own per cent signs are not placeholders.
    return _with_percent(text_expression(column, stored))


def _quoted(*names: str) -> sql.SQL:
    """An identifier in a statement with parameters, where psycopg reads a percent sign as one."""
    return _with_percent(sql.Identifier(*names).as_string())


def _with_percent(text: str) -> sql.SQL:
    return sql.SQL(text.replace("%", "%%"))


def _fetch_equality(connection: Connection, schema: TableSchema) -> dict[str, sql.Composable]:
    """By which operator each column of the key is compared, the index's own.

    Those of extensions (ltree, hstore, citext) are in a schema that no search path names.
    """
    rows = connection.execute(
        """
        select a.attname, n.nspname, o.oprname
        from pg_index i
        cross join lateral unnest(i.indkey::int2[], i.indclass::oid[]) part (attnum, class)
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = part.attnum
        join pg_opclass c on c.oid = part.class
        join pg_am m on m.oid = c.opcmethod and m.amname = 'btree'
        join pg_amop w on w.amopfamily = c.opcfamily and w.amopstrategy = 3
          and w.amoplefttype = c.opcintype and w.amoprighttype = c.opcintype
        join pg_operator o on o.oid = w.amopopr
        join pg_namespace n on n.oid = o.oprnamespace
        where i.indrelid = %s::oid and (i.indisprimary or i.indisreplident)
        """,
        [schema.id],
    )
    named = {
        column: sql.SQL("OPERATOR({}.{})").format(_quoted(namespace), _with_percent(operator))
        for column, namespace, operator in rows
    }
    usual = sql.SQL("OPERATOR(pg_catalog.=)")
    return {name: named.get(name, usual) for name in schema.key_columns}
