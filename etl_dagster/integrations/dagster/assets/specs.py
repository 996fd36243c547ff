"""The assets of a pipeline as specifications: what is known of its tables before any copy."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from dagster import AssetKey, AssetsDefinition, AssetSpec, FreshnessPolicy

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import InvalidState
from etl_dagster.integrations.dagster.assets.references import (
    Reference,
    caller_reference,
    config_reference,
    with_references,
)
from etl_dagster.integrations.dagster.copies.table_asset import build_table_asset
from etl_dagster.integrations.dagster.names import key_part
from etl_dagster.integrations.dagster.resources.anyway import STAND_IN
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate
from etl_dagster.integrations.dagster.tables.discovery import Discovery, discover_tables
from etl_dagster.integrations.dagster.tables.storage import source_database, storage_of
from etl_dagster.integrations.dagster.tables.translator import (
    PIPELINE_TAG,
    TABLE_TAG,
    EtlDagsterTranslator,
    PublishedTableProps,
    group_of,
)
from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.rules import shaped
from etl_dagster.source.comments import TableComments

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Looks:
    """How assets look, besides what the translator decides.

    Args:
        stale_after_s: the freshness of an asset warns when its last materialization is this old,
            and fails when it is twice as old; None for no freshness policy of ours.
        group_per_schema: whether each schema of the source has a group of its own.
        has_sources: whether each table in the source is an asset, too.
    """

    translator: EtlDagsterTranslator
    stale_after_s: float | None = None
    group_per_schema: bool = False
    has_sources: bool = True


@dataclass(frozen=True)
class Specs:
    """The assets of one pipeline."""

    #: By ``schema.table``.
    tables: Mapping[str, AssetSpec]
    #: By ``schema.table``, the same as assets; each is a step of its own that copies its table.
    assets: Mapping[str, AssetsDefinition]
    #: External: the tables in the source.
    sources: Sequence[AssetSpec]


def load_etl_asset_specs(
    pipeline: str | Path | EtlResource = "etl.yaml",
    *,
    translator: EtlDagsterTranslator | None = None,
    tables: Collection[str] | None = None,
    stale_after_s: float | None = None,
    group_per_schema: bool = False,
    source_assets: bool = True,
) -> list[AssetSpec]:
    """The asset of each published table, as a specification.

    For assets with a body of your own, see `etl_assets`. For a code location that only shows tables
    which another one copies, give the specifications to `Definitions` as they are.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        translator: how tables look as assets.
        tables: only these, by ``schema.table``; by default all.
        stale_after_s: as of `build_etl_definitions`; None for no freshness policy.
        group_per_schema: whether each schema of the source has a group of its own.
        source_assets: whether each asset depends on an asset for the table in the source;
            `build_etl_source_specs` describes those.

    Raises:
        ConfigError: the configuration holds mistakes; not raised if the source can't be reached.
        InvalidState: a table of `tables` is not published.
    """
    resource, config = locate(pipeline)
    looks = Looks(
        translator or EtlDagsterTranslator(), stale_after_s, group_per_schema, source_assets
    )
    found = build_specs(resource, config, looks).tables
    return [found[name] for name in _chosen(config, found, tables)]


def build_etl_source_specs(
    pipeline: str | Path | EtlResource = "etl.yaml",
    *,
    translator: EtlDagsterTranslator | None = None,
) -> list[AssetSpec]:
    """The published tables in the source, as external assets.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        translator: how tables look as assets; see `EtlDagsterTranslator.get_source_spec`.

    Raises:
        ConfigError: the configuration holds mistakes; not raised if the source can't be reached.
    """
    resource, config = locate(pipeline)
    return list(build_specs(resource, config, Looks(translator or EtlDagsterTranslator())).sources)


def keys_by_table(
    assets: Iterable[AssetsDefinition | AssetSpec], pipeline: str
) -> dict[str, AssetKey]:
    """The asset keys of the pipeline's tables, by ``schema.table``; other assets are ignored."""
    specs = [
        spec
        for asset in assets
        for spec in ([asset] if isinstance(asset, AssetSpec) else asset.specs)
    ]
    return {
        str(spec.metadata[TABLE_TAG]): spec.key
        for spec in specs
        if TABLE_TAG in spec.metadata and spec.metadata.get(PIPELINE_TAG) == pipeline
    }


def build_specs(
    resource: EtlResource,
    config: PipelineConfig,
    looks: Looks,
    *,
    found: Discovery | None = None,
) -> Specs:
    """The asset of each published table.

    A table whose asset can't be built is left out with a warning, so that the others and the sensor
    still load. If that happens to every table, the fault is the translator's, and its exception is
    raised.

    Args:
        found: the tables, if they are known already.
    """
    tables: dict[str, AssetSpec] = {}
    assets: dict[str, AssetsDefinition] = {}
    sources: dict[AssetKey, AssetSpec] = {}
    table_of: dict[AssetKey, str] = {}
    failure: Exception | None = None
    caller = caller_reference()
    found = discover_tables(config) if found is None else found
    database = found.database or source_database(config.source)
    if database == STAND_IN or not looks.has_sources:
        database = ""
    for schema in found.tables:
        comments = found.comments.get(schema.id, TableComments())
        try:
            props = _props(config, looks, schema, comments, database)
            spec = looks.translator.get_asset_spec(props)
            spec = _completed(spec, resource, config, looks, schema, caller)
            # Dagster refuses some names only here.
            asset = build_table_asset(spec, schema.name, config.pipeline)
            source = looks.translator.get_source_spec(props) if looks.has_sources else None
        except Exception as error:
            failure = error
            _warn_left_out(config, schema.name, f"{type(error).__name__}: {error}")
            continue
        if spec.key in table_of:
            why = f"{table_of[spec.key]} has the asset key {spec.key.to_user_string()!r} already"
            _warn_left_out(config, schema.name, why)
            continue
        tables[schema.name], assets[schema.name] = spec, asset
        table_of[spec.key] = schema.name
        if source is not None:
            sources.setdefault(source.key, source)
    if failure is not None and not tables:
        raise failure
    return Specs(tables, assets, list(sources.values()))


def _props(
    config: PipelineConfig,
    looks: Looks,
    schema: TableSchema,
    comments: TableComments,
    database: str,
) -> PublishedTableProps:
    from etl_dagster.source.connection import source_uri

    storage = storage_of(config.destination)
    group = group_of(config.pipeline, key_part(schema.schema_name))
    return PublishedTableProps(
        pipeline=config.pipeline,
        environment=config.environment,
        schema=replace(shaped(schema, config), mode=config.mode_of(schema.name)),
        state_id=config.state_id(schema.name),
        publication=config.source.publication,
        source_uri=source_uri(config.source),
        destination_type=config.destination.type,
        destination_place=config.destination.place,
        comment=comments.table,
        column_comments=comments.columns,
        source_database=database,
        destination_database=storage.database,
        destination_uri=storage.uri,
        group_name=group if looks.group_per_schema else None,
    )


def _completed(
    spec: AssetSpec,
    resource: EtlResource,
    config: PipelineConfig,
    looks: Looks,
    schema: TableSchema,
    caller: Reference | None,
) -> AssetSpec:
    """The translator's specification, with the metadata by which the other parts find the table."""
    metadata = with_references(spec.metadata, config_reference(resource, schema.name), caller)
    metadata |= {PIPELINE_TAG: config.pipeline, TABLE_TAG: schema.name}
    spec = spec.replace_attributes(metadata=metadata)
    if spec.freshness_policy is None and looks.stale_after_s is not None:
        policy = FreshnessPolicy.time_window(
            warn_window=timedelta(seconds=looks.stale_after_s),
            fail_window=timedelta(seconds=2 * looks.stale_after_s),
        )
        spec = spec.replace_attributes(freshness_policy=policy)
    return spec


def _chosen(
    config: PipelineConfig, found: Mapping[str, AssetSpec], tables: Collection[str] | None
) -> Sequence[str]:
    if tables is None:
        return list(found)
    if missing := sorted(set(tables) - found.keys()):
        raise InvalidState(
            f"pipeline {config.pipeline}: not published: {', '.join(missing)}",
            solution="Write each as schema.table, and add it to the publication.",
        )
    return [name for name in found if name in tables]


def _warn_left_out(config: PipelineConfig, table_name: str, why: str) -> None:
    _log.warning(
        "pipeline %s: table %s has no asset. %s. What to do: override "
        "EtlDagsterTranslator.get_asset_spec for this table, or rename the table.",
        config.pipeline,
        table_name,
        why,
    )
