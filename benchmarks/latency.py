"""Latency: when a row is durable at the destination, and when a reader sees it there."""

from __future__ import annotations

import bisect
import json
import subprocess
import time
from dataclasses import dataclass

import psycopg

from benchmarks.harness import PUBLICATION, BenchmarkFailed, Harness
from benchmarks.streams import ORDER_ROWS, ORDERS
from etl_dagster.lsn import Lsn

#: One transaction of ten new rows, and in it ten updates, every ten milliseconds.
_EVERY_S, _ROWS = 0.01, 10
#: A reader that was refused, or has read, waits so long.
_PAUSE_S = 0.01
_PERCENTS = (50, 95, 99)


@dataclass(frozen=True)
class Latency:
    """Milliseconds from the commit's return to the moment, by percentile."""

    durable_ms: dict[int, float]
    readable_ms: dict[int, float]
    file_growth_mb: float


def latencies(harness: Harness, rows: int, *, seconds: dict[int, float]) -> dict[int, Latency]:
    """For each ``batch.max_fill_ms``, over so many seconds at 1,000 new rows a second."""
    name = f"latency_{rows}"
    publication = f"create publication {PUBLICATION} for table orders"
    fill = ORDER_ROWS.format(first=1, last=rows)
    with harness.database(name, ORDERS, fill, publication) as database:
        with harness.connect(database) as connection:
            connection.execute("vacuum analyze")
        return {
            max_fill_ms: _measure(harness, database, rows, max_fill_ms, lasting_s)
            for max_fill_ms, lasting_s in seconds.items()
        }


def _measure(
    harness: Harness, database: str, rows: int, max_fill_ms: int, lasting_s: float
) -> Latency:
    config = harness.config(database, "latency", batch={"max_fill_ms": max_fill_ms})
    path = harness.file(database, "latency")
    with harness.worker({"kind": "serve", "config": config}) as pipeline:
        _wait_ready(pipeline, "the pipeline did not catch up")
        task = {
            "kind": "read",
            "path": str(path),
            "query": "select max(id) from public.orders",
            "pause_s": _PAUSE_S,
        }
        with harness.worker(task) as reader, harness.connect(database) as connection:
            # To start Python takes a reader a second, which is not part of the wait for rows.
            _wait_ready(reader, "the reader did not get to read the file")
            # As users have it. Else the server flushes, and sends, WAL up to 0.2 s after a commit.
            connection.execute("set synchronous_commit = on")
            before = path.stat().st_size
            commits = _write(connection, lasting_s)
            # The last rows get time to arrive; what doesn't is missing below, and reported.
            time.sleep(3 * max_fill_ms / 1000 + 5)
            seen = json.loads(reader.communicate()[0].splitlines()[-1])["seen"]
        durable = json.loads(pipeline.communicate()[0].splitlines()[-1])["durable"]
        growth = path.stat().st_size - before
    return Latency(
        _percentiles(
            [(at, lsn) for at, lsn, _ in commits],
            [(at, Lsn.parse(lsn).offset) for at, lsn in durable],
        ),
        _percentiles([(at, newest) for at, _, newest in commits], seen),
        growth / 1e6,
    )


def _wait_ready(worker: subprocess.Popen[str], otherwise: str) -> None:
    assert worker.stdout is not None
    if worker.stdout.readline().strip() != "ready":
        raise BenchmarkFailed(otherwise)


def _write(
    connection: psycopg.Connection[object], lasting_s: float
) -> list[tuple[float, int, int]]:
    """Commit some rows again and again; when, the LSN after, and the newest ID, of each commit."""
    row = connection.execute("select max(id) from orders").fetchone()
    newest = int(row[0]) if row and isinstance(row, tuple) else 0
    commits: list[tuple[float, int, int]] = []
    end = due = time.monotonic()
    end += lasting_s
    while due < end:
        time.sleep(max(due - time.monotonic(), 0))
        due += _EVERY_S
        with connection.transaction():
            connection.execute(ORDER_ROWS.format(first=newest + 1, last=newest + _ROWS))
            connection.execute(
                "update orders set quantity = quantity + 1 where id = any("
                f"array(select 1 + floor(random() * {newest})::bigint"
                f" from generate_series(1, {_ROWS})))"
            )
        at = time.monotonic()
        newest += _ROWS
        found = connection.execute("select pg_current_wal_flush_lsn()::text").fetchone()
        assert isinstance(found, tuple)
        commits.append((at, Lsn.parse(found[0]).offset, newest))
    return commits


def _percentiles(
    commits: list[tuple[float, int]], reached: list[tuple[float, int]]
) -> dict[int, float]:
    """By percentile, milliseconds until each commit's value was reached.

    Args:
        commits: when, and the value to reach; both ascending.
        reached: when, and the value that was reached then; both ascending.
    """
    values = [value for _, value in reached]
    waits = []
    for at, value in commits:
        place = bisect.bisect_left(values, value)
        if place == len(values):
            raise BenchmarkFailed(f"of {len(commits)} commits some never arrived")
        waits.append(max(reached[place][0] - at, 0.0) * 1000)
    waits.sort()
    return {
        percent: waits[min(len(waits) * percent // 100, len(waits) - 1)] for percent in _PERCENTS
    }
