"""Many tables: what each costs from empty to ready, and what all of them cost while idle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks.harness import PUBLICATION, ROOT, BenchmarkFailed, Harness

_ROWS = 100
#: Created in one transaction; each takes locks.
_STEP = 200
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s_per_table(harness: Harness, count: int) -> float:
    """Our CPU seconds for each table of 100 rows, from an empty destination to ready."""
    with many_tables(harness, count) as database:
        task = {"kind": "catch_up", "config": harness.config(database, "many"), "timeout_s": 900}
        return float(harness.run_worker(task, timeout_s=900)["cpu_s_in_all"]) / count


def idle(harness: Harness, count: int, seconds: float) -> dict[str, float]:
    """What `etl-dagster run` takes while nothing happens.

    Returns:
        percent of one core; and kB of WAL in a minute, its own state store in the source included.
    """
    with many_tables(harness, count) as database:
        config = harness.config(database, "many")
        harness.run_worker({"kind": "catch_up", "config": config, "timeout_s": 900}, timeout_s=900)
        path = harness.folder / f"{database}.yaml"
        path.write_text(yaml.safe_dump(config))
        with _running(path) as process:
            _wait_until_active(harness, database)
            # The first looks at everything are over.
            time.sleep(min(10.0, seconds))
            cpu_s, wal = _cpu_s(process.pid), _wal_bytes(harness, database)
            started = time.monotonic()
            time.sleep(seconds)
            lasted = time.monotonic() - started
            cpu_s = _cpu_s(process.pid) - cpu_s
            wal = _wal_bytes(harness, database) - wal
    return {
        "idle_cpu_percent": 100 * cpu_s / lasted,
        "idle_wal_kb_per_minute": wal / 1024 / lasted * 60,
    }


@contextmanager
def many_tables(harness: Harness, count: int) -> Iterator[str]:
    with harness.database(f"tables_{count}") as database:
        with harness.connect(database) as connection:
            for first in range(0, count, _STEP):
                with connection.transaction():
                    for place in range(first, min(first + _STEP, count)):
                        connection.execute(
                            f"create table t{place} (id int primary key, name text, at timestamptz)"
                        )
                        connection.execute(
                            f"insert into t{place} select i, 'row ' || i, now()"
                            f" from generate_series(1, {_ROWS}) i"
                        )
            connection.execute(f"create publication {PUBLICATION} for tables in schema public")
            connection.execute("vacuum analyze")
        yield database


@contextmanager
def _running(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "etl_dagster.cli", "run", "--plain", "-c", str(config)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_active(harness: Harness, database: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        [active] = harness.ask(
            database, "select count(*) from pg_replication_slots where active and not temporary"
        )
        if active:
            return
        time.sleep(0.2)
    raise BenchmarkFailed("the pipeline did not begin to stream within two minutes")


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process so far.

    Source: proc(5), /proc/pid/stat, fields utime and stime.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _wal_bytes(harness: Harness, database: str) -> int:
    return int(harness.ask(database, "select pg_current_wal_lsn() - '0/0'::pg_lsn")[0])
