"""`make bench`: streams and copies a table of six columns, beside pg_recvlogical and psql.

Every contender reads the same bytes: the replication slots are copies of one, and each is read
once. Contenders take turns, and each number is the median of the rounds. A ratio is the
baseline's time divided by ours, so 1.0 is as fast as Postgres' own tool that throws the rows away.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from etl_dagster.demo.server import EmbeddedPostgres, find_servers
from etl_dagster.source.slots import apply_slot_name

LATEST = Path(__file__).parent / "latest.json"

COLUMNS = """
    id bigint primary key,
    quantity integer not null,
    price numeric(12, 2) not null,
    description text,
    ordered_at timestamptz not null,
    is_paid boolean not null
"""
ROWS = """
    select i, (i * 7) % 1000, ((i * 13) % 100000)::numeric / 100, 'order number ' || i,
           timestamptz '2024-01-01 00:00:00+00' + i * interval '1.5 seconds', i % 3 = 0
    from generate_series({}, {}) i
"""


@dataclass(frozen=True)
class Measurement:
    rows: int
    seconds: float
    cpu_s: float
    peak_rss_mb: float


class Bench:
    """A server with one database for each way in which the rows were committed."""

    def __init__(self, server: EmbeddedPostgres, bin_dir: Path, rows: int, folder: Path) -> None:
        self._server = server
        self._bin = bin_dir
        self._rows = rows
        self._folder = folder
        self._count = 0
        self._end_lsn: dict[str, str] = {}

    def prepare(self, database: str, transaction_rows: int) -> None:
        """A table whose rows were inserted in transactions of some size, all of it in a slot."""
        with psycopg.connect(self._server.dsn("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(database)))
        with self._connect(database) as connection:
            connection.execute(f"create table orders ({COLUMNS})")
            connection.execute("create publication bench for table orders")
            connection.execute(
                "select pg_create_logical_replication_slot(%s, 'pgoutput')", [f"base_{database}"]
            )
            for first in range(1, self._rows + 1, transaction_rows):
                last = min(first + transaction_rows - 1, self._rows)
                connection.execute("insert into orders " + ROWS.format(first, last))
            row = connection.execute("select pg_current_wal_insert_lsn()::text").fetchone()
            assert row is not None
            self._end_lsn[database] = row[0]
            connection.execute("vacuum analyze orders")
            connection.execute("checkpoint")

    def recvlogical(self, database: str) -> Measurement:
        """pg_recvlogical to /dev/null."""
        with self._slot(database) as slot:
            return self._run_tool(
                "pg_recvlogical",
                "--dbname", self._server.dsn(database),
                "--slot", slot,
                "--start", "--no-loop",
                "--endpos", self._end_lsn[database],
                "--option", "proto_version=1",
                "--option", "publication_names=bench",
                "--file", "/dev/null",
            )  # fmt: skip

    def psql_copy(self, database: str) -> Measurement:
        """psql, the whole table as text to /dev/null."""
        return self._run_tool(
            "psql", "--dbname", self._server.dsn(database), "--quiet", "--no-psqlrc",
            "--command", "copy orders to stdout", "--output", "/dev/null",
        )  # fmt: skip

    def stream(self, database: str, destination: str) -> Measurement:
        """The apply worker, in a process of its own."""
        with self._slot(database) as slot:
            pipeline = slot.removeprefix(apply_slot_name(""))
            return self._run_worker("stream", database, destination, pipeline)

    def copy(self, database: str) -> Measurement:
        """The table copy over one connection into DuckDB, in a process of its own."""
        return self._run_worker("copy", database, "duckdb", "bench")

    def _run_worker(self, kind: str, database: str, destination: str, pipeline: str) -> Measurement:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = str(Path(folder) / "bench.duckdb")
            task = {
                "kind": kind,
                "destination": destination,
                "path": path,
                "rows": self._rows,
                "config": {
                    "pipeline": pipeline,
                    "source": {"dsn": self._server.dsn(database), "publication": "bench"},
                    "destination": {"type": "duckdb", "path": path},
                    "copy": {"max_connections_per_table": 1},
                },
            }
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.worker"],
                input=json.dumps(task) + "\n",
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                cwd=Path(__file__).parent.parent,
            )
        measured = Measurement(**json.loads(done.stdout.splitlines()[-1]))
        if measured.rows != self._rows:
            sys.exit(f"{kind} to {destination} brought {measured.rows} of {self._rows} rows")
        return measured

    def _run_tool(self, tool: str, *arguments: str) -> Measurement:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run([str(self._bin / tool), *arguments], check=True, env=_environment())
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Measurement(self._rows, seconds, cpu_s, 0.0)

    @contextmanager
    def _slot(self, database: str) -> Iterator[str]:
        """A fresh copy of the slot that holds everything."""
        self._count += 1
        name = apply_slot_name(f"bench_{self._count}")
        with self._connect(database) as connection:
            connection.execute(
                "select pg_copy_logical_replication_slot(%s, %s)", [f"base_{database}", name]
            )
            try:
                yield name
            finally:
                connection.execute("select pg_drop_replication_slot(%s)", [name])

    def _connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self._server.dsn(database), autocommit=True)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print latest.json, nothing else")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    folder = Path(tempfile.mkdtemp(prefix="etl_dagster_bench_"))
    try:
        results = _measure(arguments.rows, arguments.rounds, folder, console)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    LATEST.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.json:
        print(LATEST.read_text(), end="")


def _measure(rows: int, rounds: int, folder: Path, console: Console) -> dict[str, float]:
    binaries = find_servers()[0]
    with (
        EmbeddedPostgres(folder / "server", binaries, durable=False) as server,
        Progress(console=console, transient=True) as progress,
    ):
        bench = Bench(server, binaries.folder, rows, folder)
        contenders: dict[str, Callable[[], Measurement]] = {
            "pg_recvlogical": lambda: bench.recvlogical("small"),
            "stream_to_arrow": lambda: bench.stream("small", "discard"),
            "stream_to_duckdb": lambda: bench.stream("small", "duckdb"),
            "psql_copy": lambda: bench.psql_copy("small"),
            "copy_to_duckdb": lambda: bench.copy("small"),
        }
        task = progress.add_task("making rows", total=2 + rounds * len(contenders) + 1)
        bench.prepare("small", transaction_rows=1000)
        progress.advance(task)
        bench.prepare("large", transaction_rows=rows)
        progress.advance(task)
        measured: dict[str, list[Measurement]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, contender in contenders.items():
                progress.update(task, description=name)
                measured[name].append(contender())
                progress.advance(task)
        progress.update(task, description="one transaction")
        large = bench.stream("large", "duckdb")
        progress.advance(task)
    medians = {
        name: statistics.median(one.seconds for one in several)
        for name, several in measured.items()
    }
    results = {
        "stream_to_arrow": medians["pg_recvlogical"] / medians["stream_to_arrow"],
        "stream_to_duckdb": medians["pg_recvlogical"] / medians["stream_to_duckdb"],
        "copy_to_duckdb": medians["psql_copy"] / medians["copy_to_duckdb"],
        "rss_mb_1m_row_transaction": large.peak_rss_mb,
    }
    console.print(_table(rows, measured, results, large))
    return {name: round(value, 3) for name, value in results.items()}


def _table(
    rows: int,
    measured: dict[str, list[Measurement]],
    results: dict[str, float],
    large: Measurement,
) -> Table:
    table = Table(title=f"{rows:,} rows of six columns, median of {len(measured['psql_copy'])}")
    for heading in ("", "rows/s", "CPU s per 1M rows", "peak RSS MB", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, several in measured.items():
        middle = sorted(several, key=lambda one: one.seconds)[len(several) // 2]
        table.add_row(
            name,
            f"{middle.rows / middle.seconds:,.0f}",
            f"{middle.cpu_s / middle.rows * 1e6:.2f}",
            f"{middle.peak_rss_mb:.0f}" if middle.peak_rss_mb else "",
            f"{results[name]:.2f}" if name in results else "1",
        )
    table.add_row(
        "one transaction to DuckDB",
        f"{large.rows / large.seconds:,.0f}",
        f"{large.cpu_s / large.rows * 1e6:.2f}",
        f"{large.peak_rss_mb:.0f}",
        "",
    )
    return table


if __name__ == "__main__":
    main()
