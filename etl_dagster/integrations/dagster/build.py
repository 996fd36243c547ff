"""Puts a pipeline's definitions together."""

from __future__ import annotations

from pathlib import Path

from dagster import (
    AssetSelection,
    DefaultSensorStatus,
    Definitions,
    ExecutorDefinition,
    define_asset_job,
    in_process_executor,
)

from etl_dagster.assembly import require_processes
from etl_dagster.integrations.dagster.assets import build_table_asset
from etl_dagster.integrations.dagster.bookmark_check import build_bookmark_checks
from etl_dagster.integrations.dagster.discovery import discover_tables
from etl_dagster.integrations.dagster.resources import EtlConfigFile, EtlPipelineResource
from etl_dagster.integrations.dagster.sensor import LEASE_S, REPORT_EVERY_S, build_etl_sensor
from etl_dagster.integrations.dagster.translator import (
    PIPELINE_TAG,
    EtlDagsterTranslator,
    PublishedTableProps,
)
from etl_dagster.source.connection import source_uri


def build_etl_definitions(
    pipeline: str | Path | EtlPipelineResource = "etl.yaml",
    *,
    translator: EtlDagsterTranslator | None = None,
    sensor_status: DefaultSensorStatus | None = None,
    executor: ExecutorDefinition = in_process_executor,
    lease_s: float = LEASE_S,
    report_every_s: float = REPORT_EVERY_S,
) -> Definitions:
    """A pipeline as Dagster definitions: an asset for each table, a sensor, a job, a resource.

        defs = build_etl_definitions("etl.yaml")

    With others, use `Definitions.merge`. The resource has the pipeline's name, so any asset may
    ask for it to query the destination or look at table states.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        translator: how tables look as assets.
        sensor_status: of the sensor, until somebody switches it. Off by default.
        executor: of the runs that the sensor requests, each for one table.
        lease_s: how long the replicator goes on without a tick.
        report_every_s: how often a table that changes all the time is reported.

    Raises:
        ConfigError: the configuration holds mistakes. A source that can't be reached is none:
            then the tables last seen are the assets, and the sensor says what is wrong.
    """
    resource = (
        pipeline
        if isinstance(pipeline, EtlPipelineResource)
        else EtlConfigFile(path=str(Path(pipeline).absolute()))
    )
    with resource.process_config_and_initialize_cm() as loaded:
        config = loaded.load_config()
    require_processes(config)
    translator = translator or EtlDagsterTranslator()
    specs = {
        schema.name: translator.get_asset_spec(
            PublishedTableProps(
                pipeline=config.pipeline,
                environment=config.environment,
                schema=schema,
                state_id=config.state_id(schema.name),
                publication=config.source.publication,
                source_uri=source_uri(config.source),
                destination_type=config.destination.type,
                destination_place=config.destination.place,
            )
        )
        for schema in discover_tables(config).tables
    }
    assets = [
        build_table_asset(spec, table_name, config.pipeline) for table_name, spec in specs.items()
    ]
    keys = {table_name: spec.key for table_name, spec in specs.items()}
    job, checks = None, []
    if assets:
        checks = [build_bookmark_checks(config.pipeline, config.pipeline, keys)]
        job = define_asset_job(
            f"{config.pipeline}_copy",
            # A copy that is done must not fail because a check can't look.
            selection=AssetSelection.assets(*keys.values()) - AssetSelection.checks(*checks),
            executor_def=executor,
            tags={PIPELINE_TAG: config.pipeline},
            description=f"Copies tables of `{config.pipeline}`; the sensor requests what is due.",
        )
    sensor = build_etl_sensor(
        config.pipeline,
        config.pipeline,
        keys,
        job,
        default_status=sensor_status,
        lease_s=lease_s,
        report_every_s=report_every_s,
    )
    return Definitions(
        assets=assets,
        asset_checks=checks,
        jobs=[job] if job is not None else [],
        sensors=[sensor],
        resources={config.pipeline: resource},
    )
