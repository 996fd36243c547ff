"""Daemon and run launcher of Dagster in the test's own process, for a pipeline called shop."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    AssetMaterialization,
    DagsterInstance,
    Definitions,
    RunRequest,
    SensorDefinition,
    build_sensor_context,
    instance_for_test,
)
from sqlalchemy import Engine
from sqlalchemy.event import listens_for

from etl_dagster.config import PipelineConfig, load_config
from etl_dagster.destinations.duckdb import query
from etl_dagster.integrations.dagster import (
    EtlConfigFileResource,
    EtlResource,
    build_etl_definitions,
)
from etl_dagster.integrations.dagster.sensor.supervisor import stop_all
from etl_dagster.integrations.dagster.timing import DagsterTiming
from tests.support.leaks import LEAKS
from tests.support.waiting import PATIENCE_S

DEADLINE_S = PATIENCE_S
#: Nothing ticks while a run is under way in this process. A sensor's daemon would, every 5 s.
LEASE_S = 600.0
#: What Dagster makes of a SensorResult.
Tick = Any


def write_config(dsn: str, folder: Path, **more: Any) -> Path:
    """A section of None is left out."""
    values: dict[str, Any] = {
        "pipeline": "shop",
        "source": {"dsn": dsn, "publication": "etl_pub"},
        "destination": {"type": "duckdb", "path": "shop.duckdb"},
        "batch": {"max_fill_ms": 50},
    }
    values = {name: section for name, section in (values | more).items() if section is not None}
    path = folder / "etl.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def timed(config_file: Path, waits: Mapping[str, float]) -> EtlConfigFileResource:
    """The file's pipeline, with other waits (`DagsterTiming`), which may change meanwhile."""

    class Timed(EtlConfigFileResource):
        def get_timing(self) -> DagsterTiming:
            return DagsterTiming(**waits)

    return Timed(path=str(config_file))


class Dagster:
    """What daemon and run launcher do, in this process."""

    def __init__(
        self, instance: DagsterInstance, defs: Definitions, pipeline: str = "shop"
    ) -> None:
        self.pipeline = pipeline
        self.instance = instance
        self.defs = defs
        self.cursor: str | None = None
        self.requested: list[RunRequest] = []
        self.materializations: list[AssetMaterialization] = []
        self.checks: list[AssetCheckEvaluation] = []

    def tick(self, *, preview: bool = False) -> Tick:
        name = f"{self.pipeline}_replication"
        (sensor,) = [sensor for sensor in self.defs.sensors or [] if sensor.name == name]
        assert isinstance(sensor, SensorDefinition)
        with build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources=dict(self.defs.resources or {}),
            last_sensor_start_time=None if preview else 1.0,
        ) as context:
            result = sensor.evaluate_tick(context)
        self.cursor = result.cursor
        self.requested += result.run_requests or []
        for event in result.asset_events:
            assert isinstance(event, AssetMaterialization | AssetCheckEvaluation)
            if isinstance(event, AssetMaterialization):
                self.materializations.append(event)
            else:
                self.checks.append(event)
            self.instance.report_runless_asset_event(event)
        return result

    def tick_until(self, done: Callable[[Tick], Any]) -> Tick:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            result = self.tick()
            if done(result):
                return result
            assert time.monotonic() < deadline, f"last tick: {result}"
            # A child reports twice a second; the sensor ticks every 5 s.
            time.sleep(0.2)

    def run(self, request: RunRequest, raise_on_error: bool = True) -> Any:
        job = self.defs.resolve_job_def(f"{self.pipeline}_copy")
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=list(request.asset_selection or []),
            tags=dict(request.tags) | {"dagster/sensor_name": f"{self.pipeline}_replication"},
            raise_on_error=raise_on_error,
        )

    def copy_all(self, count: int) -> None:
        done = 0
        while done < count:
            before = len(self.requested)
            self.tick_until(lambda result: result.run_requests)
            for request in self.requested[before:]:
                assert self.run(request).success
                done += 1

    def materialization_of(self, table: str) -> AssetMaterialization:
        event = self.instance.get_latest_materialization_event(key_of(table, self.pipeline))
        assert event is not None
        assert event.asset_materialization is not None
        return event.asset_materialization


def key_of(table: str, pipeline: str = "shop") -> AssetKey:
    return AssetKey([pipeline, "public", table])


@listens_for(Engine, "connect")
def _wait_for_no_disk(connection: Any, _: Any) -> None:
    """Dagster's storage of a test: a commit takes 30 ms otherwise, and a run has a hundred."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@contextmanager
def searched_instance() -> Iterator[DagsterInstance]:
    """An instance whose runs and events are searched for secrets at the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        with instance_for_test(temp_dir=home) as instance:
            yield instance
        LEAKS.look_at_files(Path(home))


@contextmanager
def dagster(pipeline: Path | EtlResource | Definitions, **options: Any) -> Iterator[Dagster]:
    with searched_instance() as instance:
        try:
            options = {"lease_s": LEASE_S} | options
            is_built = isinstance(pipeline, Definitions)
            defs = pipeline if is_built else build_etl_definitions(pipeline, **options)
            yield Dagster(instance, defs)
        finally:
            stop_all()


def rows(config_file: Path, sql: str) -> list[dict[str, Any]]:
    config: PipelineConfig = load_config(config_file)
    path = config.destination.path  # type: ignore[union-attr]
    return query(path, sql).to_pylist()


def until(done: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)
