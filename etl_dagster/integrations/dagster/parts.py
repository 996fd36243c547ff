"""The parts of which `build_etl_definitions` makes a pipeline's definitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from dagster import (
    AssetCheckKey,
    AssetChecksDefinition,
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    DefaultSensorStatus,
    ExecutorDefinition,
    SensorDefinition,
    define_asset_job,
    in_process_executor,
)

from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.dagster.assets.specs import keys_by_table
from etl_dagster.integrations.dagster.checks.check_names import BOOKMARK_CHECK
from etl_dagster.integrations.dagster.checks.every_table import build_checks
from etl_dagster.integrations.dagster.checks.pipeline_asset import PipelineChecks, pipeline_key
from etl_dagster.integrations.dagster.copies.table_asset import build_table_asset
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate
from etl_dagster.integrations.dagster.sensor import definition as sensors
from etl_dagster.integrations.dagster.sensor.settings import (
    BUSY_REPORT_EVERY_S,
    LEASE_S,
    NEW_TABLES,
    REPORT_EVERY_S,
    STALE_AFTER_S,
    TICK_S,
    SensorMode,
)
from etl_dagster.integrations.dagster.tables.translator import PIPELINE_TAG, TABLE_TAG
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds


def build_etl_assets(
    pipeline: str | Path | EtlResource, specs: Iterable[AssetSpec]
) -> list[AssetsDefinition]:
    """An asset for each specification: a step of its own that copies the table.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources. The assets
            need a resource of the pipeline's name.
        specs: from `load_etl_asset_specs`; you may have changed them.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    _, config = locate(pipeline)
    return [
        build_table_asset(spec, str(spec.metadata[TABLE_TAG]), config.pipeline) for spec in specs
    ]


def build_etl_sensor(
    pipeline: str | Path | EtlResource,
    assets: Iterable[AssetsDefinition | AssetSpec],
    *,
    default_status: DefaultSensorStatus | None = None,
    mode: SensorMode = "supervise",
    tick_s: float = TICK_S,
    executor: ExecutorDefinition = in_process_executor,
    lease_s: float = LEASE_S,
    report_every_s: float = REPORT_EVERY_S,
    busy_report_every_s: float = BUSY_REPORT_EVERY_S,
    stale_after_s: float | None = STALE_AFTER_S,
    checks: Iterable[AssetChecksDefinition] = (),
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
    reports: Literal["materialization", "observation"] = "materialization",
    new_tables: str = NEW_TABLES,
) -> SensorDefinition:
    """The sensor ``PIPELINE_replication``, and with it the job ``PIPELINE_copy`` that it requests.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources. The sensor
            needs a resource of the pipeline's name.
        assets: those of the pipeline's tables; others are ignored.
        default_status: whether it is on until a user switches it in the UI; off by default.
        mode: who streams; see `sensor_mode` of `build_etl_definitions`.
        tick_s: how long a tick streams in the mode ``tick``.
        executor: of the runs that the sensor requests, each for one table.
        lease_s: the replicator stops this long after the last tick.
        report_every_s: a table that changes is reported at most this often.
        busy_report_every_s: what the time between two reports of a table grows to while it changes
            all the time.
        stale_after_s: a table that doesn't change is reported again some time before its last
            report is this old; None for never.
        checks: those of `build_etl_checks` and `build_etl_pipeline_checks` that the code location
            has: the sensor evaluates them.
        thresholds: of these checks.
        reports: the kind of event by which changes are reported. An observation doesn't make an
            asset fresh, and `eager()` doesn't follow it; copies are materializations all the same.
        new_tables: how a table that is new in the publication gets its asset; part of the line
            that the sensor writes then.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    _, config = locate(pipeline)
    keys = keys_by_table(assets, config.pipeline)
    checked = {key.asset_key for each in checks for key in each.check_keys}
    has_checks = not checked.isdisjoint(keys.values())
    whole = pipeline_key(config.pipeline)
    is_observed = reports == "observation"
    return sensors.build_etl_sensor(
        config.pipeline,
        config.pipeline,
        keys,
        copy_job(config, keys, executor, has_checks=has_checks) if keys else None,
        default_status=default_status,
        mode=mode,
        tick_s=tick_s,
        lease_s=lease_s,
        report_every_s=report_every_s,
        busy_report_every_s=busy_report_every_s,
        stale_after_s=None if is_observed else stale_after_s,
        has_checks=has_checks,
        pipeline_checks=PipelineChecks(whole, thresholds) if whole in checked else None,
        thresholds=thresholds,
        reports_observations=is_observed,
        new_tables=new_tables,
    )


def build_etl_checks(
    pipeline: str | Path | EtlResource,
    assets: Iterable[AssetsDefinition | AssetSpec],
    *,
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
) -> list[AssetChecksDefinition]:
    """The checks of the pipeline's tables.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources. The checks
            need a resource of the pipeline's name.
        assets: those of the pipeline's tables; others are ignored.
        thresholds: from which values on they warn and fail.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    _, config = locate(pipeline)
    keys = keys_by_table(assets, config.pipeline)
    return build_checks(config.pipeline, config.pipeline, keys, thresholds) if keys else []


def copy_job(
    config: PipelineConfig,
    keys: Mapping[str, AssetKey],
    executor: ExecutorDefinition,
    *,
    has_checks: bool,
) -> Any:
    """The job ``PIPELINE_copy``: copies, and the tables' checks except for the bookmark's."""
    selection: AssetSelection = AssetSelection.assets(*keys.values())
    if has_checks:
        # A finished copy must not fail because this check can't be evaluated.
        others = (AssetCheckKey(key, BOOKMARK_CHECK) for key in keys.values())
        selection = selection - AssetSelection.checks(*others)
    return define_asset_job(
        f"{config.pipeline}_copy",
        selection=selection,
        executor_def=executor,
        tags={PIPELINE_TAG: config.pipeline},
        description=f"Copies tables of {config.pipeline}; the sensor requests what is due.",
    )
