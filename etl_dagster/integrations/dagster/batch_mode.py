"""A pipeline without a sensor: a job that copies what is due, streams until caught up, and ends."""

# Dagster reads the annotations of an op's function, so they must not be strings.
import time
from collections.abc import Collection, Iterable, Mapping
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
from etl_dagster.errors import EtlError, InvalidState
from etl_dagster.integrations.dagster.located import locate
from etl_dagster.integrations.dagster.metadata import (
    REPORTED_BY,
    Activity,
    stream_materialization,
)
from etl_dagster.integrations.dagster.outcome import Outcome
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources import EtlResource
from etl_dagster.integrations.dagster.specs import keys_by_table
from etl_dagster.integrations.dagster.translator import PIPELINE_TAG
from etl_dagster.integrations.dagster.worst_lag import Lag
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Ready, SyncDone
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.many import many
from etl_dagster.runtime.showing.status import PipelineStatus

if TYPE_CHECKING:
    from etl_dagster.runtime.pipeline import Pipeline

_POLL_S, _LOG_EVERY_S, _STOP_S = 0.2, 30.0, 60.0


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

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        assets: those of the pipeline's tables; others are ignored.
        name: of the job; by default ``PIPELINE_sync``.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    resource, config = locate(pipeline)
    keys = keys_by_table(assets, config.pipeline)
    resource_key = config.pipeline
    name = name or f"{config.pipeline}_sync"

    @op(name=f"{name}_op", required_resource_keys={resource_key})
    def sync_tables(context: OpExecutionContext) -> None:
        parts: EtlResource = getattr(context.resources, resource_key)
        began = time.monotonic()
        try:
            status, copied = sync(context, parts)
        except EtlError as error:
            raise Failure(
                with_solution(error.reason, error.solution),
                metadata={"reason": error.reason, "solution": error.solution},
            ) from error
        report(context, status, copied, keys, time.monotonic() - began)

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


def sync(
    context: OpExecutionContext, resource: EtlResource
) -> tuple[PipelineStatus, Collection[TableId]]:
    """Run the pipeline in this process until it has caught up.

    Returns:
        Its last status, and the tables whose copy was finished.

    Raises:
        EtlError: another process runs it, it can't start, or it failed.
    """
    from etl_dagster.assembly import build_destination
    from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions
    from etl_dagster.runtime.pipeline import Pipeline

    config = resource.load_config()
    _require_alone(config)
    with resource.get_store() as store:
        if store.is_leased("apply"):
            raise InvalidState(
                f"another process runs the pipeline {config.pipeline!r}",
                solution=f"Turn off the sensor {config.pipeline}_replication, and end "
                "`etl-dagster run`; or leave this job off: what streams is in step anyway.",
            )
        before = _copies(store)
        pipeline = Pipeline(config, store, build_destination(config))
        pipeline.start()
        # The mirror outlives the pipeline, for its last positions.
        with mirrored_positions(config, store, pipeline.status):
            try:
                _wait_until_caught_up(context, pipeline)
            finally:
                pipeline.shutdown()
                Outcome(pipeline.wait).wait(_STOP_S)
        after = _copies(store)
        return pipeline.status(), {
            table_id for table_id, copy in after.items() if copy and copy != before.get(table_id)
        }


def _wait_until_caught_up(context: OpExecutionContext, pipeline: "Pipeline") -> None:
    outcome = Outcome(pipeline.wait_until_caught_up)
    shown = time.monotonic()
    while not outcome.wait(_POLL_S):
        if time.monotonic() - shown >= _LOG_EVERY_S:
            shown = time.monotonic()
            context.log.info(_progress(pipeline.status()))
    if not outcome.result():
        raise InvalidState(
            "the pipeline was stopped before it had caught up",
            solution="Run the job again: it continues where it was.",
        )


def _copies(store: CoordinatingStore) -> dict[TableId, str | None]:
    """By table, the copy that it has now; None while it has none that is finished."""
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
    status: PipelineStatus,
    copied: Collection[TableId],
    keys: Mapping[str, AssetKey],
    seconds: float,
) -> None:
    """A materialization of each table that the run has changed; fails where one has stopped.

    Raises:
        Failure: a table has stopped.
    """
    stopped: list[str] = []
    for name, table in status.tables.items():
        if table.error is not None:
            stopped.append(with_solution(f"{name}: {table.error}", table.solution))
            continue
        activity = Activity.between(None, table)
        if name not in keys or not (activity or table.table_id in copied):
            continue
        is_copied = table.table_id in copied
        event = stream_materialization(keys[name], status, table, activity, Lag.of(status), seconds)
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


def _require_alone(config: PipelineConfig) -> None:
    if config.membership is not None:
        raise InvalidState(
            f"{config.pipeline}: one of several destinations can't be run alone",
            solution="Use the sensor, or `etl-dagster run --until-caught-up`, which run all.",
        )


def _progress(status: PipelineStatus) -> str:
    ready = sum(table.state == "ready" for table in status.tables.values())
    return (
        f"{ready} of {len(status.tables)} tables in step, {status.rows_total:,} rows streamed, "
        f"lag {status.lag_bytes:,} bytes"
    )
