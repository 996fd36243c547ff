"""A demo that runs, and what a browser and a terminal show of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from signal import Signals
from typing import Any

import duckdb
import psutil
import psycopg
import pytest
import yaml

from etl_dagster.config import PipelineConfig, load_config
from etl_dagster.demo.ports import free_port
from etl_dagster.demo.server import SUPERUSER
from etl_dagster.destinations.duckdb import query
from tests.support.waiting import PATIENCE_S

_POLL_S = 1.0
_REPOSITORY = {
    "repositoryLocationName": "etl_dagster.demo.definitions",
    "repositoryName": "__repository__",
}


class RunningDemo:
    """`etl-dagster demo` in a terminal."""

    def __init__(self, home: Path, rate: float) -> None:
        self.folder = home / ".demo"
        self.output: list[str] = []
        self._lines: Queue[str | None] = Queue()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "etl_dagster.cli", "demo"]
        self.process = subprocess.Popen(
            [*command, "--port", str(port), "--rate", str(rate)],
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for_line(self, start: str) -> None:
        while (line := self._lines.get()) is not None:
            self.output.append(line)
            if line.startswith(start):
                return
        pytest.fail("the demo ended:\n" + "\n".join(self.output))

    @property
    def log(self) -> str:
        """What Dagster and everything that it started has logged."""
        return (self.folder / "dagster.log").read_text(errors="replace")

    def until(self, what: str, look: Callable[[], Any]) -> Any:
        """Look again until there is something; Dagster sends no notification."""
        deadline = time.monotonic() + 2 * PATIENCE_S
        while not (found := look()):
            assert self.process.poll() is None, "\n".join(self.output)
            assert time.monotonic() < deadline, f"waiting for {what}:\n{self.log[-5000:]}"
            time.sleep(_POLL_S)
        return found

    # -- its two sides ---------------------------------------------------------------------------

    @property
    def config(self) -> PipelineConfig:
        return load_config(self.folder / "etl.yaml")

    def at_source(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement at the source, as the superuser."""
        with psycopg.connect(self._superuser(), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def at_destination(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a query at the destination."""
        config = self.config
        assert config.destination.type == "duckdb"
        rows = query(config.destination.path, statement).to_pylist()
        return [tuple(row.values()) for row in rows]

    @contextlib.contextmanager
    def locked(self, table: str, *, once: Callable[[], object]) -> Iterator[None]:
        """For this block, another session has the table to itself, `once` something is true.

        Until then two sessions take turns to lock it. The one that waits is in line after those
        that waited before, and before those that come later: each of a copy's connections reads
        one chunk between two looks, however fast it is.
        """
        place = self._superuser()
        statement = f"LOCK TABLE public.{table} IN ACCESS EXCLUSIVE MODE"
        waiting = "SELECT FROM pg_locks WHERE pid = %s AND NOT granted"
        with (
            ThreadPoolExecutor(1) as elsewhere,
            psycopg.connect(place) as holder,
            psycopg.connect(place) as next_one,
            psycopg.connect(place, autocommit=True) as looker,
        ):
            holder.execute(statement)
            try:
                deadline = time.monotonic() + 2 * PATIENCE_S
                while not once():
                    assert time.monotonic() < deadline, f"waiting with a lock on {table}"
                    locked = elsewhere.submit(next_one.execute, statement)
                    while not looker.execute(waiting, [next_one.info.backend_pid]).fetchall():
                        time.sleep(0.01)
                    holder.rollback()
                    locked.result()
                    holder, next_one = next_one, holder
                yield
            finally:
                holder.rollback()

    def spoil(self, statement: str) -> None:
        """Change the destination behind the pipeline's back, as soon as nothing writes to it."""
        config = self.config.destination
        assert config.type == "duckdb"

        def is_done() -> bool:
            with contextlib.suppress(duckdb.IOException), duckdb.connect(config.path) as file:
                file.execute(statement)
                return True
            return False

        self.until("a moment without a write", is_done)

    def _superuser(self) -> str:
        password = (self.folder / "postgres" / "password").read_text().strip()
        return self.config.source.conninfo(user=SUPERUSER, password=password)

    def change_a_row(self, seats: int) -> Callable[[], bool]:
        """Change a row at the source; whether the change has arrived."""
        ((tailnum,),) = self.at_source("SELECT min(tailnum) FROM planes")
        self.at_source(f"UPDATE planes SET seats = {seats} WHERE tailnum = '{tailnum}'")
        asked = f"SELECT seats FROM public.planes WHERE tailnum = '{tailnum}'"
        return lambda: self.at_destination(asked) == [(seats,)]

    def write_config(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the pipeline's file, which is read again by each tick."""
        path = self.folder / "etl.yaml"
        values = yaml.safe_load(path.read_text())
        change(values)
        fresh = path.with_suffix(".fresh")
        fresh.write_text(yaml.safe_dump(values))
        fresh.replace(path)

    # -- what Dagster shows ----------------------------------------------------------------------

    def ask(self, question: str, **variables: Any) -> Any:
        """The answer of Dagster's GraphQL API."""
        body = json.dumps({"query": question, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def is_loaded(self) -> bool:
        """Whether the code location is loaded; fails with Dagster's message if it can't be."""
        data = self.ask(
            "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus"
            " locationOrLoadError { __typename ... on PythonError { message } } } } } }"
        )
        (entry,) = data["workspaceOrError"]["locationEntries"]
        found = entry["locationOrLoadError"] or {}
        assert found.get("__typename") != "PythonError", found["message"]
        return entry["loadStatus"] == "LOADED" and bool(found)

    def materializations(self, asset: str) -> list[Mapping[str, Any]]:
        """The newest first: label to value, and whether it came of a run."""
        data = self.ask(
            "query ($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {"
            " assetMaterializations(limit: 50) { runId metadataEntries { label"
            " ... on TextMetadataEntry { text } ... on IntMetadataEntry { intRepr }"
            " ... on FloatMetadataEntry { floatValue } } } } } }",
            key={"path": asset.split("/")},
        )
        return [
            {
                entry["label"]: entry.get("text", entry.get("intRepr", entry.get("floatValue")))
                for entry in event["metadataEntries"]
            }
            | {"run": event["runId"]}
            for event in data["assetOrError"].get("assetMaterializations", [])
        ]

    def runs(self, job: str) -> list[Mapping[str, Any]]:
        """The newest first."""
        data = self.ask(
            "query ($job: String!) { runsOrError(filter: {pipelineName: $job}) { ... on Runs {"
            " results { runId status tags { key value } assetSelection { path } } } } }",
            job=job,
        )
        return [
            run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}}
            for run in data["runsOrError"]["results"]
        ]

    def ticks(self, sensor: str) -> list[Mapping[str, Any]]:
        """The newest first."""
        data = self.ask(
            "query ($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) {"
            " ... on Sensor { sensorState { ticks(limit: 20) { tickId status skipReason"
            " error { message cause { message } } } } } } }",
            sensor=_REPOSITORY | {"sensorName": sensor},
        )
        ticks: list[Mapping[str, Any]] = data["sensorOrError"]["sensorState"]["ticks"]
        return ticks

    def switch(self, sensor: str, *, on: bool) -> None:
        selector = _REPOSITORY | {"sensorName": sensor}
        if on:
            self.ask(
                "mutation ($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor)"
                " { __typename } }",
                sensor=selector,
            )
            return
        # A tick that ends in the same moment may store the state with which it began.
        looks = 0

        def stays_off() -> bool:
            nonlocal looks
            looks = looks + 1 if self._stop(selector) else 0
            return looks == 4

        self.until("a sensor that stays off", stays_off)

    def _stop(self, selector: Mapping[str, str]) -> bool:
        """Stop a sensor that is on; whether it was off."""
        data = self.ask(
            "query ($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor)"
            " { ... on Sensor { sensorState { id status } } } }",
            sensor=selector,
        )
        state = data["sensorOrError"]["sensorState"]
        if state["status"] == "STOPPED":
            return True
        self.ask(
            "mutation ($id: String!) { stopSensor(id: $id) { __typename } }",
            id=state["id"],
        )
        return False

    # -- its processes ---------------------------------------------------------------------------

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def replicators(self) -> list[psutil.Process]:
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if not has_ended(process) and "etl_dagster.replicator" in process.cmdline():
                    found.append(process)
        return found

    def stop(self, how: Signals) -> list[psutil.Process]:
        """Stop it as a person or a service manager does; returns what it left running."""
        family = self.family()
        assert len(family) > 8
        self.process.send_signal(how)
        assert self.process.wait() == 0
        return [process for process in family if not has_ended(process)]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


def has_ended(process: psutil.Process) -> bool:
    """An orphan may stay a zombie for as long as init doesn't look; another may have its number."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
