"""What must be true of the source before a pipeline can run, and what should be."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, PublicationEmpty
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.checking.check import APPLICATION, Check, Connection
from etl_dagster.runtime.checking.configured import (
    check_configured_tables,
    check_modes,
    check_quarantine,
    check_shapes,
)
from etl_dagster.runtime.checking.publication import check_published_changes, check_trigger
from etl_dagster.runtime.checking.server import check_server
from etl_dagster.runtime.checking.shards import check_shards
from etl_dagster.runtime.checking.slots import (
    LEFTOVER,
    check_apply_slot,
    check_leftover_slots,
    check_sync_slots,
)
from etl_dagster.runtime.checking.tables import (
    check_identities,
    check_locks,
    check_money,
    check_partitions,
    check_read_rights,
)
from etl_dagster.runtime.tables.representation import chosen_tables
from etl_dagster.source.catalog import (
    Publication,
    PublishedTable,
    fetch_publication,
    fetch_published_tables,
)
from etl_dagster.source.connection import connect, source_uri, translate
from etl_dagster.source.readiness import ServerFacts, fetch_server_facts
from etl_dagster.words import names

_log = logging.getLogger(__name__)

_STATEMENT_TIMEOUT_S = 30.0
#: Of these, a start warns in the log as well.
_WARNED_AT_START = ("replica identity", "partitions", LEFTOVER)


def require_ready(connection: Connection, config: PipelineConfig) -> list[PublishedTable]:
    """The published tables of a source that is ready; changes nothing.

    Warnings are logged, but for those to one destination of several: `require_ready_for_all` has.

    Args:
        connection: an ordinary one to the source, in autocommit.

    Raises:
        SourceNotPrepared: or one of its kinds: the first thing that stands in the way.
        SourceError: the source refused or failed meanwhile.
    """
    tables, warnings = _ready(connection, config)
    if config.membership is None:
        _log_all(warnings)
    return tables


def require_ready_for_all(connection: Connection, config: PipelineConfig) -> None:
    """As `require_ready`, for all of a pipeline's destinations, by the configuration of one."""
    _, warnings = _ready(connection, config)
    _log_all(warnings)


def _ready(
    connection: Connection, config: PipelineConfig
) -> tuple[list[PublishedTable], list[Check]]:
    """The published tables, and what a start warns of."""
    try:
        facts = fetch_server_facts(connection)
        _raise_first(check_server(connection, config, facts))
        publication = fetch_publication(connection, config.source.publication)
        tables = fetch_published_tables(connection, publication.name, with_filters=False)
        checks = list(_check_tables(connection, config, facts, publication, tables))
        checks += check_shapes(config, tables)
        _raise_first(iter(checks))
        checks += _left_over(connection, config)
    except psycopg.Error as error:
        raise translate(error, "checking the source") from error
    warnings = [c for c in checks if c.level == "warning" and c.name in _WARNED_AT_START]
    return tables, warnings


def _left_over(connection: Connection, config: PipelineConfig) -> list[Check]:
    """Slots of what was taken out of the configuration; of several shards, the first one looks."""
    sharding = config.sharding
    if sharding is not None and sharding.name != sharding.pipeline:
        return []
    return list(check_leftover_slots(connection, config))


def _log_all(warnings: Sequence[Check]) -> None:
    for check in warnings:
        _log.warning("%s", check.message)


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
            application_name=APPLICATION,
            statement_timeout_s=_STATEMENT_TIMEOUT_S,
        ) as connection:
            facts = fetch_server_facts(connection)
            checks.append(Check.ok("connection", f"connected to {uri} as {facts.user!r}"))
            checks += check_server(connection, config, facts)
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
            application_name=APPLICATION,
            statement_timeout_s=_STATEMENT_TIMEOUT_S,
        ) as connection:
            publication = fetch_publication(connection, config.source.publication)
            tables = fetch_published_tables(connection, publication.name, with_filters=False)
    except psycopg.Error as error:
        raise translate(error, "reading the publication") from error
    _raise_first(check_shapes(config, tables))
    schemas = (table.schema for table in chosen_tables(tables, config))
    return sorted(schemas, key=lambda schema: schema.name)


def _raise_first(checks: Iterator[Check]) -> None:
    for check in checks:
        if check.failure is not None:
            raise check.failure


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
        yield from check_configured_tables(config, tables)
        yield from check_shapes(config, tables)
    yield check_apply_slot(connection, config)
    yield from check_sync_slots(connection, config, tables)
    yield from check_leftover_slots(connection, config)


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
    yield from check_shards(connection, config, tables)
    yield check_published_changes(publication)
    yield check_trigger(connection, tables)
    yield from check_identities(connection, publication, tables)
    yield from check_quarantine(config, tables)
    yield from check_modes(config, tables)
    yield from check_partitions(connection, config, tables)
    yield from check_read_rights(connection, config, facts, tables)
    yield from check_locks(connection, tables)
    yield from check_money(connection, config, tables)
