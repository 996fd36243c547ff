"""Whether the published tables can be copied and followed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import SourceNotPrepared
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.checking.check import LISTED, Check, Connection
from etl_dagster.runtime.tables.identities import find_unidentified
from etl_dagster.runtime.tables.representation import chosen_tables
from etl_dagster.source.catalog import Publication, PublishedTable
from etl_dagster.source.locks import LONG_S, ExclusiveLock, describe_locks, fetch_exclusive_locks
from etl_dagster.source.money import digits, fetch_own_sample, fetch_sample, money_columns
from etl_dagster.source.partitions import fetch_foreign_partitions, fetch_partition_ids
from etl_dagster.source.readiness import ServerFacts, fetch_read_rights
from etl_dagster.table_name import quote_identifier
from etl_dagster.words import names


def check_identities(
    connection: Connection, publication: Publication, tables: Sequence[PublishedTable]
) -> Iterator[Check]:
    name = "replica identity"
    if not (publication.update or publication.delete):
        yield Check.ok(name, "not needed: neither updates nor deletes are published")
        return
    unidentified = find_unidentified(connection, tables)
    for error in unidentified.values():
        yield Check.warning(name, error.reason, error.solution)
    # Of a partitioned table, each partition has its own.
    missing = [
        table.schema.name
        for table in tables
        if not (table.schema.identity_columns or table.is_partitioned)
    ]
    whole_row = [
        table.schema.name
        for table in tables
        if (table.schema.identity_columns or table.is_partitioned)
        and not table.schema.key_columns
        and table.schema.id not in unidentified
    ]
    if missing:
        yield Check.warning(
            name,
            "no replica identity, though the publication publishes updates or deletes, so Postgres "
            "refuses UPDATE and DELETE for every application, and only inserts arrive: "
            f"{names(missing)}",
            "Add a primary key, or ALTER TABLE ... REPLICA IDENTITY USING INDEX ... / FULL.",
        )
    if whole_row:
        yield Check.warning(
            name,
            "REPLICA IDENTITY FULL without a primary key, so a row is only known by all of its "
            f"values and an interrupted copy starts over: {names(whole_row)}",
            "Add a primary key where there can be one.",
        )
    if not missing and not whole_row and not unidentified:
        yield Check.ok(name, "every table has a key")


def check_partitions(
    connection: Connection, config: PipelineConfig, tables: Sequence[PublishedTable]
) -> Iterator[Check]:
    name = "partitions"
    roots = [table.schema for table in tables if table.is_partitioned]
    keeping = [root.name for root in roots if not config.removes_partitions(root.name)]
    if keeping:
        yield Check.ok(
            name,
            "rows of partitions that are detached, dropped or truncated stay at the destination "
            f"(partitions_removed: keep): {names(keeping)}",
        )
    foreign = fetch_foreign_partitions(connection, [root.id for root in roots])
    if foreign:
        yield Check.warning(
            name,
            f"foreign tables, whose rows Postgres can't publish, are left out: {names(foreign)}",
            "Detach them, or copy their rows by other means.",
        )


def check_read_rights(
    connection: Connection,
    config: PipelineConfig,
    facts: ServerFacts,
    published: Sequence[PublishedTable],
) -> Iterator[Check]:
    tables = chosen_tables(published, config)
    rights = fetch_read_rights(connection, tables)
    large = {t.schema.id for t in tables if t.estimated_rows > config.copy_tables.chunk_rows}
    there = [
        (table.schema, rights[table.schema.id]) for table in tables if table.schema.id in rights
    ]
    schemas = sorted({schema.schema_name for schema, right in there if not right.may_use_schema})
    unreadable = [
        schema
        for schema, right in there
        if not (right.may_select and (right.may_cut or schema.id not in large))
    ]
    if schemas or unreadable:
        what = [f"schema {name}" for name in schemas] + [table.name for table in unreadable]
        user = quote_identifier(facts.user)
        grants = [f"GRANT USAGE ON SCHEMA {quote_identifier(name)} TO {user};" for name in schemas]
        grants += [
            f"GRANT SELECT{_read_columns(table)} ON {quote_identifier(table.schema_name)}."
            f"{quote_identifier(table.table_name)} TO {user};"
            for table in unreadable
        ]
        more = " ..." if len(grants) > LISTED else ""
        failure = SourceNotPrepared(
            f"the user {facts.user!r} may not read what is published: {names(what)}",
            solution=" ".join(grants[:LISTED]) + more,
        )
        yield Check.error("read rights", failure)
    else:
        yield Check.ok("read rights", f"{facts.user!r} may read every published table")
    filtered = [schema.name for schema, right in there if right.is_filtered_by_policy]
    if filtered:
        yield Check.warning(
            "row security",
            f"policies decide which rows {facts.user!r} may read, so Postgres refuses to copy "
            f"these tables: {names(filtered)}; those copied before stream on",
            f'As a superuser: ALTER ROLE "{facts.user}" BYPASSRLS; or make it the tables\' owner, '
            "without FORCE ROW LEVEL SECURITY; or remove them from the publication.",
        )


def _read_columns(schema: TableSchema) -> str:
    """The columns of a table to grant, where a copy doesn't read all of them."""
    if all(column.is_read for column in schema.columns):
        return ""
    read = [quote_identifier(column.name) for column in schema.columns if column.is_read]
    return f" ({', '.join([*read, 'ctid'])})"


def check_locks(
    connection: Connection, tables: Sequence[PublishedTable], *, older_than_s: float = LONG_S
) -> Iterator[Check]:
    published = {table.schema.id for table in tables} | fetch_partition_ids(
        connection, [table.schema.id for table in tables if table.is_partitioned]
    )
    locks = [
        lock
        for lock in fetch_exclusive_locks(connection, older_than_s=older_than_s)
        if lock.relation_id in published
    ]
    if locks:
        yield Check.warning(
            "locked tables",
            f"other sessions have tables to themselves: {describe_locks(locks)}; these can't be "
            "copied meanwhile, and what is streamed continues",
            "Wait, or end the session: "
            + " ".join(f"select pg_terminate_backend({pid});" for pid in _pids(locks)),
        )


def _pids(locks: Sequence[ExclusiveLock]) -> list[int]:
    return list(dict.fromkeys(lock.pid for lock in locks if lock.pid))[:LISTED]


def check_money(
    connection: Connection, config: PipelineConfig, tables: Sequence[PublishedTable]
) -> Iterator[Check]:
    """Whether money prints as the server itself prints it."""
    columns = [f"{t.schema.name}.{column}" for t in tables for column in money_columns(t.schema)]
    if not columns:
        return
    ours, theirs = fetch_sample(connection), fetch_own_sample(config.source)
    if ours == theirs:
        return
    prints = f"money prints as {theirs!r} on the source, and as {ours!r} for the pipeline"
    choose = (
        "Choose lc_monetary in source.dsn: options=-c%20lc_monetary=..., such as the source has "
        "(SHOW lc_monetary), or the column's type: numeric, bigint."
    )
    if digits(ours) != digits(theirs):
        failure = SourceNotPrepared(
            f"{prints}, with another number of digits after the point, so that amounts would be "
            f"others: {names(columns)}",
            solution=choose,
        )
        yield Check.error("money", failure)
    else:
        yield Check.warning("money", f"{prints}: {names(columns)}", choose)
