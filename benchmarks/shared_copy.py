"""How much sooner a copy ends that two processes make, each with one connection to the source.

    PYTHONPATH=.venv/ducklake-1.5.5 .venv/bin/python -m benchmarks.shared_copy --rows 2000000

Into Postgres and into a DuckLake. What is measured is reading, decoding and writing of the chunks;
the processes have started before, and what follows the last chunk is not counted.

The ratio says something only where each process has a core, next to those that the servers need. So
the processors' time is printed, too: one copy needs so many cores at a time, and if this machine
has fewer than twice of them, their number bounds the ratio, which is printed as the bound.

The DuckDB that the lake needs is installed by ``make test-ducklake``; without it, Postgres alone is
measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from rich.console import Console

from benchmarks.harness import servers_cpu_s_of
from etl_dagster.assembly import build_destination, build_store
from etl_dagster.config import parse_config
from etl_dagster.demo.server import EmbeddedPostgres, find_servers
from etl_dagster.errors import InvalidState, LeaseLost
from etl_dagster.model.states import Ready, SyncDone
from etl_dagster.model.stores import Closes
from etl_dagster.runtime.checking.belonging import start_destination
from etl_dagster.runtime.copying.copy_helper import CopyHelper
from etl_dagster.runtime.copying.sharing import want_shared
from etl_dagster.runtime.copying.table_sync import TableSync
from etl_dagster.runtime.pipeline import Pipeline

_LOOK_S = 0.05
_TIMEOUT_S = 3600.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--into", action="append", choices=("postgres", "ducklake"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        _work(json.loads(sys.stdin.readline()))
        return
    console = Console()
    kinds = ["postgres"]
    if importlib.util.find_spec("duckdb_extension_ducklake") is not None:
        kinds.append("ducklake")
    with tempfile.TemporaryDirectory() as folder, _server(Path(folder)) as server:
        _fill(server, options.rows)
        for kind in options.into or kinds:
            one, two = (_copy(server, Path(folder), kind, workers) for workers in (1, 2))
            for workers, found in ((1, one), (2, two)):
                console.print(
                    f"{kind}, {options.rows:,} rows, workers: {workers}: {found.seconds:.1f} s, "
                    f"{options.rows / found.seconds:,.0f} rows/s; processors: workers "
                    f"{found.workers_cpu_s:.1f} s, servers {found.servers_cpu_s:.1f} s, together "
                    f"{found.cores:.2f} cores"
                )
            bound = (os.cpu_count() or 1) / one.cores
            console.print(
                f"{kind}: two workers are {one.seconds / two.seconds:.2f} times as fast; "
                f"bound by this machine's {os.cpu_count()} cores: {min(bound, 2):.2f}"
            )


@dataclass(frozen=True)
class _Copied:
    """From the first chunk to the last."""

    seconds: float
    workers_cpu_s: float
    servers_cpu_s: float

    @property
    def cores(self) -> float:
        return (self.workers_cpu_s + self.servers_cpu_s) / self.seconds


@contextmanager
def _server(folder: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(
        folder / "postgres",
        binaries=find_servers()[0],
        settings={"max_replication_slots": 20, "max_wal_senders": 20, "max_wal_size": "8GB"},
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _fill(server: EmbeddedPostgres, rows: int) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE source")
    with psycopg.connect(server.dsn("source"), autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE events (id bigint PRIMARY KEY, kind text, price numeric(12, 2),"
            " at timestamptz, note text)"
        )
        connection.execute(
            "INSERT INTO events SELECT i, 'kind ' || i % 50, i % 10000 / 100.0,"
            " timestamptz '2026-01-01' + i * interval '1 second', repeat(md5(i::text), 2)"
            f" FROM generate_series(1, {rows}) i"
        )
        connection.execute("VACUUM ANALYZE events")
        connection.execute("CREATE PUBLICATION etl_pub FOR TABLE events")


def _copy(server: EmbeddedPostgres, folder: Path, kind: str, workers: int) -> _Copied:
    name = f"{kind}_{workers}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    destination: dict[str, Any] = {"type": kind}
    if kind == "postgres":
        destination["dsn"] = server.dsn(name)
    else:
        destination |= {"catalog": server.dsn(name), "data_path": str(folder / name)}
    values = {
        "pipeline": name,
        "source": {"dsn": server.dsn("source"), "publication": "etl_pub"},
        "destination": destination,
        "copy_tables": {"chunk_rows": 100_000, "max_connections_per_table": 1},
    }
    config = parse_config(values, {})
    store = build_store(config)
    pipeline = Pipeline(config, store, build_destination(config), copies="elsewhere")
    pipeline.start()
    try:
        with ExitStack() as stack:
            while not (tables := store.get_table_replication_states()):
                store.wait_for_change(1)
            [table_id] = tables
            want_shared(store, table_id)
            processes = [_start(stack, values | {"table_id": table_id}) for _ in range(workers)]
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            while (plan := store.get_copy_plan(table_id)) is None:
                time.sleep(_LOOK_S)
            began = time.monotonic()
            before = servers_cpu_s_of(server), sum(map(_cpu_s, processes))
            while plan is not None and plan.remaining:
                time.sleep(_LOOK_S)
                plan = store.get_copy_plan(table_id)
            seconds = time.monotonic() - began
            # Not up to the end: helpers look for something to do until the table is handed over.
            servers_cpu_s = servers_cpu_s_of(server) - before[0]
            workers_cpu_s = sum(map(_cpu_s, processes)) - before[1]
            for process in processes:
                assert process.wait(_TIMEOUT_S) == 0
    finally:
        pipeline.shutdown()
        pipeline.wait(60)
        if isinstance(store, Closes):
            store.close()
    return _Copied(seconds, workers_cpu_s, servers_cpu_s)


def _cpu_s(process: subprocess.Popen[str]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def _start(stack: ExitStack, task: dict[str, Any]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.shared_copy", "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    assert process.stdin is not None
    process.stdin.write(json.dumps(task) + "\n")
    process.stdin.flush()
    return process


def _work(task: dict[str, Any]) -> None:
    """One of the workers: leads, or helps, until the table is handed over."""
    table_id = task.pop("table_id")
    config = parse_config(task, {})
    store, destination = build_store(config), build_destination(config)
    start_destination(config, store, destination)
    print("ready", flush=True)
    sys.stdin.readline()
    while not isinstance(store.get_table_replication_state(table_id), Ready | SyncDone):
        try:
            TableSync(config, store, destination, table_id).run()
        except InvalidState:
            continue  # handed over since
        except LeaseLost:
            if not CopyHelper(config, store, destination, table_id).run():
                store.wait_for_change(0.2)
    destination.shutdown()


if __name__ == "__main__":
    main()
