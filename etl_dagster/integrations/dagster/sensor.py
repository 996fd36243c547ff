"""The sensor: keeps the replicator alive, asks for copies, reports what the stream does."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetKey,
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunRequest,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    sensor,
)

from etl_dagster.config import PipelineConfig
from etl_dagster.integrations.dagster.bookmark_check import bookmark_reports_of
from etl_dagster.integrations.dagster.metadata import LAG_CHECK, REPORTED_BY
from etl_dagster.integrations.dagster.notices import recent_notices
from etl_dagster.integrations.dagster.reports import Reports
from etl_dagster.integrations.dagster.resources import EtlPipelineResource
from etl_dagster.integrations.dagster.supervisor import Supervision, supervisor_of
from etl_dagster.integrations.dagster.translator import PIPELINE_TAG, STATE_ID, TABLE_TAG
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.status import PipelineStatus, TableStatus
from etl_dagster.runtime.table_syncs import is_sync_due

#: The daemon looks every 5 s; with 5 here, a tick that came 4.99 s ago would make it wait for 10.
_INTERVAL_S = 4
LEASE_S = 30.0
REPORT_EVERY_S = 30.0
#: After a run that failed or was canceled, the next one waits; doubled for each in a row.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 15.0, 900.0
_RUNS_LOOKED_AT = 10
_ACTIVE = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]

_reports: dict[str, Reports] = {}
_reports_lock = threading.Lock()


def default_sensor_status() -> DefaultSensorStatus:
    """Off, so that no copy of the code starts to stream by itself; on in the demo."""
    if os.environ.get("ETL_DAGSTER_DEMO") == "1":
        return DefaultSensorStatus.RUNNING
    return DefaultSensorStatus.STOPPED


def build_etl_sensor(
    pipeline: str,
    resource_key: str,
    keys: Mapping[str, AssetKey],
    job: Any,
    *,
    default_status: DefaultSensorStatus | None = None,
    lease_s: float = LEASE_S,
    report_every_s: float = REPORT_EVERY_S,
) -> SensorDefinition:
    """The sensor ``PIPELINE_replication``.

    Args:
        keys: the asset of each table, by ``schema.table``.
        job: copies tables; None while there is no table.
        default_status: while nobody has switched it; see `default_sensor_status`.
        lease_s: the replicator stops this long after the last tick: when the sensor is turned
            off, or the daemon is down.
        report_every_s: a table that changes all the time is reported so often.
    """

    @sensor(
        name=f"{pipeline}_replication",
        job=job,
        minimum_interval_seconds=_INTERVAL_S,
        default_status=default_status or default_sensor_status(),
        required_resource_keys={resource_key},
        description=(
            f"Streams the changes of {pipeline} while it is on: keeps the replicator process "
            "alive, requests the copies that tables need, and reports rows and lag."
        ),
    )
    def replication(context: SensorEvaluationContext) -> SensorResult:
        resource = getattr(context.resources, resource_key)
        return tick(context, resource, keys, lease_s=lease_s, report_every_s=report_every_s)

    return replication


def tick(
    context: SensorEvaluationContext,
    resource: EtlPipelineResource,
    keys: Mapping[str, AssetKey],
    *,
    lease_s: float = LEASE_S,
    report_every_s: float = REPORT_EVERY_S,
) -> SensorResult:
    """One evaluation of the sensor; a second or two.

    Raises:
        EtlError: the replicator failed, or the configuration is wrong. The tick fails with it.
    """
    config = resource.load_config()
    # A preview from the UI has no start time. It must not start to stream, nor swallow events.
    is_preview = context.last_sensor_start_time is None
    supervisor = supervisor_of(config.pipeline)
    supervision = supervisor.keep(config, lease_s, may_spawn=not is_preview)
    status = supervision.status
    if status is None:
        return SensorResult(skip_reason=supervision.note or "the replicator is starting")
    requests = due_copies(context.instance, resource, config, status, keys)
    events = reports_of(config.pipeline, is_preview).due(
        status,
        supervision.generation,
        keys,
        every_s=report_every_s,
        was_reported=lambda key: _was_reported(context.instance, key),
    )
    checks: list[AssetCheckEvaluation] = []
    notices: list[str] = []
    if not is_preview:
        ready = {
            name: key
            for name, key in keys.items()
            if name in status.tables and status.tables[name].state == "ready"
        }
        checks = bookmark_reports_of(config.pipeline).due(config, ready)
        notices = recent_notices(config.pipeline, resource)
    return SensorResult(
        run_requests=requests,
        asset_events=[*events, *checks],
        cursor=_cursor(status),
        skip_reason=None if requests else _line(supervision, status, keys, notices),
    )


def reports_of(pipeline: str, is_preview: bool = False) -> Reports:
    """What this process has reported of the pipeline; a preview begins with nothing."""
    if is_preview:
        return Reports()
    with _reports_lock:
        return _reports.setdefault(pipeline, Reports())


def _was_reported(instance: DagsterInstance, key: AssetKey) -> bool:
    event = instance.get_latest_materialization_event(key)
    materialization = event.asset_materialization if event is not None else None
    return materialization is not None and REPORTED_BY in materialization.metadata


# -- copies --------------------------------------------------------------------------------------


def due_copies(
    instance: DagsterInstance,
    resource: EtlPipelineResource,
    config: PipelineConfig,
    status: PipelineStatus,
    keys: Mapping[str, AssetKey],
) -> list[RunRequest]:
    """A run for each table that needs a copy and has none, as many as may run at a time."""
    needy = [
        table
        for name, table in status.tables.items()
        if name in keys and table.state not in ("ready", "sync_done")
    ]
    if not needy:
        return []
    records = instance.get_run_records(RunsFilter(statuses=_ACTIVE), limit=1000)
    active = [record.dagster_run for record in records]
    busy = {key for run in active for key in run.asset_selection or ()}
    ours = set(keys.values())
    room = config.copy_tables.max_table_sync_workers - sum(
        1 for run in active if ours & (run.asset_selection or set())
    )
    requests: list[RunRequest] = []
    with resource.get_store() as store:
        for table in needy:
            if len(requests) >= room:
                break
            key = keys[table.name]
            if key not in busy and _is_due(store, table):
                requests += _request(instance, config, table, key)
    return requests


def _is_due(store: CoordinatingStore, table: TableStatus) -> bool:
    """What the store says counts: the status is up to a few seconds old."""
    state = store.get_table_replication_state(table.table_id)
    return is_sync_due(state) and not store.is_leased(f"table:{table.table_id}")


def _request(
    instance: DagsterInstance, config: PipelineConfig, table: TableStatus, key: AssetKey
) -> list[RunRequest]:
    """The run, unless the last ones failed a moment ago.

    The run key names the run before, so a need is asked for once, and again after each end.
    """
    tags = {PIPELINE_TAG: config.pipeline, TABLE_TAG: table.name, STATE_ID: table.state_id}
    records = instance.get_run_records(RunsFilter(tags=tags), limit=_RUNS_LOOKED_AT)
    failures = 0
    for record in records:
        if record.dagster_run.status == DagsterRunStatus.SUCCESS:
            break
        failures += 1
    if failures:
        pause_s = min(_FIRST_PAUSE_S * 2 ** (failures - 1), _LONGEST_PAUSE_S)
        ended = records[0].update_timestamp
        if ended.tzinfo is None:
            ended = ended.replace(tzinfo=UTC)
        if datetime.now(UTC) < ended + timedelta(seconds=pause_s):
            return []
    last = records[0].dagster_run.run_id if records else "the first"
    return [
        RunRequest(
            run_key=f"{table.state_id} after {last}",
            asset_selection=[key],
            # The copy's own; others may fail for reasons that are none of the copy's.
            asset_check_keys=[AssetCheckKey(key, LAG_CHECK)],
            tags=tags,
        )
    ]


# -- words ---------------------------------------------------------------------------------------


def _cursor(status: PipelineStatus) -> str:
    """For people: where the stream is. The truth is in the state store.

    The UI shows about 40 characters of it.
    """
    return json.dumps({"confirmed_lsn": status.confirmed_lsn})


def _line(
    supervision: Supervision,
    status: PipelineStatus,
    keys: Mapping[str, AssetKey],
    notices: Sequence[str] = (),
) -> str:
    """The tick in one line."""
    parts = [supervision.note] if supervision.note else []
    if status.error is not None:
        parts.append(f"{status.phase}: {status.error}")
    tables = status.tables.values()
    ready = sum(1 for table in tables if table.state == "ready")
    errored = [table.name for table in tables if table.state == "errored"]
    copying = [table.name for table in tables if table.state not in ("ready", "errored")]
    parts.append(
        f"{status.phase}, {ready} of {len(status.tables)} tables in step, "
        f"{status.rows_per_second:,.0f} rows/s, lag {status.lag_seconds:.1f} s "
        f"({status.lag_bytes:,} bytes), confirmed {status.confirmed_lsn}"
    )
    if copying:
        parts.append("being copied: " + _some(copying))
    if errored:
        parts.append("stopped: " + _some(errored))
    unknown = [name for name in status.tables if name not in keys]
    if unknown:
        parts.append(f"no asset yet (reload the code location): {_some(unknown)}")
    parts += notices
    return "; ".join(parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


__all__ = ["LEASE_S", "REPORT_EVERY_S", "build_etl_sensor", "due_copies", "tick"]
