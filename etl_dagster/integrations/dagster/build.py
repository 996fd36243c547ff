"""Puts a pipeline's definitions together."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from dagster import (
    AssetCheckKey,
    AssetChecksDefinition,
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    DefaultSensorStatus,
    Definitions,
    ExecutorDefinition,
    FreshnessPolicy,
    define_asset_job,
    in_process_executor,
)

from etl_dagster.assembly import require_processes
from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.dagster.anyway import load_anyway
from etl_dagster.integrations.dagster.assets import build_table_asset
from etl_dagster.integrations.dagster.bookmark_check import BOOKMARK_CHECK
from etl_dagster.integrations.dagster.checks import build_checks
from etl_dagster.integrations.dagster.discovery import discover_tables
from etl_dagster.integrations.dagster.executors import single_copy_in_process
from etl_dagster.integrations.dagster.resources import EtlConfigFile, EtlPipelineResource
from etl_dagster.integrations.dagster.sensor import (
    BUSY_REPORT_EVERY_S,
    LEASE_S,
    REPORT_EVERY_S,
    STALE_AFTER_S,
    TICK_S,
    SensorMode,
    build_etl_sensor,
)
from etl_dagster.integrations.dagster.translator import (
    PIPELINE_TAG,
    EtlDagsterTranslator,
    PublishedTableProps,
)
from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.rules import shaped
from etl_dagster.source.comments import TableComments
from etl_dagster.source.connection import source_uri

_log = logging.getLogger(__name__)


def build_etl_definitions(
    pipeline: str | Path | EtlPipelineResource = "etl.yaml",
    *,
    translator: EtlDagsterTranslator | None = None,
    sensor_status: DefaultSensorStatus | None = None,
    sensor_mode: SensorMode = "supervise",
    tick_s: float = TICK_S,
    executor: ExecutorDefinition = in_process_executor,
    lease_s: float = LEASE_S,
    report_every_s: float = REPORT_EVERY_S,
    busy_report_every_s: float = BUSY_REPORT_EVERY_S,
    stale_after_s: float | None = STALE_AFTER_S,
    clicks_in_process: bool = False,
) -> Definitions:
    """A pipeline as Dagster definitions: an asset for each table, a sensor, a job, a resource.

        defs = build_etl_definitions("etl.yaml")

    Of several destinations, each has all of these, under the name ``PIPELINE__DESTINATION``. One
    replicator runs all of them, for as long as the sensor of any is on.

    With others, use `Definitions.merge`. The resource has the pipeline's name, so any asset may
    ask for it to query the destination or look at table states.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        translator: how tables look as assets.
        sensor_status: of the sensor, until somebody switches it. Off by default.
        sensor_mode: who streams while the sensor is on. ``supervise``: a child process of the code
            server. ``tick``: the sensor's ticks themselves, where no process may start another;
            between two ticks nothing is streamed. ``observe``: a service of its own,
            `etl-dagster run`, which also copies; the sensor only shows it.
        tick_s: how long a tick streams in the mode ``tick``; well below the 60 seconds after which
            Dagster gives a tick up.
        executor: of the runs that the sensor requests, each for one table.
        lease_s: how long the replicator goes on without a tick; longer where ticks come late.
        report_every_s: a table that changes is reported at most this often.
        busy_report_every_s: what the time between two reports of a table grows to while it changes
            all the time; back to `report_every_s` once it was quiet. Dagster keeps every report
            for good.
        stale_after_s: the freshness of an asset warns when its last report is this old, and fails
            when it is twice as old. A table that doesn't change is reported again before, as long
            as it is streamed. None for assets without a freshness policy and no such reports.
        clicks_in_process: whether a run that a person starts for one table, as by a click on
            Materialize, stays in one process, which takes half of the time. It makes
            `single_copy_in_process` the default executor of the code location, so leave it off
            where definitions that are merged with these have an executor of their own.

    Raises:
        ConfigError: the configuration holds mistakes. A source that can't be reached is none, nor
            is an environment variable that is not set: then the tables last seen are the assets,
            and the sensor says what is wrong.
    """
    resource = (
        pipeline
        if isinstance(pipeline, EtlPipelineResource)
        else EtlConfigFile(path=str(Path(pipeline).absolute()))
    )
    config = load_anyway(resource)
    if config.destinations:
        several = Definitions.merge(
            *(
                build_etl_definitions(
                    resource.of_destination(name),
                    translator=translator,
                    sensor_status=sensor_status,
                    sensor_mode=sensor_mode,
                    tick_s=tick_s,
                    executor=executor,
                    lease_s=lease_s,
                    report_every_s=report_every_s,
                    busy_report_every_s=busy_report_every_s,
                    stale_after_s=stale_after_s,
                )
                for name in config.destinations
            )
        )
        return _with_clicks_in_process(several) if clicks_in_process else several
    require_processes(config)
    assets = _build_assets(config, translator or EtlDagsterTranslator(), stale_after_s)
    keys = {table_name: asset.key for table_name, asset in assets.items()}
    job, checks = None, []
    if assets:
        checks = build_checks(config.pipeline, config.pipeline, keys)
        job = define_asset_job(
            f"{config.pipeline}_copy",
            # A copy that is done must not fail because a check can't look.
            selection=AssetSelection.assets(*keys.values())
            - AssetSelection.checks(*(AssetCheckKey(key, BOOKMARK_CHECK) for key in keys.values())),
            executor_def=executor,
            tags={PIPELINE_TAG: config.pipeline},
            description=f"Copies tables of {config.pipeline}; the sensor requests what is due.",
        )
    sensor = build_etl_sensor(
        config.pipeline,
        config.pipeline,
        keys,
        job,
        default_status=sensor_status,
        mode=sensor_mode,
        tick_s=tick_s,
        lease_s=lease_s,
        report_every_s=report_every_s,
        busy_report_every_s=busy_report_every_s,
        stale_after_s=stale_after_s,
    )
    return Definitions(
        assets=list(assets.values()),
        asset_checks=checks,
        jobs=[job] if job is not None else [],
        sensors=[sensor],
        resources={config.pipeline: resource},
        executor=_executor(assets.values(), checks) if clicks_in_process else None,
    )


def _with_clicks_in_process(defs: Definitions) -> Definitions:
    assets = [asset for asset in defs.assets or () if isinstance(asset, AssetsDefinition)]
    checks = [
        check for check in defs.asset_checks or () if isinstance(check, AssetChecksDefinition)
    ]
    return Definitions.merge(defs, Definitions(executor=_executor(assets, checks)))


def _executor(
    assets: Iterable[AssetsDefinition], checks: Iterable[AssetChecksDefinition]
) -> ExecutorDefinition:
    return single_copy_in_process(
        {asset.node_def.name for asset in assets}, {check.node_def.name for check in checks}
    )


def _build_assets(
    config: PipelineConfig, translator: EtlDagsterTranslator, stale_after_s: float | None
) -> dict[str, AssetsDefinition]:
    """The asset of each published table, by the table's name.

    A table whose asset can't be made is left out with a warning: it must not take the others, and
    the sensor, with it. Where that holds for every table, the translator is what fails.
    """
    assets: dict[str, AssetsDefinition] = {}
    table_of: dict[AssetKey, str] = {}
    failure: Exception | None = None
    found = discover_tables(config)
    for schema in found.tables:
        comments = found.comments.get(schema.id, TableComments())
        try:
            asset = _build_asset(config, translator, schema, comments, stale_after_s)
        except Exception as error:
            failure = error
            _warn_left_out(config, schema.name, f"{type(error).__name__}: {error}")
            continue
        if asset.key in table_of:
            why = f"{table_of[asset.key]} has the asset key {asset.key.to_user_string()!r} already"
            _warn_left_out(config, schema.name, why)
            continue
        assets[schema.name] = asset
        table_of[asset.key] = schema.name
    if failure is not None and not assets:
        raise failure
    return assets


def _build_asset(
    config: PipelineConfig,
    translator: EtlDagsterTranslator,
    schema: TableSchema,
    comments: TableComments,
    stale_after_s: float | None,
) -> AssetsDefinition:
    props = PublishedTableProps(
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
    )
    spec = translator.get_asset_spec(props)
    if spec.freshness_policy is None and stale_after_s is not None:
        policy = FreshnessPolicy.time_window(
            warn_window=timedelta(seconds=stale_after_s),
            fail_window=timedelta(seconds=2 * stale_after_s),
        )
        spec = spec.replace_attributes(freshness_policy=policy)
    return build_table_asset(spec, schema.name, config.pipeline)


def _warn_left_out(config: PipelineConfig, table_name: str, why: str) -> None:
    _log.warning(
        "pipeline %s: table %s has no asset. %s. What to do: override "
        "EtlDagsterTranslator.get_asset_spec for this table, or rename the table.",
        config.pipeline,
        table_name,
        why,
    )
