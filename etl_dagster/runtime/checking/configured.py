"""Whether the published tables can become what the configuration says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from etl_dagster.config import PipelineConfig
from etl_dagster.config.text import suggest
from etl_dagster.errors import ColumnReserved, ModeNeedsKey, QuarantineNeedsKey, ShapeRefused
from etl_dagster.runtime.checking.check import Check
from etl_dagster.runtime.tables.odd_policies import require_key
from etl_dagster.runtime.tables.representation import chosen_tables
from etl_dagster.runtime.tables.table_modes import require_keepable
from etl_dagster.shaping.mistakes import collisions, mistakes, unmatched
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.table_name import TableName
from etl_dagster.table_pattern import Pattern, TablePattern
from etl_dagster.words import names


def check_quarantine(config: PipelineConfig, tables: Sequence[PublishedTable]) -> Iterator[Check]:
    for table in chosen_tables(tables, config):
        try:
            require_key(table.schema)
        except QuarantineNeedsKey as failure:
            yield Check.error("quarantine", failure)


def check_modes(config: PipelineConfig, tables: Sequence[PublishedTable]) -> Iterator[Check]:
    for table in chosen_tables(tables, config):
        try:
            require_keepable(table.schema)
        except (ModeNeedsKey, ColumnReserved) as failure:
            yield Check.error("modes", failure)


def check_shapes(config: PipelineConfig, tables: Sequence[PublishedTable]) -> Iterator[Check]:
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


def check_configured_tables(
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
