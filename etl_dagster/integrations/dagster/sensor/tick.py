"""A tick of the sensor: keeps the stream alive, requests copies, reports what the stream does."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    AssetMaterialization,
    SensorEvaluationContext,
    SensorResult,
)

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.checks.all_shards import asking_shards
from etl_dagster.integrations.dagster.checks.coming import find_coming, recently_found
from etl_dagster.integrations.dagster.checks.lag import dead, published
from etl_dagster.integrations.dagster.checks.pipeline_asset import PipelineChecks
from etl_dagster.integrations.dagster.checks.slot_look import resource_look
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.sensor import words
from etl_dagster.integrations.dagster.sensor.memory import SensorMemory, memory_of
from etl_dagster.integrations.dagster.sensor.observing import observe
from etl_dagster.integrations.dagster.sensor.requests import DueCopies, due_copies
from etl_dagster.integrations.dagster.sensor.settings import (
    BUSY_REPORT_EVERY_S,
    LEASE_S,
    NEW_TABLES,
    REPORT_EVERY_S,
    TICK_S,
    SensorMode,
)
from etl_dagster.integrations.dagster.sensor.supervision import Supervision
from etl_dagster.integrations.dagster.sensor.supervisor import name_of_replicator, supervisor_of
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds
from etl_dagster.integrations.dagster.worst_lag import WorstLag
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.showing.status import PipelineStatus
from etl_dagster.words import names

_log = logging.getLogger(__name__)

#: A tick that fails stores its evaluations itself, some 20 ms each.
_EVENTS_OF_A_FAILED_TICK = 200
#: A cursor that no tick gives Dagster to store.
_NO_CURSOR = ""


def tick(
    context: SensorEvaluationContext,
    resource: EtlResource,
    pipeline: str,
    keys: Mapping[str, AssetKey],
    *,
    mode: SensorMode = "supervise",
    tick_s: float = TICK_S,
    lease_s: float = LEASE_S,
    report_every_s: float = REPORT_EVERY_S,
    busy_report_every_s: float = BUSY_REPORT_EVERY_S,
    idle_every_s: float | None = None,
    pipeline_checks: PipelineChecks | None = None,
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
    new_tables: str = NEW_TABLES,
) -> SensorResult:
    """One evaluation of the sensor; a second or two, and in the mode ``tick`` `tick_s` more.

    Raises:
        EtlError: the replicator failed, or the configuration is wrong. The tick fails with it, once
            every table's checks have failed: Dagster stores nothing of a tick that raises.
    """
    # A preview from the UI has no start time. It must not start to stream, nor swallow events.
    is_preview = context.last_sensor_start_time is None
    memory = memory_of(pipeline, context.cursor, is_preview=is_preview)
    memory.settle(context.cursor)
    # Until the tick ends: Dagster stores nothing of a tick that fails.
    memory.reports.expect(_NO_CURSOR)
    config: PipelineConfig | None = None
    try:
        config = resource.load_config()
        supervision = _supervise(config, resource, mode, tick_s, lease_s, is_preview=is_preview)
        status = supervision.status
        coming = dict(supervision.coming)
        if is_preview or status is None or _is_standby(status):
            coming = {**recently_found(config), **coming}
        if status is None:
            return _tick_without_stream(
                context, memory, config, supervision, keys, coming, pipeline_checks
            )
        generation, copies, note = supervision.generation, DueCopies(), supervision.note
        if _is_standby(status):
            # The status of the process that runs the pipeline; that one also requests the copies.
            note = note or status.error
            other = published(resource).status
            status, generation = other or status, -(other.epoch if other else 0)
        elif mode != "observe":
            copies = due_copies(context.instance, resource, config, status, keys, memory.ended)
        announced = [] if is_preview else memory.reports.announce(supervision.coming, keys)
        events = announced + _events(
            context,
            memory,
            config,
            status,
            generation,
            keys,
            copies,
            supervision.worst_lag,
            every_s=report_every_s,
            busy_every_s=busy_report_every_s,
            idle_every_s=idle_every_s,
            thresholds=thresholds,
        )
        if pipeline_checks is not None and not is_preview:
            events += memory.pipeline.due(
                pipeline_checks,
                config,
                status,
                resource_look(resource),
                asking_shards(resource, pipeline_checks.thresholds),
            )
        notices = [] if is_preview else memory.notices.lines(resource)
    except EtlError as failure:
        if not is_preview:
            _store_failed_checks(context, memory, config, failure, keys, pipeline_checks)
        raise
    note = words.with_coming(note, coming)
    memory.ticks += 1
    did = words.Did.of(memory.ticks, events, len(copies.requests))
    line = words.line(
        status,
        keys,
        note=note,
        waiting=copies.waiting,
        notices=notices,
        did=did,
        new_tables=new_tables,
    )
    gist = words.gist(status, note, len(copies.requests), copies.waiting)
    if memory.log.is_due(gist):
        context.log.info(line)
    cursor = words.cursor(status, did)
    memory.reports.expect(cursor)
    return SensorResult(
        run_requests=list(copies.requests),
        asset_events=events,
        cursor=cursor,
        skip_reason=None if copies.requests else line,
    )


def _supervise(
    config: PipelineConfig,
    resource: EtlResource,
    mode: SensorMode,
    tick_s: float,
    lease_s: float,
    *,
    is_preview: bool,
) -> Supervision:
    match mode:
        case "supervise":
            supervisor = supervisor_of(name_of_replicator(config))
            return supervisor.keep(
                config, lease_s, may_spawn=not is_preview, find_coming=find_coming
            )
        case "tick":
            from etl_dagster.integrations.dagster.sensor.in_tick import streamer_of

            return streamer_of(config.pipeline).keep(config, tick_s, may_stream=not is_preview)
        case "observe":
            return observe(resource)


def _is_standby(status: PipelineStatus) -> bool:
    return status.phase == "starting" and status.error is not None


def _events(
    context: SensorEvaluationContext,
    memory: SensorMemory,
    config: PipelineConfig,
    status: PipelineStatus,
    generation: int,
    keys: Mapping[str, AssetKey],
    copies: DueCopies,
    worst_lag: WorstLag | None,
    *,
    every_s: float,
    busy_every_s: float,
    idle_every_s: float | None,
    thresholds: CheckThresholds,
) -> list[AssetMaterialization | AssetCheckEvaluation]:
    history = memory.history.look(context.instance, list(keys.values()))
    runs_before = memory.reports.runs_followed()
    events = memory.reports.due(
        status,
        generation,
        keys,
        every_s=every_s,
        busy_every_s=busy_every_s,
        idle_every_s=idle_every_s,
        history=history,
        waiting=copies.waiting,
        worst_lag=worst_lag,
        thresholds=thresholds,
    )
    runs = memory.reports.runs_followed()
    again = {name for name in keys if runs.get(name) != runs_before.get(name)}
    events += memory.odd.due(status, keys, again=again, thresholds=thresholds)
    if context.last_sensor_start_time is None:
        return events
    ready = {
        name: key
        for name, key in keys.items()
        if name in status.tables and status.tables[name].state == "ready"
    }
    return [*events, *memory.bookmarks.due(config, ready, again=again & ready.keys())]


def _tick_without_stream(
    context: SensorEvaluationContext,
    memory: SensorMemory,
    config: PipelineConfig,
    supervision: Supervision,
    keys: Mapping[str, AssetKey],
    coming: Mapping[str, str],
    pipeline_checks: PipelineChecks | None,
) -> SensorResult:
    """The replicator starts, or waits for its next try."""
    failure = supervision.failure
    events: list[AssetCheckEvaluation] = []
    if failure is not None:
        events += memory.reports.dead(failure.reason, failure.solution, keys)
        events += memory.odd.dead(dead(failure.reason, failure.solution), keys)
        events += memory.bookmarks.dead(config, failure.reason, failure.solution, keys)
        if pipeline_checks is not None:
            stopped = dead(failure.reason, failure.solution)
            events += memory.pipeline.dead(pipeline_checks, stopped)
    note = words.with_coming(supervision.note or "the replicator is starting", coming)
    assert note is not None
    solution = failure.solution if failure is not None else None
    note = with_solution(note, solution)
    events += memory.reports.announce(supervision.coming, keys)
    if memory.log.is_due(failure.reason if failure is not None else note):
        context.log.info(note)
    memory.ticks += 1
    cursor = words.cursor_without_stream(note, words.Did.of(memory.ticks, events, 0), solution)
    memory.reports.expect(cursor)
    return SensorResult(asset_events=events, skip_reason=note, cursor=cursor)


def _store_failed_checks(
    context: SensorEvaluationContext,
    memory: SensorMemory,
    config: PipelineConfig | None,
    failure: EtlError,
    keys: Mapping[str, AssetKey],
    pipeline_checks: PipelineChecks | None,
) -> None:
    memory.settle(context.cursor)
    at_most = _EVENTS_OF_A_FAILED_TICK
    events: list[AssetCheckEvaluation]
    events = memory.reports.dead(failure.reason, failure.solution, keys, at_most=at_most)
    events += memory.odd.dead(dead(failure.reason, failure.solution), keys, at_most=at_most)
    if config is not None:
        events += memory.bookmarks.dead(
            config, failure.reason, failure.solution, keys, at_most=at_most
        )
    if pipeline_checks is not None:
        events += memory.pipeline.dead(pipeline_checks, dead(failure.reason, failure.solution))
    try:
        for event in events:
            context.instance.report_runless_asset_event(event)
    except Exception as error:
        # The failure of the tick is what counts; the evaluations are sent again.
        tables = names(list(keys)) or "no table"
        log_failure(_log, f"the checks of {tables} could not be stored", error)
        return
    memory.reports.expect(context.cursor)
    memory.settle(context.cursor)
