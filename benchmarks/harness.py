"""What every part of the benchmark shares: a server, databases, Postgres' own tools, workers.

A worker is a process of its own (`benchmarks.worker`), so that its CPU time and its peak memory
are one pipeline's and nothing else's.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from etl_dagster.demo.server import EmbeddedPostgres, ServerBinaries

PUBLICATION = "bench"
ROOT = Path(__file__).parent.parent


#: As few as a small managed server has.
SETTINGS: Mapping[str, str | int] = {
    "max_replication_slots": 40,
    "max_wal_senders": 40,
    "max_connections": 60,
    "max_locks_per_transaction": 256,
    "shared_buffers": "128MB",
    "max_wal_size": "4GB",
    "autovacuum": "off",
}


class BenchmarkFailed(Exception):
    """A part could not be measured; the message says why."""


@dataclass(frozen=True)
class Measurement:
    """One contender's run over `rows` changes."""

    rows: int
    seconds: float
    cpu_s: float
    peak_rss_mb: float = 0.0
    #: With the start; 0 where that isn't told apart.
    cpu_s_in_all: float = 0.0
    #: Processors' time of everything else that took part, by name; empty where not measured.
    others_cpu_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def cores(self) -> float:
        """Processors that were busy at a time."""
        return (self.cpu_s + sum(self.others_cpu_s.values())) / self.seconds


@dataclass
class Contest:
    """Several contenders over the same changes; the first is the baseline."""

    title: str
    measured: dict[str, list[Measurement]] = field(default_factory=dict)


@dataclass(frozen=True)
class Harness:
    """A running server and a folder for everything that is made.

    Args:
        scale: what the number of rows and tables is multiplied with; 1 measures what is reported.
    """

    server: EmbeddedPostgres
    binaries: ServerBinaries
    folder: Path
    rounds: int
    scale: float

    def scaled(self, count: int, *, at_least: int = 1) -> int:
        return max(int(count * self.scale), at_least)

    # -- databases -----------------------------------------------------------------------------

    @contextmanager
    def database(self, name: str, *statements: str) -> Iterator[str]:
        """A database of a part's own, dropped at the end with its slots, its files removed."""
        identifier = sql.Identifier(name)
        with self.connect("postgres") as connection:
            connection.execute(sql.SQL("create database {}").format(identifier))
        try:
            with self.connect(name) as connection:
                for statement in statements:
                    connection.execute(statement)
            yield name
        finally:
            with self.connect("postgres") as connection:
                for (slot,) in connection.execute(
                    "select slot_name from pg_replication_slots where database = %s", [name]
                ).fetchall():
                    connection.execute("select pg_drop_replication_slot(%s)", [slot])
                connection.execute(sql.SQL("drop database {} with (force)").format(identifier))
                connection.execute("checkpoint")
            for path in self.folder.glob(f"{name}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.dsn(database), autocommit=True)

    def ask(self, database: str, query: str) -> tuple[Any, ...]:
        """The one row that a query returns."""
        with self.connect(database) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return tuple(row)

    def insert_lsn(self, database: str) -> str:
        """Everything committed so far lies before it."""
        return str(self.ask(database, "select pg_current_wal_insert_lsn()::text")[0])

    @contextmanager
    def another_server(self, name: str) -> Iterator[EmbeddedPostgres]:
        """A server next to the source's, with the same settings, which ends with the block."""
        folder = self.folder / f"server_of_{name}"
        server = EmbeddedPostgres(folder, self.binaries, settings=SETTINGS, durable=False)
        try:
            with server:
                yield server
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # -- Postgres' own tools -------------------------------------------------------------------

    def recvlogical(self, database: str, slot: str, end_lsn: str, rows: int) -> Measurement:
        """pg_recvlogical to /dev/null, from a copy of the slot up to an LSN."""
        copy = f"{slot}_copy"
        with self.connect(database) as connection:
            connection.execute("select pg_copy_logical_replication_slot(%s, %s)", [slot, copy])
        try:
            return self.run_tool(rows, *self._receiving(database, copy, end_lsn, PUBLICATION))
        finally:
            with self.connect(database) as connection:
                connection.execute("select pg_drop_replication_slot(%s)", [copy])

    def recvlogical_command(
        self, database: str, slot: str, end_lsn: str, publication: str
    ) -> list[str]:
        """What reads a slot up to an LSN and throws it away."""
        tool, *arguments = self._receiving(database, slot, end_lsn, publication)
        return [str(self.binaries.program(tool)), *arguments]

    def _receiving(self, database: str, slot: str, end_lsn: str, publication: str) -> list[str]:
        return [
            "pg_recvlogical",
            "--dbname", self.server.dsn(database),
            "--slot", slot,
            "--start", "--no-loop",
            "--endpos", end_lsn,
            "--option", "proto_version=1",
            "--option", f"publication_names={publication}",
            "--file", "/dev/null",
        ]  # fmt: skip

    def psql_copy(self, database: str, table: str, rows: int) -> Measurement:
        """psql, the whole table as text to /dev/null."""
        return self.run_tool(
            rows,
            "psql", "--dbname", self.server.dsn(database), "--quiet", "--no-psqlrc",
            "--command", f"copy {table} to stdout", "--output", "/dev/null",
        )  # fmt: skip

    def run_tool(self, rows: int, tool: str, *arguments: str) -> Measurement:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run(
            [self.binaries.program(tool), *arguments],
            check=True,
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if tool == "pgbench" else None,
        )
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Measurement(rows, seconds, cpu_s)

    # -- our own -------------------------------------------------------------------------------

    def config(self, database: str, pipeline: str, **sections: Any) -> dict[str, Any]:
        """A configuration as in etl.yaml; the DuckDB file is named as the pipeline."""
        return {
            "pipeline": pipeline,
            "source": {"dsn": self.server.dsn(database), "publication": PUBLICATION},
            "destination": {"type": "duckdb", "path": str(self.file(database, pipeline))},
        } | sections

    def file(self, database: str, pipeline: str) -> Path:
        return self.folder / f"{database}-{pipeline}.duckdb"

    def run_worker(self, task: dict[str, Any], *, timeout_s: float = 600.0) -> dict[str, Any]:
        """Run `benchmarks.worker` over a task; returns what it measured.

        Raises:
            BenchmarkFailed: it failed, or took too long.
        """
        with self.worker(task) as process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise BenchmarkFailed(f"not finished after {timeout_s:g} s") from None
            if process.returncode:
                raise BenchmarkFailed(f"the worker ended with exit code {process.returncode}")
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        return result

    @contextmanager
    def worker(self, task: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
        """A worker that runs until it is done, or its stdin is closed; never longer than that."""
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=_environment(),
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def servers_cpu_s_of(server: EmbeddedPostgres) -> float:
    """Of the server's processes, also those that have ended."""
    postmaster = psutil.Process(server.process_id)
    total = 0.0
    for process in (postmaster, *postmaster.children()):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "ETL_DAGSTER"))
    }
