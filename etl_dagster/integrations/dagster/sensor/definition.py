"""The sensor of a pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dagster import (
    AssetKey,
    DefaultSensorStatus,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    sensor,
)

from etl_dagster.integrations.dagster.checks.pipeline_asset import PipelineChecks
from etl_dagster.integrations.dagster.event_forms import as_observations, without_checks
from etl_dagster.integrations.dagster.sensor.settings import (
    BUSY_REPORT_EVERY_S,
    LEASE_S,
    NEW_TABLES,
    REPORT_EVERY_S,
    STALE_AFTER_S,
    TICK_S,
    SensorMode,
)
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds

#: The daemon looks every 5 s; with 5 here, a tick that came 4.99 s ago would make it wait for 10.
_INTERVAL_S = 4


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
    mode: SensorMode = "supervise",
    tick_s: float = TICK_S,
    lease_s: float = LEASE_S,
    report_every_s: float = REPORT_EVERY_S,
    busy_report_every_s: float = BUSY_REPORT_EVERY_S,
    stale_after_s: float | None = STALE_AFTER_S,
    has_checks: bool = True,
    pipeline_checks: PipelineChecks | None = None,
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
    reports_observations: bool = False,
    new_tables: str = NEW_TABLES,
) -> SensorDefinition:
    """The sensor ``PIPELINE_replication``.

    Args:
        keys: the asset of each table, by ``schema.table``.
        job: copies tables; None while there is no table.
        default_status: until a user has switched it; see `default_sensor_status`.
        mode: who streams.
        tick_s: how long a tick streams in the mode ``tick``.
        lease_s: the replicator stops this long after the last tick: when the sensor is turned
            off, or the daemon is down.
        report_every_s: a table that changes is reported at most this often.
        busy_report_every_s: what the time between two reports grows to while a table changes all
            the time.
        stale_after_s: a table that doesn't change is reported some time before; None for never.
        has_checks: whether the tables' checks are defined; without, none is requested or evaluated.
        pipeline_checks: those of the pipeline as a whole, where they are defined.
        thresholds: of the tables' checks.
        reports_observations: whether changes are reported as observations.
        new_tables: what a person does to give a new table of the publication its asset.
    """

    @sensor(
        name=f"{pipeline}_replication",
        job=job,
        minimum_interval_seconds=_INTERVAL_S,
        default_status=default_status or default_sensor_status(),
        required_resource_keys={resource_key},
        description=f"{_STREAMS[mode].format(pipeline)}, and reports rows and lag.",
    )
    def replication(context: SensorEvaluationContext) -> SensorResult:
        from etl_dagster.integrations.dagster.sensor.tick import tick

        resource = getattr(context.resources, resource_key)
        result = tick(
            context,
            resource,
            pipeline,
            keys,
            mode=mode,
            tick_s=tick_s,
            lease_s=lease_s,
            report_every_s=report_every_s,
            busy_report_every_s=busy_report_every_s,
            idle_every_s=None if stale_after_s is None else stale_after_s * 3 / 4,
            pipeline_checks=pipeline_checks,
            thresholds=thresholds,
            new_tables=new_tables,
        )
        if not has_checks:
            whole = None if pipeline_checks is None else pipeline_checks.key
            result = without_checks(result, but_of=whole)
        return as_observations(result) if reports_observations else result

    return replication


_STREAMS: Mapping[SensorMode, str] = {
    "supervise": "Streams the changes of {} while it is on: keeps the replicator process alive, "
    "requests the copies that tables need",
    "tick": "Streams the changes of {} in its ticks while it is on, requests the copies that "
    "tables need",
    "observe": "Shows the service that streams the changes of {} and copies its tables",
}
