"""A run that copies what is due, streams until caught up, and ends."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagster import AssetKey, AssetMaterialization, Failure, OpExecutionContext

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import DestinationsFailed, EtlError, InvalidState
from etl_dagster.integrations.dagster.outcome import Outcome
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.sensor.settings import NEW_TABLES
from etl_dagster.integrations.dagster.tables.metadata import (
    REPORTED_BY,
    Activity,
    stream_materialization,
)
from etl_dagster.integrations.dagster.worst_lag import Lag
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Ready, SyncDone
from etl_dagster.runtime.many import many
from etl_dagster.runtime.showing.status import PipelineStatus
from etl_dagster.words import names

if TYPE_CHECKING:
    from etl_dagster.in_process import RunningPipeline

_POLL_S, _LOG_EVERY_S = 0.2, 30.0


@dataclass(frozen=True)
class Synced:
    """What a run did to the tables of one destination."""

    status: PipelineStatus
    #: Tables whose copy was finished.
    copied: Collection[TableId]
    #: Why the destination failed, while others have caught up.
    failure: EtlError | None = None


def sync(
    context: OpExecutionContext, config: PipelineConfig, members: Mapping[str, EtlResource]
) -> Mapping[str, Synced]:
    """Run the pipeline in this process until it has caught up.

    Args:
        config: of the pipeline as a whole.
        members: its destinations or shards, by the names that `RunningPipeline.statuses` has.

    Returns:
        By the same names.

    Raises:
        EtlError: another process runs it, it can't start, or it failed. If only some of several
            destinations failed, the result says so instead.
    """
    from etl_dagster.in_process import running_with
    from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions

    for each in members.values():
        _require_idle(each)
    before = {name: _copies(each) for name, each in members.items()}
    failures: Mapping[str, EtlError] = {}
    with running_with(config, mirrored_positions) as pipeline:
        try:
            _wait_until_caught_up(context, pipeline)
        except DestinationsFailed as failed:
            if failed.failures.keys() == members.keys():
                raise
            failures = failed.failures
    statuses = pipeline.statuses()
    return {
        name: Synced(
            statuses[name],
            {
                table_id
                for table_id, copy in _copies(each).items()
                if copy and copy != before[name].get(table_id)
            },
            failures.get(name),
        )
        for name, each in members.items()
    }


def _wait_until_caught_up(context: OpExecutionContext, pipeline: RunningPipeline) -> None:
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
                "`etl-dagster run`. Or don't run this job: a pipeline that streams is in step "
                "without it.",
            )


def _copies(resource: EtlResource) -> dict[TableId, str | None]:
    """The ID of each table's copy; None while it has no finished one."""
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
    """A materialization of each table that the run has changed.

    Args:
        synced: by destination.
        keys: the assets of each destination's tables, as of when the code was loaded.

    Raises:
        Failure: a table has stopped, or a destination has failed.
    """
    failures = {name: done.failure for name, done in synced.items() if done.failure is not None}
    stopped = [
        with_solution(f"{name} failed: {failure.reason}", failure.solution)
        for name, failure in failures.items()
    ]
    # If waiting is enough to cure every failure, Dagster may retry the run.
    is_passing = bool(failures) and all(failure.retryable for failure in failures.values())
    for destination, done in synced.items():
        status = done.status
        known = keys.get(destination, {})
        for name, table in status.tables.items():
            if table.error is not None:
                is_passing = False
                where = f"{name} of {status.pipeline}" if len(synced) > 1 else name
                stopped.append(with_solution(f"{where}: {table.error}", table.solution))
                continue
            key = known.get(name)
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
        unknown = [name for name in status.tables if name not in known]
        newer = f"; no asset yet ({NEW_TABLES}): {names(unknown)}" if unknown else ""
        context.log.info(_progress(status) + newer)
    if stopped:
        raise Failure("\n\n".join(stopped), allow_retries=is_passing)


def _progress(status: PipelineStatus) -> str:
    ready = sum(table.state == "ready" for table in status.tables.values())
    return (
        f"{status.pipeline}: {ready} of {len(status.tables)} tables in step, "
        f"{status.rows_total:,} rows streamed, lag {status.lag_bytes:,} bytes"
    )
