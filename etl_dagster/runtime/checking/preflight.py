"""What must be true of the source before a pipeline can run, and what should be."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.config.text import suggest
from etl_dagster.errors import (
    ColumnReserved,
    EtlError,
    ModeNeedsKey,
    PublicationEmpty,
    QuarantineNeedsKey,
    ShapeRefused,
    SlotError,
    SourceNotPrepared,
)
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.tables.identities import find_unidentified
from etl_dagster.runtime.tables.odd_policies import require_key
from etl_dagster.runtime.tables.representation import chosen_tables
from etl_dagster.runtime.tables.table_modes import require_keepable
from etl_dagster.shaping.mistakes import collisions, mistakes, unmatched
from etl_dagster.source.catalog import (
    Publication,
    PublishedTable,
    fetch_publication,
    fetch_published_tables,
)
from etl_dagster.source.connection import connect, source_uri, translate
from etl_dagster.source.locks import ExclusiveLock, describe_locks, fetch_exclusive_locks
from etl_dagster.source.money import digits, fetch_own_sample, fetch_sample, money_columns
from etl_dagster.source.partitions import fetch_foreign_partitions, fetch_partition_ids
from etl_dagster.source.readiness import (
    ServerFacts,
    fetch_read_rights,
    fetch_server_facts,
    names_standby,
)
from etl_dagster.source.slots import (
    fetch_apply_slot,
    fetch_leftover_slots,
    fetch_table_sync_slots,
    require_usable,
)
from etl_dagster.source.trigger import VERSION as TRIGGER_VERSION
from etl_dagster.source.trigger import fetch_trigger
from etl_dagster.table_name import TableName, quote_identifier
from etl_dagster.table_pattern import Pattern, TablePattern
from etl_dagster.values.types import contains_composite, enums_in
from etl_dagster.words import human_bytes, names

_log = logging.getLogger(__name__)

Connection = psycopg.Connection[Any]
Level = Literal["ok", "warning", "error"]

#: pg_replication_slots.wal_status and max_slot_wal_keep_size came with 13; older ones are untried.
_OLDEST_VERSION = 140000
_STATEMENT_TIMEOUT_S = 30.0
_APPLICATION = "etl_dagster preflight"
#: Below, a pause of minutes on a busy server loses the slot.
_SMALL_WAL_LIMIT = 1024**3
_MUCH_RETAINED_WAL = 1024**3
_SHORT_SENDER_TIMEOUT_MS = 10_000
#: Application names of replication connections begin like this.
_OUR_NAMES = "etl_dagster "
#: Of these, a start warns in the log as well.
_WARNED_AT_START = ("replica identity", "partitions")
#: So many names are listed; then a count.
_LISTED = 8


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a report."""

    name: str
    level: Level
    message: str
    #: What to do; empty when there is nothing to do.
    solution: str = ""
    #: What a pipeline that starts regardless would fail with.
    failure: EtlError | None = field(default=None, repr=False, compare=False)

    @classmethod
    def ok(cls, name: str, message: str) -> Check:
        return cls(name, "ok", message)

    @classmethod
    def warning(cls, name: str, message: str, solution: str) -> Check:
        return cls(name, "warning", message, solution)

    @classmethod
    def error(cls, name: str, failure: EtlError) -> Check:
        return cls(name, "error", failure.reason, failure.solution, failure)

    def to_json(self) -> dict[str, str]:
        return {
            "name": self.name,
            "level": self.level,
            "message": self.message,
            "solution": self.solution,
        }


def require_ready(connection: Connection, config: PipelineConfig) -> list[PublishedTable]:
    """The published tables of a source that is ready; changes nothing.

    Args:
        connection: an ordinary one to the source, in autocommit.

    Raises:
        SourceNotPrepared: or one of its kinds: the first thing that stands in the way.
        SourceError: the source refused or failed meanwhile.
    """
    try:
        facts = fetch_server_facts(connection)
        _raise_first(_check_server(connection, config, facts))
        publication = fetch_publication(connection, config.source.publication)
        tables = fetch_published_tables(connection, publication.name, with_filters=False)
        checks = list(_check_tables(connection, config, facts, publication, tables))
        checks += _check_shapes(config, tables)
        _raise_first(iter(checks))
        for check in checks:
            if check.level == "warning" and check.name in _WARNED_AT_START:
                _log.warning("%s", check.message)
    except psycopg.Error as error:
        raise translate(error, "checking the source") from error
    return tables


def run_checks(
    config: PipelineConfig, published: list[PublishedTable] | None = None
) -> list[Check]:
    """Everything that can be said about the source; what is wrong is a finding, never raised.

    Args:
        published: takes the published tables, where they could be read.
    """
    checks: list[Check] = []
    try:
        uri = source_uri(config.source)
        with connect(
            config.source,
            application_name=_APPLICATION,
            statement_timeout_s=_STATEMENT_TIMEOUT_S,
        ) as connection:
            facts = fetch_server_facts(connection)
            checks.append(Check.ok("connection", f"connected to {uri} as {facts.user!r}"))
            checks += _check_server(connection, config, facts)
            checks += _check_publication(connection, config, facts, published)
    except EtlError as error:
        checks.append(Check.error("connection", error))
    except psycopg.Error as error:
        checks.append(Check.error("connection", translate(error, "checking the source")))
    return checks


def shaped_tables(config: PipelineConfig) -> list[TableSchema]:
    """The published tables as the settings shape them, by name; changes nothing.

    Raises:
        ShapeRefused: the first thing that can't be followed.
        SourceError: the source refused.
    """
    try:
        with connect(
            config.source,
            application_name=_APPLICATION,
            statement_timeout_s=_STATEMENT_TIMEOUT_S,
        ) as connection:
            publication = fetch_publication(connection, config.source.publication)
            tables = fetch_published_tables(connection, publication.name, with_filters=False)
    except psycopg.Error as error:
        raise translate(error, "reading the publication") from error
    _raise_first(_check_shapes(config, tables))
    schemas = (table.schema for table in chosen_tables(tables, config))
    return sorted(schemas, key=lambda schema: schema.name)


def _raise_first(checks: Iterator[Check]) -> None:
    for check in checks:
        if check.failure is not None:
            raise check.failure


# -- the server --------------------------------------------------------------------------------


def _check_server(
    connection: Connection, config: PipelineConfig, facts: ServerFacts
) -> Iterator[Check]:
    yield _check_version(facts)
    yield _check_wal_level(facts)
    yield _check_slots(connection, config, facts)
    yield _check_senders(connection, config, facts)
    if facts.max_wal_senders:
        yield _check_replication_right(config, facts)
    yield from _check_settings(facts)


def _check_version(facts: ServerFacts) -> Check:
    name = "server version"
    if facts.version < _OLDEST_VERSION:
        failure = SourceNotPrepared(
            f"the source runs PostgreSQL {facts.version_text}; 14 is the oldest that will do",
            solution="Upgrade the source.",
        )
        return Check.error(name, failure)
    if facts.is_standby:
        failure = SourceNotPrepared(
            "the source is a standby, where nothing can be written: the pipeline marks the WAL",
            solution="Connect to the primary.",
        )
        return Check.error(name, failure)
    return Check.ok(name, f"PostgreSQL {facts.version_text}")


def _check_wal_level(facts: ServerFacts) -> Check:
    if facts.wal_level == "logical":
        return Check.ok("wal_level", "logical")
    failure = SourceNotPrepared(
        f"wal_level is {facts.wal_level!r} on the source; logical replication needs 'logical'",
        solution="ALTER SYSTEM SET wal_level = 'logical'; then restart the server "
        "(on Amazon RDS: set rds.logical_replication = 1 in the parameter group and reboot).",
    )
    return Check.error("wal_level", failure)


def _check_slots(connection: Connection, config: PipelineConfig, facts: ServerFacts) -> Check:
    name = "replication slots"
    has_apply = fetch_apply_slot(connection, config) is not None
    syncing = len(fetch_table_sync_slots(connection, config.pipeline))
    free = facts.max_replication_slots - facts.used_replication_slots
    wanted = (not has_apply) + max(config.copy_tables.max_table_sync_workers - syncing, 0)
    # Of several destinations, each may need one of its own, too.
    wanted += config.membership is not None
    text = f"{facts.used_replication_slots} of {facts.max_replication_slots} in use"
    raise_it = "Raise max_replication_slots on the source and restart it, or drop slots nobody uses"
    if free == 0 and not has_apply:
        failure = SourceNotPrepared(
            f"no replication slot is free on the source: {text}",
            solution=f"{raise_it}; the view pg_replication_slots lists them.",
        )
        return Check.error(name, failure)
    if free < wanted:
        return Check.warning(
            name,
            f"{text}; {free} free, up to {wanted} wanted while tables are copied",
            f"{raise_it}; or lower copy.max_table_sync_workers.",
        )
    return Check.ok(name, text)


def _check_senders(connection: Connection, config: PipelineConfig, facts: ServerFacts) -> Check:
    name = "WAL senders"
    slot = fetch_apply_slot(connection, config)
    is_streaming = slot is not None and slot.active
    free = facts.max_wal_senders - facts.used_wal_senders
    # The apply worker's, one for each table sync worker.
    wanted = (not is_streaming) + config.copy_tables.max_table_sync_workers
    text = f"{facts.used_wal_senders} of {facts.max_wal_senders} in use"
    raise_it = "Raise max_wal_senders on the source and restart it"
    if free <= 0 and not is_streaming:
        failure = SourceNotPrepared(
            f"no WAL sender is free on the source: {text}",
            solution=f"{raise_it}, or end other replication (see the view pg_stat_replication).",
        )
        return Check.error(name, failure)
    if free < wanted and not is_streaming:
        return Check.warning(
            name,
            f"{text}; {free} free, up to {wanted} wanted while tables are copied",
            f"{raise_it}; or lower copy.max_table_sync_workers.",
        )
    return Check.ok(name, text)


def _check_replication_right(config: PipelineConfig, facts: ServerFacts) -> Check:
    """By doing it: attributes, memberships of managed services and pg_hba.conf all have a say."""
    name = "replication right"
    try:
        with connect(config.source, application_name=_APPLICATION, replication=True) as connection:
            connection.execute("IDENTIFY_SYSTEM")
    except EtlError as error:
        return Check.error(name, error)
    except psycopg.Error as error:
        return Check.error(name, translate(error, "opening a replication connection"))
    return Check.ok(name, f"{facts.user!r} may replicate")


def _check_settings(facts: ServerFacts) -> Iterator[Check]:
    limit = facts.max_slot_wal_keep_bytes
    if limit is None:
        yield Check.warning(
            "WAL limit",
            "max_slot_wal_keep_size is unlimited: while the pipeline stands still, "
            "the source keeps WAL until its disk is full",
            "Set max_slot_wal_keep_size to what the disk can spare, "
            "enough for the longest pause you expect.",
        )
    elif limit < _SMALL_WAL_LIMIT:
        yield Check.warning(
            "WAL limit",
            f"max_slot_wal_keep_size is {human_bytes(limit)}: a pause in which more WAL is "
            "written loses the slot, and every table must be copied again",
            "Raise it to what the disk can spare.",
        )
    else:
        yield Check.ok("WAL limit", f"max_slot_wal_keep_size is {human_bytes(limit)}")
    timeout = facts.wal_sender_timeout_ms
    if 0 < timeout < _SHORT_SENDER_TIMEOUT_MS:
        yield Check.warning(
            "wal_sender_timeout",
            f"{timeout} ms: a short network delay ends the stream",
            "Raise wal_sender_timeout; 60 s is usual.",
        )
    else:
        yield Check.ok("wal_sender_timeout", f"{timeout / 1000:g} s" if timeout else "never")
    if facts.idle_slot_timeout_s:
        yield Check.warning(
            "idle slots",
            f"idle_replication_slot_timeout is {facts.idle_slot_timeout_s} s: a longer pause of "
            "the pipeline loses the slot, and every table must be copied again",
            "Set it to 0, or well above the longest pause you expect.",
        )
    named = names_standby(facts.synchronous_standby_names, _OUR_NAMES)
    if named is not None:
        yield Check.warning(
            "synchronous standbys",
            f"{named!r} in synchronous_standby_names also means this pipeline's connections "
            f"({_OUR_NAMES}...): every commit on the source may wait until the destination has "
            "its changes, and without end while the pipeline is stopped",
            "Name the standbys that are meant: "
            "ALTER SYSTEM SET synchronous_standby_names = 'standby_1'; then reload the server.",
        )


# -- the publication ---------------------------------------------------------------------------


def _check_publication(
    connection: Connection,
    config: PipelineConfig,
    facts: ServerFacts,
    published: list[PublishedTable] | None,
) -> Iterator[Check]:
    tables: list[PublishedTable] = []
    try:
        publication = fetch_publication(connection, config.source.publication)
    except EtlError as error:
        yield Check.error("publication", error)
    else:
        yield Check.ok("publication", f"{publication.name!r} exists")
        tables = fetch_published_tables(connection, publication.name, with_filters=False)
        if published is not None:
            published += tables
        yield from _check_tables(connection, config, facts, publication, tables)
        yield from _check_configured_tables(config, tables)
        yield from _check_shapes(config, tables)
    yield _check_apply_slot(connection, config)
    yield from _check_sync_slots(connection, config, tables)
    yield from _check_leftover_slots(connection, config)


def _check_tables(
    connection: Connection,
    config: PipelineConfig,
    facts: ServerFacts,
    publication: Publication,
    tables: Sequence[PublishedTable],
) -> Iterator[Check]:
    if not tables:
        yield Check.error("published tables", PublicationEmpty(publication.name))
        return
    yield Check.ok("published tables", names([table.schema.name for table in tables]))
    yield _check_published_changes(publication)
    yield _check_trigger(connection, tables)
    yield from _check_identities(connection, publication, tables)
    yield from _check_quarantine(config, tables)
    yield from _check_modes(config, tables)
    yield from _check_partitions(connection, config, tables)
    yield from _check_read_rights(connection, facts, tables)
    yield from _check_locks(connection, tables)
    yield from _check_money(connection, config, tables)


def _check_trigger(connection: Connection, tables: Sequence[PublishedTable]) -> Check:
    """Whether the source reports altered tables; a pipeline runs without it as well."""
    name = "altered tables"
    state = fetch_trigger(connection)
    if state.reports:
        return Check.ok(name, f"reported by the event trigger, version {state.version}")
    without = (
        "so changes of columns are found with the next row or in the catalog, and some of them, "
        "such as renamed enum values and altered composite types, lead to a new copy of the table"
    )
    if not state.trace:
        found = "the source has no event trigger that reports them"
    elif state.version == TRIGGER_VERSION:
        found = "the event trigger is disabled on the source"
    else:
        found = f"the event trigger on the source has not version {TRIGGER_VERSION}"
    solution = (
        "To have them reported: `etl-dagster migrate --source`, or with --print for an "
        "administrator to run."
    )
    found_by_labels = [table.schema.name for table in tables if _is_found_by_labels(table.schema)]
    if found_by_labels:
        without += (
            "; where rows are found by such a value, they may be there twice until that copy: "
            f"{names(found_by_labels)}"
        )
        return Check.warning(name, f"{found}, {without}", solution)
    return Check(name, "ok", f"{found}, {without}", solution)


def _is_found_by_labels(table: TableSchema) -> bool:
    """Whether rows are found by values whose types may be altered so that they print otherwise."""
    compared = table.key_columns or table.identity_columns
    return any(
        column.name in compared
        and column.type is not None
        and (contains_composite(column.type) or any(enums_in(column.type)))
        for column in table.columns
    )


def _check_published_changes(publication: Publication) -> Check:
    flags = {
        kind: getattr(publication, kind) for kind in ("insert", "update", "delete", "truncate")
    }
    published = ", ".join(kind for kind, is_published in flags.items() if is_published)
    missing = [kind for kind, is_published in flags.items() if not is_published]
    if not missing:
        return Check.ok("published changes", published)
    return Check.warning(
        "published changes",
        f"only {published or 'nothing'}: no {' and no '.join(missing)} at the source ever arrives",
        f'If that is not meant: ALTER PUBLICATION "{publication.name}" '
        "SET (publish = 'insert, update, delete, truncate');",
    )


def _check_identities(
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


def _check_quarantine(config: PipelineConfig, tables: Sequence[PublishedTable]) -> Iterator[Check]:
    for table in chosen_tables(tables, config):
        try:
            require_key(table.schema)
        except QuarantineNeedsKey as failure:
            yield Check.error("quarantine", failure)


def _check_modes(config: PipelineConfig, tables: Sequence[PublishedTable]) -> Iterator[Check]:
    for table in chosen_tables(tables, config):
        try:
            require_keepable(table.schema)
        except (ModeNeedsKey, ColumnReserved) as failure:
            yield Check.error("modes", failure)


def _check_partitions(
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


def _check_read_rights(
    connection: Connection, facts: ServerFacts, tables: Sequence[PublishedTable]
) -> Iterator[Check]:
    rights = fetch_read_rights(connection, tables)
    there = [
        (table.schema, rights[table.schema.id]) for table in tables if table.schema.id in rights
    ]
    schemas = sorted({schema.schema_name for schema, right in there if not right.may_use_schema})
    unreadable = [schema for schema, right in there if not right.may_select]
    if schemas or unreadable:
        what = [f"schema {name}" for name in schemas] + [table.name for table in unreadable]
        user = quote_identifier(facts.user)
        grants = [f"GRANT USAGE ON SCHEMA {quote_identifier(name)} TO {user};" for name in schemas]
        grants += [
            f"GRANT SELECT ON {quote_identifier(table.schema_name)}."
            f"{quote_identifier(table.table_name)} TO {user};"
            for table in unreadable
        ]
        more = " ..." if len(grants) > _LISTED else ""
        failure = SourceNotPrepared(
            f"the user {facts.user!r} may not read what is published: {names(what)}",
            solution=" ".join(grants[:_LISTED]) + more,
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


def _check_locks(connection: Connection, tables: Sequence[PublishedTable]) -> Iterator[Check]:
    published = {table.schema.id for table in tables} | fetch_partition_ids(
        connection, [table.schema.id for table in tables if table.is_partitioned]
    )
    locks = [lock for lock in fetch_exclusive_locks(connection) if lock.relation_id in published]
    if locks:
        yield Check.warning(
            "locked tables",
            f"other sessions have tables to themselves: {describe_locks(locks)}; these can't be "
            "copied meanwhile, and what is streamed goes on",
            "Wait, or end the session: "
            + " ".join(f"select pg_terminate_backend({pid});" for pid in _pids(locks)),
        )


def _check_money(
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


def _pids(locks: Sequence[ExclusiveLock]) -> list[int]:
    return list(dict.fromkeys(lock.pid for lock in locks if lock.pid))[:_LISTED]


def _check_shapes(config: PipelineConfig, tables: Sequence[PublishedTable]) -> Iterator[Check]:
    """Whether the settings of what tables are at the destination can be followed."""
    if not any(settings.is_shaping for settings in config.tables.values()):
        return
    schemas = [table.schema for table in chosen_tables(tables, config)]
    found = [mistake for schema in schemas for mistake in mistakes(schema, config)]
    found += [*unmatched(schemas, config), *collisions(schemas)]
    for mistake in found:
        yield Check.error("shapes of tables", ShapeRefused(mistake))
    if not found:
        differing = [schema.name for schema in schemas if schema.shape is not None]
        yield Check.ok("shapes of tables", f"{names(differing)} differ at the destination")


def _check_configured_tables(
    config: PipelineConfig, tables: Sequence[PublishedTable]
) -> Iterator[Check]:
    known_names = [TableName(t.schema.schema_name, t.schema.table_name) for t in tables]
    unknown = sorted(
        text
        for text, settings in config.tables.items()
        if not settings.is_shaping and not any(map(TablePattern.parse(text).matches, known_names))
    )
    if unknown:
        yield Check.warning(
            "configured tables",
            f"in the configuration, not in the publication: {names(unknown)}",
            "Correct the names under `tables`, remove them, or add the tables to the publication.",
        )
    for table in tables:
        known = table.schema.column_names
        for text, settings in config.matching(table.schema.name):
            if not TablePattern.parse(text).is_exact:
                continue
            for name in settings.columns.keys() - set(known):
                if Pattern.of(name).is_exact and not settings.columns[name].is_shaping:
                    yield Check.warning(
                        "configured columns",
                        f"{table.schema.name} has no column {name!r}{suggest(name, known, [])}",
                        f"Correct or remove tables.{text}.columns.{name}.",
                    )


# -- what earlier runs left --------------------------------------------------------------------


def _check_apply_slot(connection: Connection, config: PipelineConfig) -> Check:
    slot = fetch_apply_slot(connection, config)
    if slot is None:
        return Check.ok("slot", "not there yet; the first start creates it")
    retained = human_bytes(slot.retained_bytes)
    try:
        require_usable(slot)
    except SlotError as failure:
        return Check.error("slot", failure)
    if slot.is_unfinished:
        return Check.ok(
            "slot",
            f"{slot.name!r} is being made by backend {slot.active_pid}; that waits for "
            "transactions that are open",
        )
    if slot.wal_status == "unreserved":
        return Check.warning(
            "slot",
            f"{slot.name!r} is about to be lost: it needs {retained} of WAL, more than "
            "max_slot_wal_keep_size",
            "Start the pipeline now, or raise max_slot_wal_keep_size.",
        )
    if slot.active:
        return Check.ok(
            "slot", f"{slot.name!r} is read by backend {slot.active_pid}; it keeps {retained}"
        )
    if slot.retained_bytes > _MUCH_RETAINED_WAL:
        return Check.warning(
            "slot",
            f"nobody reads {slot.name!r}, for which the source keeps {retained} of WAL",
            "Start the pipeline; or, if it is not needed any more, "
            f"select pg_drop_replication_slot('{slot.name}');",
        )
    return Check.ok("slot", f"{slot.name!r} waits for the pipeline; it keeps {retained} of WAL")


def _check_sync_slots(
    connection: Connection, config: PipelineConfig, tables: Sequence[PublishedTable]
) -> Iterator[Check]:
    published = {table.schema.id for table in tables}
    orphans = [
        name
        for table_id, name in fetch_table_sync_slots(connection, config.pipeline).items()
        if table_id not in published
    ]
    if orphans:
        drops = " ".join(f"select pg_drop_replication_slot('{name}');" for name in orphans)
        yield Check.warning(
            "table sync slots",
            f"left by tables that are not published any more, and keeping WAL: {names(orphans)}",
            drops,
        )


def _check_leftover_slots(connection: Connection, config: PipelineConfig) -> Iterator[Check]:
    """Slots of destinations that were removed from the configuration: nothing reads them."""
    left = fetch_leftover_slots(connection, config)
    if left:
        kept = human_bytes(sum(slot.retained_bytes for slot in left))
        yield Check.warning(
            "slots of destinations",
            "named after destinations that the pipeline does not have, and keeping "
            f"{kept} of WAL: {names([slot.name for slot in left])}",
            "If no other pipeline has such a name: "
            + " ".join(f"select pg_drop_replication_slot('{slot.name}');" for slot in left),
        )
