"""The demo: flights in Postgres, a workload that changes them, Dagster that streams them."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click

from etl_dagster.demo import databases
from etl_dagster.demo.databases import Databases, write_private
from etl_dagster.demo.flights import PUBLICATION, data_folder
from etl_dagster.demo.meltano.project import ENVIRONMENT, STATE_URI_VARIABLE, write_project
from etl_dagster.demo.ports import HOST, is_port_free
from etl_dagster.demo.processes import Child
from etl_dagster.demo.server import EmbeddedPostgres, PortInUse
from etl_dagster.errors import EtlError

FIRST_UI_PORT = 3000
PIPELINE_NAME = "flights"
_DAGSTER_PASSWORD = "ETL_DAGSTER_DEMO_STORAGE_PASSWORD"

_UI_DEADLINE_S = 180.0
_DAGSTER_STOP_S = 30.0
_WORKLOAD_STOP_S = 10.0

_LOAD_ERRORS = """
{ workspaceOrError { ... on Workspace { locationEntries {
    loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }
"""


class DemoAlreadyRuns(EtlError):
    """Another demo holds the folder."""

    solution = "Stop it with Ctrl-C in its terminal, or give this one another --folder."

    def __init__(self, folder: Path) -> None:
        super().__init__(f"a demo is already running in {folder}")


class DemoEnded(EtlError):
    """A program that the demo needs ended by itself."""

    solution = "Read the log; the next start continues where this one ended."

    def __init__(self, what: str, child: Child) -> None:
        super().__init__(
            f"{what} ended with exit code {child.exit_code}. The end of {child.log}:\n\n"
            f"{child.log_end()}"
        )


def run_demo(folder: str | Path = ".demo", *, rate: float = 50.0, port: int | None = None) -> None:
    """Run everything until Ctrl-C or SIGTERM, then stop everything; the data stays in `folder`.

    Must be called from the main thread: it handles the signals while it runs.

    Args:
        folder: made if missing; a second run continues with what is there.
        rate: row changes a second that the workload makes; 0 for none.
        port: of Dagster's UI; without one 3000, or the next that is free.

    Raises:
        EtlError: something couldn't start, or ended by itself. All else is stopped by then.
    """
    folder = Path(folder).absolute()
    if port is not None and not is_port_free(port):
        raise PortInUse(port)
    data_folder()  # reports missing data before anything is created
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as running:
        running.enter_context(_only_one(folder))
        stop = running.enter_context(_stopped_by_signals())
        running.callback(_say, "Stopped.")
        _run(folder, rate, port, stop, running)


def _run(
    folder: Path,
    rate: float,
    port: int | None,
    stop: threading.Event,
    running: contextlib.ExitStack,
) -> None:
    server = EmbeddedPostgres(folder / "postgres")
    _say(f"Starting PostgreSQL {server.binaries.version} ...")
    running.enter_context(server)
    access = databases.prepare(
        server, lambda table, rows: _say(f"  loaded {rows:>7,} rows into {table}")
    )
    if stop.is_set():
        return
    config = folder / "etl.yaml"
    write_private(config, _etl_yaml(access))
    write_project(folder / "meltano")
    children: dict[str, Child] = {}
    if rate > 0:
        order = {"dsn": access.dsn(databases.SOURCE, databases.AIRLINE), "rate": rate}
        children["the workload"] = workload = Child(
            [sys.executable, "-m", "etl_dagster.demo.workload"],
            log=folder / "workload.log",
            folder=folder,
            order=json.dumps(order),
        )
        running.callback(workload.stop, _WORKLOAD_STOP_S)
    ui_port = port or _next_free_port()
    _say("Starting Dagster ...")
    children["Dagster"] = dagster = _start_dagster(folder, access, config, ui_port)
    running.callback(dagster.stop, _DAGSTER_STOP_S)
    url = f"http://{HOST}:{ui_port}"
    if _wait_for_ui(url, children, stop):
        _say(_five_lines(server, rate, url, folder, config))
        _warn_of_load_error(url, dagster)
    while not stop.wait(1.0):
        _check(children)
    _say("\nStopping ...")


def _start_dagster(folder: Path, access: Databases, config: Path, ui_port: int) -> Child:
    home = folder / "dagster_home"
    home.mkdir(exist_ok=True)
    write_private(home / "dagster.yaml", _dagster_yaml(access))
    target = ["-m", "etl_dagster.demo.definitions"]
    log = folder / "dagster.log"
    if log.exists():
        log.replace(folder / "dagster.log.1")
    return Child(
        [sys.executable, "-m", "dagster", "dev", *target, "-h", HOST, "-p", str(ui_port)],
        log=log,
        folder=Path.cwd(),
        environ={
            "DAGSTER_HOME": str(home),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            "ETL_DAGSTER_CONFIG": str(config),
            "ETL_DAGSTER_DEMO": "1",
            _DAGSTER_PASSWORD: access.passwords[databases.DAGSTER],
            STATE_URI_VARIABLE: access.uri(databases.STATE, databases.PIPELINE, "etl"),
            "PYTHONUNBUFFERED": "1",
        },
    )


def _etl_yaml(access: Databases) -> str:
    import yaml

    values = {
        "pipeline": PIPELINE_NAME,
        "environment": ENVIRONMENT,
        "source": {
            "dsn": access.dsn(databases.SOURCE, databases.PIPELINE),
            "publication": PUBLICATION,
        },
        "state_store": {"dsn": access.dsn(databases.STATE, databases.PIPELINE)},
        "destination": {"type": "duckdb", "path": "flights.duckdb"},
        # Flights in some chunks, so that a copy shows how far it is, and can be resumed.
        "copy": {"chunk_rows": 50_000},
    }
    heading = "# The demo's pipeline. Each `etl-dagster demo` overwrites it.\n"
    return heading + yaml.safe_dump(values, sort_keys=False).replace("$", "$$")


def _dagster_yaml(access: Databases) -> str:
    import yaml

    values = {
        "storage": {
            "postgres": {
                "postgres_db": {
                    # Without the driver's name SQLAlchemy 2.1 takes psycopg 3, and dagster-postgres
                    # is made for psycopg2.
                    "scheme": "postgresql+psycopg2",
                    "hostname": HOST,
                    "port": access.server.port,
                    "username": databases.DAGSTER,
                    # Dagster passes these settings on to its processes on the command line.
                    "password": {"env": _DAGSTER_PASSWORD},
                    "db_name": databases.DAGSTER_STORAGE,
                }
            }
        },
        "sensors": {"use_threads": True, "num_workers": 4},
        # A run is a process of some 200 MB that starts in seconds: few at a time suit a laptop.
        "concurrency": {"runs": {"max_concurrent_runs": 4}, "pools": {"default_limit": 4}},
        # A run whose process was killed with the demo is noticed at the next start, and its slot in
        # the pool is freed.
        "run_monitoring": {
            "enabled": True,
            "poll_interval_seconds": 10,
            "free_slots_after_run_end_seconds": 60,
        },
        "retention": {"sensor": {"purge_after_days": {"skipped": 1, "success": 7, "failure": 7}}},
        "telemetry": {"enabled": False},
        # Dagster's newsletter form would cover the first page.
        "nux": {"enabled": False},
    }
    heading = "# The demo's Dagster instance. Each `etl-dagster demo` overwrites it.\n"
    return heading + yaml.safe_dump(values, sort_keys=False)


def _five_lines(server: EmbeddedPostgres, rate: float, url: str, folder: Path, config: Path) -> str:
    program = _shown(Path(sys.executable).with_name("etl-dagster"))
    if shutil.which("etl-dagster") == str(Path(sys.executable).with_name("etl-dagster")):
        program = "etl-dagster"
    question = "select status, count(*), max(updated_at) from public.flights group by all"
    busy = f"{rate:g} changes a second" if rate > 0 else "no changes"
    return (
        f"\nRunning  PostgreSQL {server.binaries.version} on port {server.port}, the flights of "
        f"New York in 2013, {busy}\n"
        f"Assets   {url}/asset-groups  Postgres' tables, their copies with checks, a table in SQL "
        "that follows, a `meltano run`, all positions\n"
        f"Sensors  {url}/automation  flights_replication streams: its ticks show the "
        f"status; schedules are next to it. Dagster's log: {_shown(folder / 'dagster.log')}\n"
        f'Query    {program} query -c {_shown(config)} "{question}"\n'
        f"Stop     Ctrl-C; the data stays in {_shown(folder)}, the next start continues from there"
    )


def _shown(path: Path) -> str:
    """The path as a user would type it here."""
    path = path.absolute()
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


def _wait_for_ui(url: str, children: dict[str, Child], stop: threading.Event) -> bool:
    """True once the UI answers; False if the demo was stopped before."""
    deadline = time.monotonic() + _UI_DEADLINE_S
    while not stop.is_set():
        _check(children)
        try:
            with urllib.request.urlopen(f"{url}/server_info", timeout=5):
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise EtlError(
                f"Dagster's UI did not answer within {_UI_DEADLINE_S:.0f} s. The end of its log:"
                f"\n\n{children['Dagster'].log_end()}",
                solution="Read the log; start the demo again.",
            )
        stop.wait(0.2)
    return False


def _warn_of_load_error(url: str, dagster: Child) -> None:
    """Report in the terminal if Dagster runs, but could not load the pipeline."""
    body = json.dumps({"query": _LOAD_ERRORS}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            workspace: dict[str, Any] = json.load(answer)["data"]["workspaceOrError"]
        failures = [entry["locationOrLoadError"] or {} for entry in workspace["locationEntries"]]
    except (OSError, ValueError, LookupError, TypeError):
        # Another version of Dagster may answer in another way. It runs, which is what matters.
        return
    for found in failures:
        if found.get("__typename") == "PythonError":
            message = str(found.get("message", "")).strip()
            _say(f"\nDagster could not load the pipeline: {message}\nMore in {dagster.log}")


def _check(children: dict[str, Child]) -> None:
    for name, child in children.items():
        if child.exit_code is not None:
            raise DemoEnded(name, child)


def _next_free_port() -> int:
    for port in range(FIRST_UI_PORT, FIRST_UI_PORT + 100):
        if is_port_free(port):
            return port
    raise PortInUse(FIRST_UI_PORT)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "demo.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DemoAlreadyRuns(folder) from None
    try:
        yield
    finally:
        # While it is still held, so that only this process's lock is removed.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that is set by Ctrl-C, SIGTERM or a closed terminal, instead of what these do.

    An exception in the middle of starting a process would leave that process behind.
    """
    stop = threading.Event()

    def set_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, set_stop) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    # Even if the terminal is gone, the rest has to be stopped.
    with contextlib.suppress(OSError):
        click.echo(text)
