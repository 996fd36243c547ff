"""A whole `dagster dev` on a real source: what a person who only looks at the UI is promised."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from etl_dagster.demo.ports import free_port
from etl_dagster.destinations.duckdb import query
from tests.support.database import Database
from tests.support.leaks import make_secret
from tests.support.waiting import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WRONG = make_secret("not-the-password")
SENSOR = {
    "repositoryLocationName": "definitions.py",
    "repositoryName": "__repository__",
    "sensorName": "shop_replication",
}


class DagsterDev:
    """A `dagster dev` of the test's own, and what a browser asks it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        home = folder / "home"
        home.mkdir()
        (home / "dagster.yaml").write_text(
            yaml.safe_dump(
                {
                    "telemetry": {"enabled": False},
                    "nux": {"enabled": False},
                    "sensors": {"use_threads": True},
                }
            )
        )
        self._log = (folder / "dagster.log").open("wb")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dagster", "dev", "-f", "definitions.py"),
                *("-h", "127.0.0.1", "-p", str(self.port)),
            ],
            cwd=folder,
            env=os.environ | {"DAGSTER_HOME": str(home), "PYTHONUNBUFFERED": "1"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._seen: dict[int, psutil.Process] = {}

    @property
    def log(self) -> str:
        return (self.folder / "dagster.log").read_text(errors="replace")

    def ask(self, question: str, **variables: Any) -> Any:
        body = json.dumps({"query": question, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            data=body,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def until(self, what: str, done: Callable[[], Any]) -> Any:
        """Ask again until there is an answer; Dagster has no way to be told."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(urllib.error.URLError, OSError):
                if result := done():
                    return result
            self.remember_processes()
            assert self.process.poll() is None, self.log[-5000:]
            assert time.monotonic() < deadline, f"waiting for {what}\n{self.log[-5000:]}"
            time.sleep(0.3)

    # -- what it shows ---------------------------------------------------------------------------

    def is_loaded(self) -> bool:
        data = self.ask(
            "{workspaceOrError {... on Workspace {locationEntries {loadStatus"
            " locationOrLoadError {__typename ... on PythonError {message}}}}}}"
        )
        entries = data["workspaceOrError"]["locationEntries"]
        for entry in entries:
            error = entry["locationOrLoadError"]
            assert error is None or error["__typename"] != "PythonError", error
        return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)

    def runs(self) -> list[dict[str, Any]]:
        data = self.ask("{runsOrError {... on Runs {results {status jobName tags {key value}}}}}")
        return [
            run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}}
            for run in data["runsOrError"]["results"]
        ]

    def materializations(self, table: str) -> list[dict[str, Any]]:
        """The newest first: label to value."""
        data = self.ask(
            "query ($key: AssetKeyInput!) {assetOrError(assetKey: $key) {... on Asset {"
            " assetMaterializations(limit: 50) {runId metadataEntries {label"
            " ... on TextMetadataEntry {text} ... on IntMetadataEntry {intRepr}"
            " ... on FloatMetadataEntry {floatValue}}}}}}",
            key={"path": ["shop", "public", table]},
        )
        return [
            {
                entry["label"]: entry.get("text", entry.get("intRepr", entry.get("floatValue")))
                for entry in event["metadataEntries"]
            }
            | {"run": event["runId"]}
            for event in data["assetOrError"].get("assetMaterializations", [])
        ]

    def ticks(self) -> list[dict[str, Any]]:
        data = self.ask(
            "query ($sensor: SensorSelector!) {sensorOrError(sensorSelector: $sensor) {"
            "... on Sensor {sensorState {ticks(limit: 20) {status skipReason cursor"
            " error {message cause {message}}}}}}}",
            sensor=SENSOR,
        )
        ticks: list[dict[str, Any]] = data["sensorOrError"]["sensorState"]["ticks"]
        return ticks

    def switch(self, on: bool) -> None:
        if on:
            self.ask(
                "mutation ($sensor: SensorSelector!) {startSensor(sensorSelector: $sensor)"
                " {__typename}}",
                sensor=SENSOR,
            )
            return
        data = self.ask(
            "query ($sensor: SensorSelector!) {sensorOrError(sensorSelector: $sensor)"
            " {... on Sensor {sensorState {id}}}}",
            sensor=SENSOR,
        )
        self.ask(
            "mutation ($id: String!) {stopSensor(id: $id) {__typename}}",
            id=data["sensorOrError"]["sensorState"]["id"],
        )

    # -- its processes ---------------------------------------------------------------------------

    def remember_processes(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self._seen.setdefault(process.pid, process)

    def replicators(self) -> list[psutil.Process]:
        self.remember_processes()
        found = []
        for process in self._seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                is_alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
                if is_alive and "etl_dagster.replicator" in process.cmdline():
                    found.append(process)
        return found

    def left_over(self) -> list[psutil.Process]:
        return [process for process in self._seen.values() if process.is_running()]

    def terminate(self) -> None:
        """Have it end as a service manager does."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"dagster dev ran on after SIGTERM:\n{self.log[-5000:]}")

    def end(self) -> None:
        self.remember_processes()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        _, alive = psutil.wait_procs(self.left_over(), timeout=30)
        for process in alive:
            process.kill()
        self._log.close()


@pytest.fixture
def shop(newest_database: Database) -> Database:
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric(12,2) NOT NULL)",
        "CREATE TABLE customers (id int PRIMARY KEY, name text)",
        "INSERT INTO orders SELECT i, i * 1.5 FROM generate_series(1, 5000) i",
        "INSERT INTO customers VALUES (1, 'Ada'), (2, 'Bo')",
        "CREATE PUBLICATION etl_pub FOR TABLE orders, customers",
    )
    return newest_database


def write_config(shop: Database, folder: Path, **source: Any) -> None:
    fresh = folder / "etl.yaml.new"
    fresh.write_text(
        yaml.safe_dump(
            {
                "pipeline": "shop",
                "source": {"dsn": shop.dsn, "publication": "etl_pub"} | source,
                "destination": {"type": "duckdb", "path": "shop.duckdb"},
                "batch": {"max_fill_ms": 100},
            }
        )
    )
    fresh.replace(folder / "etl.yaml")


@pytest.fixture
def ui(shop: Database, tmp_path: Path) -> Iterator[DagsterDev]:
    write_config(shop, tmp_path)
    (tmp_path / "definitions.py").write_text(
        "from dagster import DefaultSensorStatus\n"
        "from etl_dagster.integrations.dagster import build_etl_definitions\n"
        "defs = build_etl_definitions(\n"
        "    'etl.yaml', sensor_status=DefaultSensorStatus.RUNNING, lease_s=20,\n"
        "    report_every_s=2,\n"
        ")\n"
    )
    dev = DagsterDev(tmp_path)
    try:
        yield dev
    finally:
        dev.end()


def test_dagster_dev_keeps_a_pipeline_going_without_a_click(
    ui: DagsterDev, shop: Database, tmp_path: Path
) -> None:
    def has_arrived(order: int) -> bool:
        if not (tmp_path / "shop.duckdb").exists():
            return False
        found = query(tmp_path / "shop.duckdb", f"select 1 from public.orders where id = {order}")
        return bool(found.num_rows)

    ui.until("the code location", ui.is_loaded)
    runs = ui.until(
        "the copies",
        lambda: [run for run in ui.runs() if run["status"] == "SUCCESS"][1:] and ui.runs(),
    )
    assert {run["jobName"] for run in runs} == {"shop_copy"}
    assert {run["tags"]["meltano/state_id"] for run in runs} == {
        "dev:shop-to-duckdb:public.orders",
        "dev:shop-to-duckdb:public.customers",
    }
    (copied,) = [event for event in ui.materializations("orders") if event["run"]]
    assert copied["table_copy_rows"] == copied["dagster/row_count"] == "5000"
    assert copied["meltano/state_id"] == "dev:shop-to-duckdb:public.orders"

    shop.execute("INSERT INTO orders SELECT i, 1 FROM generate_series(10001, 10020) i")
    reported = ui.until(
        "the report of a change",
        lambda: [e for e in ui.materializations("orders") if e.get("rows_inserted") == "20"],
    )[0]
    assert not reported["run"]
    assert {"lag_seconds", "lag_bytes", "confirmed_lsn", "confirmed_lsn_offset"} < set(reported)

    # The replicator is killed: the next tick replaces it.
    (first,) = ui.until("a replicator", ui.replicators)
    first.kill()
    shop.execute("INSERT INTO orders VALUES (20000, 1)")
    ui.until("a change after a kill", lambda: has_arrived(20000))
    (second,) = ui.until("a second replicator", ui.replicators)
    assert second.pid != first.pid

    # A wrong password: a tick fails and says what to do; once it is corrected, all continues.
    write_config(shop, tmp_path, password=WRONG)
    failed = ui.until(
        "a failed tick", lambda: [tick for tick in ui.ticks() if tick["status"] == "FAILURE"]
    )[0]
    cause = failed["error"]["cause"]["message"]
    assert "password authentication failed" in cause
    assert "What to do: Check " in cause
    assert WRONG not in ui.log
    shop.execute("INSERT INTO orders VALUES (30000, 1)")
    write_config(shop, tmp_path)
    ui.until("a change after a wrong password", lambda: has_arrived(30000))

    # The sensor is turned off: the lease is over soon.
    ui.switch(on=False)
    ui.until("the end of the lease", lambda: not ui.replicators())
    shop.execute("INSERT INTO orders VALUES (40000, 1)")
    ui.switch(on=True)
    ui.until("a change after a pause", lambda: has_arrived(40000))

    ui.terminate()
    _, alive = psutil.wait_procs(ui.left_over(), timeout=PATIENCE_S)
    assert not alive, [process.cmdline() for process in alive]
