"""The asset of a pipeline as a whole, and its checks as a step."""

# Dagster reads the annotations of a check's function, so they must not be strings.
from collections.abc import Iterator
from pathlib import Path

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSpec,
    AssetSpec,
    multi_asset_check,
)

from etl_dagster.integrations.dagster.checks.check_names import PIPELINE_CHECKS
from etl_dagster.integrations.dagster.checks.pipeline_asset import pipeline_key, pipeline_spec
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds


def build_etl_pipeline_spec(pipeline: str | Path | EtlResource = "etl.yaml") -> AssetSpec:
    """The external asset ``etl_dagster/PIPELINE``, which has the `build_etl_pipeline_checks`.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    _, config = locate(pipeline)
    return pipeline_spec(config)


def build_etl_pipeline_checks(
    pipeline: str | Path | EtlResource = "etl.yaml",
    *,
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
) -> list[AssetChecksDefinition]:
    """The checks of the pipeline as a whole: one outcome each, however many tables there are.

    They are ``replication_lag``, ``wal_retained``, ``slot_health`` (the slots exist, can be read
    and are being read) and ``state_matches_slot`` (the stream would continue exactly where the
    destination is). None passes while nothing streams. The sensor evaluates them, too, if it is
    given them. The first of several shards, which has the pipeline's name, reports the worst of all
    shards.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources. The checks
            need a resource of the pipeline's name.
        thresholds: from which values on they warn and fail.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    _, config = locate(pipeline)
    key, resource_key = pipeline_key(config.pipeline), config.pipeline

    @multi_asset_check(
        specs=[
            AssetCheckSpec(name, asset=key, description=description)
            for name, description in PIPELINE_CHECKS.items()
        ],
        name=f"{config.pipeline}_pipeline_checks",
        required_resource_keys={resource_key},
        can_subset=True,
    )
    def check_pipeline(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
        from etl_dagster.integrations.dagster.checks.all_shards import find_out

        found = find_out(getattr(context.resources, resource_key), thresholds)
        for each in context.selected_asset_check_keys:
            yield found[each.name].result(each.name, key)

    return [check_pipeline]
