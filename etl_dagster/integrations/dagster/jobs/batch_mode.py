"""A pipeline without a sensor: a job that copies what is due, streams until caught up, and ends."""

# Dagster reads the annotations of an op's function, so they must not be strings.
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from dagster import (
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    Failure,
    JobDefinition,
    OpExecutionContext,
    in_process_executor,
    job,
    op,
)

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError, EtlError
from etl_dagster.integrations.dagster.assets.specs import keys_by_table
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.anyway import load_anyway
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate, members_of, resource_of
from etl_dagster.integrations.dagster.tables.translator import PIPELINE_TAG


def build_sync_job(
    pipeline: str | Path | EtlResource,
    assets: Iterable[AssetsDefinition | AssetSpec],
    *,
    name: str | None = None,
) -> JobDefinition:
    """A job that copies what is due, streams until caught up and ends; for a schedule.

        sync = build_sync_job("etl.yaml", assets)
        defs = Definitions(
            assets=assets,
            jobs=[sync],
            schedules=[ScheduleDefinition(job=sync, cron_schedule="*/15 * * * *")],
        )

    Use it instead of the sensor, which streams all the time: while another process streams, a run
    fails and says so. Between two runs the source keeps WAL. Each table that was copied or changed
    gets a materialization. A table that has stopped fails the run, once the others are in step; a
    run that is terminated stops when what is being written is durable.

    One run brings all of several destinations in step, since they share a slot. A destination that
    fails also fails the run, once the others are in step. One run also syncs all shards, or one of
    them alone; a shard that fails ends the others.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources, with all its
            destinations.
        assets: those of the pipeline's tables; others are ignored.
        name: of the job; by default ``PIPELINE_sync``.

    Raises:
        ConfigError: the configuration holds mistakes, or names one of several destinations.
    """
    resource = resource_of(pipeline)
    config = load_anyway(resource)
    _require_whole(config)
    members = _members(resource, config)
    keys: dict[str, Mapping[str, AssetKey]] = {}
    every_asset = list(assets)
    for member, each in members.items():
        _, of_member = locate(each)
        keys[member] = keys_by_table(every_asset, of_member.pipeline)
    resource_key = config.pipeline
    name = name or f"{config.pipeline}_sync"

    @op(name=f"{name}_op", required_resource_keys={resource_key})
    def sync_tables(context: OpExecutionContext) -> None:
        from etl_dagster.integrations.dagster.jobs.batch_run import report, sync

        parts: EtlResource = getattr(context.resources, resource_key)
        began = time.monotonic()
        try:
            now = parts.load_config()
            synced = sync(context, now, _members(parts, now))
        except EtlError as error:
            raise Failure(
                with_solution(error.reason, error.solution),
                metadata={"reason": error.reason, "solution": error.solution},
            ) from error
        report(context, synced, keys, time.monotonic() - began)

    @job(
        name=name,
        executor_def=in_process_executor,
        resource_defs={resource_key: resource},
        tags={PIPELINE_TAG: config.pipeline},
        description=f"Brings {config.pipeline} in step with its source, and ends.",
    )
    def sync_pipeline() -> None:
        sync_tables()

    return sync_pipeline


def _require_whole(config: PipelineConfig) -> None:
    if config.membership is not None:
        raise ConfigError(
            [
                "one of several destinations can't be synced alone: they share a slot; give "
                "build_sync_job the pipeline without `destination`"
            ],
            origin=f"pipeline {config.pipeline}",
        )


def _members(resource: EtlResource, config: PipelineConfig) -> dict[str, EtlResource]:
    """Each destination or shard, by the names that `RunningPipeline.statuses` has."""
    return members_of(resource, config) or {config.destination.type: resource}
