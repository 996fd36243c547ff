"""Assets of a pipeline's tables whose body is a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from dagster import AssetsDefinition, RetryPolicy, multi_asset

from etl_dagster.integrations.dagster.assets.references import function_reference, with_references
from etl_dagster.integrations.dagster.assets.specs import load_etl_asset_specs
from etl_dagster.integrations.dagster.copies.table_asset import copy_pool
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate
from etl_dagster.integrations.dagster.tables.translator import EtlDagsterTranslator


def etl_assets(
    *,
    pipeline: str | Path | EtlResource = "etl.yaml",
    translator: EtlDagsterTranslator | None = None,
    tables: Collection[str] | None = None,
    name: str | None = None,
    pool: str | None = None,
    retry_policy: RetryPolicy | None = None,
    stale_after_s: float | None = None,
    group_per_schema: bool = False,
    source_assets: bool = True,
    required_resource_keys: set[str] | None = None,
) -> Callable[[Callable[..., Any]], AssetsDefinition]:
    """Make a function the body that copies a pipeline's tables.

        @etl_assets(pipeline="etl.yaml")
        def shop_tables(context: AssetExecutionContext, shop: EtlResource):
            for result in shop.copy_selected(context):
                announce(result)
                yield result

        sensor = build_etl_sensor("etl.yaml", [shop_tables])
        defs = Definitions(
            assets=[shop_tables],
            sensors=[sensor],
            resources={"shop": EtlConfigFileResource(path="etl.yaml")},
        )

    The resource has the pipeline's name. One step copies all tables that a run selects, one after
    the other; with `build_etl_definitions`, each asset is a step of its own.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        translator: how tables look as assets.
        tables: only these, by ``schema.table``; by default all.
        name: of the step; by default ``PIPELINE_tables``.
        pool: limits how many copies run at a time; by default ``etl_copy_PIPELINE``.
        retry_policy: of the step, in addition to the retries that `EtlResource.copy` asks for.
        stale_after_s: as of `build_etl_definitions`; None for no freshness policy.
        group_per_schema: whether each schema of the source has a group of its own.
        source_assets: whether each asset depends on an asset for the table in the source.
        required_resource_keys: further resources, if the body takes them from its context.

    Raises:
        ConfigError: the configuration holds mistakes; not raised if the source can't be reached.
        InvalidState: a table of `tables` is not published.
    """
    resource, config = locate(pipeline)
    specs = load_etl_asset_specs(
        resource,
        translator=translator,
        tables=tables,
        stale_after_s=stale_after_s,
        group_per_schema=group_per_schema,
        source_assets=source_assets,
    )

    def decorate(function: Callable[..., Any]) -> AssetsDefinition:
        place = function_reference(function)
        own = [
            spec.replace_attributes(metadata=with_references(spec.metadata, place))
            for spec in specs
        ]
        return multi_asset(
            name=name or f"{config.pipeline}_tables",
            specs=own,
            can_subset=True,
            pool=pool or copy_pool(config.pipeline),
            retry_policy=retry_policy,
            required_resource_keys=required_resource_keys or set(),
        )(function)

    return decorate
