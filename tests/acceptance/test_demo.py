"""The demo, as a user sees it who has just cloned the repository."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import psutil
import psycopg
import pytest

from etl_dagster.config import PipelineConfig, load_config
from etl_dagster.demo.flights import TABLES
from etl_dagster.demo.ports import free_port
from etl_dagster.destinations.duckdb import query

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_POLL_S = 2.0


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

    def ask(self, question: str) -> Any:
        """The answer of Dagster's GraphQL API."""
        body = json.dumps({"query": question}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Ask again until it holds; the test's own timeout is the end of patience."""
        pause = threading.Event()
        while not holds():
            assert self.process.poll() is None, "\n".join(self.output)
            pause.wait(_POLL_S)

    def stop(self, how: signal.Signals) -> list[psutil.Process]:
        """Stop it as a person or a service manager does; returns what it left running."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        assert len(family) > 8
        self.process.send_signal(how)
        assert self.process.wait() == 0
        return [process for process in family if not has_ended(process)]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "a path with spaces"
    folder.mkdir()
    return folder


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., RunningDemo]]:
    started: list[RunningDemo] = []

    def start_demo(*, rate: float) -> RunningDemo:
        started.append(RunningDemo(home, rate))
        return started[-1]

    yield start_demo
    for demo in started:
        demo.kill()


def test_the_demo_shows_all_without_a_click_stops_without_a_trace_and_continues(
    start: Callable[..., RunningDemo],
) -> None:
    demo = start(rate=100)
    demo.wait_for_line("Stop ")
    assert f"  loaded {336_776:,} rows into flights" in demo.output
    assert len([line for line in demo.output if re.match(r"[A-Z][a-z]+ {2,}", line)]) == 5
    second = start(rate=0)
    assert second.process.wait() == 2
    with pytest.raises(pytest.fail.Exception, match="already running"):
        second.wait_for_line("Stop ")

    demo.wait_until(lambda: materialized_by_runs(demo) >= ALL_BY_RUNS)
    demo.wait_until(lambda: reports_by_sensor(demo, "flights") > 0)
    assert schedules_that_run(demo) == {
        "copy_airports_every_night",
        "compare_with_source_every_hour",
        "check_tables_every_hour",
    }
    assert_nothing_left(demo, demo.stop(signal.SIGINT))

    quiet = start(rate=0)
    quiet.wait_for_line("Stop ")
    assert not [line for line in quiet.output if "loaded" in line]
    config = load_config(quiet.folder / "etl.yaml")
    quiet.wait_until(lambda: contents_of_destination(config) == contents_of_source(config))
    assert rows_written_by_workload(config) > 0
    assert_nothing_left(quiet, quiet.stop(signal.SIGTERM))


def has_ended(process: psutil.Process) -> bool:
    """An orphan may stay a zombie for as long as init doesn't look."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_nothing_left(demo: RunningDemo, processes: list[psutil.Process]) -> None:
    assert processes == []
    assert not (demo.folder / "demo.lock").exists()
    assert not (demo.folder / "postgres" / "data" / "postmaster.pid").exists()
    sockets = [p for p in demo.folder.rglob("*") if p.is_socket()]
    assert sockets == []


def schedules_that_run(demo: RunningDemo) -> set[str]:
    answer = demo.ask(
        "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError {"
        " ... on RepositoryLocation { repositories { schedules {"
        " name scheduleState { status } } } } } } } } }"
    )
    return {
        schedule["name"]
        for entry in answer["workspaceOrError"]["locationEntries"]
        for repository in entry["locationOrLoadError"]["repositories"]
        for schedule in repository["schedules"]
        if schedule["scheduleState"]["status"] == "RUNNING"
    }


#: Copies of tables, what is made from them, and the streams of a `meltano run`.
ALL_BY_RUNS = {*TABLES, "delays_by_airline", "fuel_prices", "exchange_rates", "positions"}


def materialized_by_runs(demo: RunningDemo) -> set[str]:
    answer = demo.ask("{ assetNodes { assetKey { path } assetMaterializations { runId } } }")
    return {
        node["assetKey"]["path"][-1]
        for node in answer["assetNodes"]
        if any(event["runId"] for event in node["assetMaterializations"])
    }


def reports_by_sensor(demo: RunningDemo, table: str) -> int:
    """Materializations of a table that came without a run."""
    answer = demo.ask("{ assetNodes { assetKey { path } assetMaterializations { runId } } }")
    return sum(
        not event["runId"]
        for node in answer["assetNodes"]
        if node["assetKey"]["path"][-1] == table
        for event in node["assetMaterializations"]
    )


#: One row for each table, the same on both sides: how many rows, and a sum over the keys.
_CONTENTS = """
SELECT 'airlines', count(*), sum(length(name)) FROM public.airlines
UNION ALL SELECT 'airports', count(*), sum(alt) FROM public.airports
UNION ALL SELECT 'planes', count(*), sum(seats) FROM public.planes
UNION ALL SELECT 'weather', count(*), sum(wind_dir) FROM public.weather
UNION ALL SELECT 'flights', count(*), sum(flight_id) FROM public.flights
UNION ALL SELECT 'delays', count(dep_delay), sum(dep_delay) FROM public.flights
UNION ALL SELECT 'cancelled', count(*), sum(flight_id) FROM public.flights
          WHERE status = 'cancelled'
ORDER BY 1
"""

Contents = list[tuple[str, int, int]]


def contents_of_source(config: PipelineConfig) -> Contents:
    with psycopg.connect(config.source.conninfo()) as connection:
        return [(a, int(b), int(c)) for a, b, c in connection.execute(_CONTENTS)]


def contents_of_destination(config: PipelineConfig) -> Contents:
    assert config.destination.type == "duckdb"
    rows = query(config.destination.path, _CONTENTS).to_pylist()
    return [(a, int(b), int(c)) for a, b, c in (row.values() for row in rows)]


def rows_written_by_workload(config: PipelineConfig) -> int:
    with psycopg.connect(config.source.conninfo()) as connection:
        found = connection.execute(
            "SELECT count(*) FROM flights WHERE updated_at > (SELECT min(updated_at) FROM flights)"
        ).fetchone()
    assert found is not None
    return int(found[0])
