"""What a pipeline of many tables costs Dagster: loading, ticks, and the event log.

``python -m benchmarks.dagster_scale --tables 500`` prints JSON:

- ``load_s``: a process that imports the definitions, from start to end, the median of three; and
  ``load_dagster_s``, one that only imports dagster; ``import_share``, the processor's time that
  importing the integration adds, as a part of what `import dagster` takes in the same process;
- ``tick_s``: the median of ten ticks without changes, and ``tick_busy_s`` of ten during which fifty
  tables change; ``connections``, the most that one of these opens;
- ``report_bytes`` and ``check_bytes``: what an event takes in Dagster's database, with indexes; and
  how many MB fifty tables that never rest make in a day, as often as they are reported by default.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import yaml
from dagster import AssetKey, DagsterInstance, build_sensor_context

from benchmarks.harness import Harness
from benchmarks.tables import many_tables
from etl_dagster.config import load_config
from etl_dagster.demo.ports import HOST
from etl_dagster.demo.server import SUPERUSER, EmbeddedPostgres, find_servers
from etl_dagster.integrations.dagster import build_etl_definitions
from etl_dagster.integrations.dagster.checks.check_names import PIPELINE_CHECKS
from etl_dagster.integrations.dagster.checks.lag import judge
from etl_dagster.integrations.dagster.said import refresh_s
from etl_dagster.integrations.dagster.sensor.pipeline_reports import SAY_EVERY_S
from etl_dagster.integrations.dagster.sensor.settings import BUSY_REPORT_EVERY_S
from etl_dagster.integrations.dagster.sensor.supervisor import stop_all, supervisor_of
from etl_dagster.integrations.dagster.tables.metadata import Activity, stream_materialization
from etl_dagster.integrations.dagster.worst_lag import Lag

_BUSY = 50
_TICKS = 10
_EVENTS = 300
#: Of each table.
_CHECKS = 3
_DAY_S = 86_400.0
#: Prints how much longer the second import takes, as a part of the first.
_IMPORTS = """
from time import process_time as now
began = now()
import dagster
has_dagster = now()
from etl_dagster.dagster import build_etl_definitions
print((now() - has_dagster) / (has_dagster - began))
"""
_SETTINGS = {"wal_level": "logical", "max_replication_slots": "20", "max_connections": "200"}


def measure(harness: Harness, tables: int) -> dict[str, float]:
    with many_tables(harness, tables) as database:
        config = harness.config(database, "many")
        harness.run_worker({"kind": "catch_up", "config": config, "timeout_s": 900}, timeout_s=900)
        path = harness.folder / f"{database}.yaml"
        path.write_text(yaml.safe_dump(config))
        home = harness.folder / "dagster_home"
        home.mkdir()
        storage = {
            "scheme": "postgresql+psycopg2",
            "hostname": HOST,
            "port": harness.server.port,
            "username": SUPERUSER,
            "password": harness.server.password,
            "db_name": "postgres",
        }
        settings = {
            "storage": {"postgres": {"postgres_db": storage}},
            "telemetry": {"enabled": False},
        }
        (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
        os.environ["DAGSTER_HOME"] = str(home)
        load = (
            "from etl_dagster.integrations.dagster import build_etl_definitions as build; "
            f"build({str(path)!r}).get_repository_def()"
        )
        found = {
            "load_dagster_s": _median(3, lambda: _python("import dagster")),
            "load_s": _median(3, lambda: _python(load)),
            "import_share": statistics.median(float(_python(_IMPORTS)) for _ in range(5)),
        }
        try:
            with DagsterInstance.get() as instance:
                found |= _ticks(harness, database, path, instance)
                found |= _events(harness, path, instance)
        finally:
            stop_all()
    return {name: round(value, 3) for name, value in found.items()}


def _ticks(
    harness: Harness, database: str, path: Path, instance: DagsterInstance
) -> dict[str, float]:
    defs = build_etl_definitions(path)
    (sensor,) = defs.sensors or ()
    cursor: str | None = None

    def tick() -> Any:
        nonlocal cursor
        with build_sensor_context(
            instance=instance,
            cursor=cursor,
            resources=dict(defs.resources or {}),
            last_sensor_start_time=1.0,
        ) as context:
            result = sensor.evaluate_tick(context)  # type: ignore[union-attr]
        cursor = result.cursor
        return result

    config = load_config(path)
    while "streaming" not in str(tick().skip_message):
        time.sleep(1.0)
    # The first evaluation of every check, 25 events in a tick.
    for _ in range(len(defs.resolve_all_asset_specs()) * 3 // 25 + 5):
        tick()
    supervisor = supervisor_of(config.pipeline)
    assert supervisor.pid is not None
    found = {"tick_s": _median(_TICKS, tick)}
    durations, opened = [], []
    for _ in range(_TICKS):
        with harness.connect(database) as connection:
            for table in range(_BUSY):
                connection.execute(f"update t{table} set at = now() where id = 1")
        time.sleep(2.0)
        started = time.perf_counter()
        with mock.patch.object(psycopg, "connect", wraps=psycopg.connect) as connect:
            tick()
        durations.append(time.perf_counter() - started)
        opened.append(connect.call_count)
    return found | {
        "tick_busy_s": statistics.median(durations),
        "connections": float(max(opened)),
    }


def _events(harness: Harness, path: Path, instance: DagsterInstance) -> dict[str, float]:
    """Reports as the sensor sends them, of one table after the other."""
    config = load_config(path)
    supervision = supervisor_of(config.pipeline).keep(config, 60.0)
    status = supervision.status
    assert status is not None
    tables = list(status.tables.values())[:_BUSY]
    keys = [AssetKey([config.pipeline, *table.name.split(".")]) for table in tables]
    reports = [
        stream_materialization(key, status, table, Activity(n, n, 0, 0), Lag.of(status), 300.0)
        for n in range(_EVENTS // len(tables))
        for key, table in zip(keys, tables, strict=True)
    ]
    checks = [
        judge(status, table, now=status.at).evaluation(key)
        for _ in range(_EVENTS // len(tables))
        for key, table in zip(keys, tables, strict=True)
    ]
    report_bytes, report_ms = _stored(harness, instance, reports)
    check_bytes, check_ms = _stored(harness, instance, checks)
    reports_a_day = _BUSY * _DAY_S / BUSY_REPORT_EVERY_S
    checks_a_day = _CHECKS * _BUSY * _DAY_S / refresh_s(_BUSY)
    checks_a_day += len(PIPELINE_CHECKS) * _DAY_S / SAY_EVERY_S
    return {
        "report_bytes": report_bytes,
        "report_ms": report_ms,
        "check_bytes": check_bytes,
        "check_ms": check_ms,
        "reports_a_minute": reports_a_day / _DAY_S * 60,
        "checks_a_minute": checks_a_day / _DAY_S * 60,
        "busy_mb_a_day": (reports_a_day * report_bytes + checks_a_day * check_bytes) / 1e6,
    }


def _stored(
    harness: Harness, instance: DagsterInstance, events: Sequence[Any]
) -> tuple[float, float]:
    """Bytes and milliseconds for each."""
    before, started = _database_bytes(harness), time.perf_counter()
    for event in events:
        instance.report_runless_asset_event(event)
    seconds = time.perf_counter() - started
    size = _database_bytes(harness) - before
    return size / len(events), 1000 * seconds / len(events)


def _database_bytes(harness: Harness) -> int:
    return int(
        harness.ask(
            "postgres",
            "select sum(pg_total_relation_size(c.oid)) from pg_class c join pg_namespace n"
            " on n.oid = relnamespace where nspname = 'public' and relkind = 'r'",
        )[0]
    )


def _python(program: str) -> str:
    """What the program prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout


def _median(rounds: int, work: Callable[[], Any]) -> float:
    durations = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="etl_dagster_bench_") as folder:
        binaries = find_servers()[0]
        with EmbeddedPostgres(
            Path(folder) / "server", binaries, settings=_SETTINGS, durable=False
        ) as server:
            harness = Harness(server, binaries, Path(folder), 1, 1.0)
            json.dump(measure(harness, arguments.tables), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
