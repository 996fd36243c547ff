"""A pipeline without a sensor: a job that copies what is due, streams until caught up, and ends."""

# Dagster reads the annotations of an op's function, so they must not be strings.
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dagster import (
    AssetKey,
    AssetMaterialization,
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
from etl_dagster.errors import ConfigError, EtlError, InvalidState
from etl_dagster.integrations.dagster.anyway import load_anyway
from etl_dagster.integrations.dagster.located import locate, members_of, resource_of
from etl_dagster.integrations.dagster.metadata import (
    REPORTED_BY,
    Activity,
    stream_materialization,
)
from etl_dagster.integrations.dagster.outcome import Outcome
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.specs import keys_by_table
from etl_dagster.integrations.dagster.translator import PIPELINE_TAG
from etl_dagster.integrations.dagster.worst_lag import Lag
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Ready, SyncDone
from etl_dagster.runtime.many import many
from etl_dagster.runtime.showing.status import PipelineStatus

if TYPE_CHECKING:
    from etl_dagster.in_process import RunningPipeline

_POLL_S, _LOG_EVERY_S = 0.2, 30.0


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

    Instead of the sensor, which streams all the time: with both, the job fails and says so.
    Between two runs the source keeps the WAL of what changes. Each table that was copied or
    changed gets a materialization. A table that has stopped fails the run, once the others are in
    step; a run that is terminated stops when what is being written is durable.

    Of several destinations, one run brings all in step: they are fed from one slot. A destination
    that fails also fails the run. So it is with shards, of which one may be synced alone, too.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources, with all of
            its destinations.
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
        parts: EtlResource = getattr(context.resources, resource_key)
        began = time.monotonic()
        try:
            synced = sync(context, parts)
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


@dataclass(frozen=True)
class Synced:
    """What a run did to the tables of one destination."""

    status: PipelineStatus
    #: Tables whose copy was finished.
    copied: Collection[TableId]


def sync(context: OpExecutionContext, resource: EtlResource) -> Mapping[str, Synced]:
    """Run the pipeline in this process until it has caught up.

    Returns:
        By destination.

    Raises:
        EtlError: another process runs it, it can't start, or it failed.
    """
    from etl_dagster.in_process import running_with
    from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions

    config = resource.load_config()
    members = _members(resource, config)
    for each in members.values():
        _require_idle(each)
    before = {name: _copies(each) for name, each in members.items()}
    with running_with(config, mirrored_positions) as pipeline:
        _wait_until_caught_up(context, pipeline)
    statuses = pipeline.statuses()
    return {
        name: Synced(
            statuses[name],
            {
                table_id
                for table_id, copy in _copies(each).items()
                if copy and copy != before[name].get(table_id)
            },
        )
        for name, each in members.items()
    }


def _wait_until_caught_up(context: OpExecutionContext, pipeline: "RunningPipeline") -> None:
    outcome = Outcome(pipeline.wait_until_caught_up)
    shown = time.monotonic()
    while not outcome.wait(_POLL_S):
        if time.monotonic() - shown >= _LOG_EVERY_S:
            shown = time.monotonic()
            for status in pipeline.statuses().values():
                context.log.info(_progress(status))
    if not outcome.result():
        raise InvalidState(
            "the pipeline was stopped before it had caught up",
            solution="Run the job again: it continues where it was.",
        )


def _require_idle(resource: EtlResource) -> None:
    pipeline = resource.load_config().pipeline
    with resource.get_store() as store:
        if store.is_leased("apply"):
            raise InvalidState(
                f"another process runs the pipeline {pipeline!r}",
                solution=f"Turn off the sensor {pipeline}_replication, and end "
                "`etl-dagster run`; or leave this job off: what streams is in step anyway.",
            )


def _copies(resource: EtlResource) -> dict[TableId, str | None]:
    """By table, the copy that it has now; None while it has none that is finished."""
    with resource.get_store() as store:
        store.load_table_replication_states()
        states = store.get_table_replication_states()
        plans = many(store).get_copy_plans(list(states))
    return {
        table_id: plans[table_id].copy_id
        if isinstance(state, Ready | SyncDone) and table_id in plans
        else None
        for table_id, state in states.items()
    }


def report(
    context: OpExecutionContext,
    synced: Mapping[str, Synced],
    keys: Mapping[str, Mapping[str, AssetKey]],
    seconds: float,
) -> None:
    """A materialization of each table that the run has changed; fails where one has stopped.

    Args:
        synced: by destination.
        keys: the assets of each destination's tables.

    Raises:
        Failure: a table has stopped.
    """
    stopped: list[str] = []
    for destination, done in synced.items():
        status = done.status
        for name, table in status.tables.items():
            if table.error is not None:
                where = f"{name} of {status.pipeline}" if len(synced) > 1 else name
                stopped.append(with_solution(f"{where}: {table.error}", table.solution))
                continue
            key = keys[destination].get(name)
            activity = Activity.between(None, table)
            is_copied = table.table_id in done.copied
            if key is None or not (activity or is_copied):
                continue
            event = stream_materialization(key, status, table, activity, Lag.of(status), seconds)
            words = ["copied"] * is_copied + [str(event.description)] * bool(activity)
            event = AssetMaterialization(
                asset_key=event.asset_key,
                description="; ".join(words),
                metadata={**event.metadata, REPORTED_BY: context.job_name, "copied": is_copied},
            )
            context.log_event(event)
        context.log.info(_progress(status))
    if stopped:
        raise Failure("\n\n".join(stopped), allow_retries=False)


def _progress(status: PipelineStatus) -> str:
    ready = sum(table.state == "ready" for table in status.tables.values())
    return (
        f"{status.pipeline}: {ready} of {len(status.tables)} tables in step, "
        f"{status.rows_total:,} rows streamed, lag {status.lag_bytes:,} bytes"
    )
