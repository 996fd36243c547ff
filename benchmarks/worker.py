"""One measurement in a process of its own: a task as JSON in, its result as JSON out.

`catch_up` and `serve` run a whole pipeline as `etl-dagster run` does, with its state store in the
source and its positions mirrored as Meltano state. Starting Python and reading the configuration
are not counted.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from etl_dagster.assembly import build_destination, build_store, opened_store
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.coordination import CopyPlan
from etl_dagster.model.destination import Capabilities, Destination
from etl_dagster.model.events import EventBatch, TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.stores import DestinationStore
from etl_dagster.runtime.comparing.tables import compare_tables
from etl_dagster.runtime.copy_source import PostgresSource
from etl_dagster.runtime.copying.table_copy import TableCopy
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.table_ids import find_table_ids
from etl_dagster.runtime.together import Together
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import fetch_leaves, fetch_published_tables
from etl_dagster.source.control import SourceControl
from etl_dagster.source.copy import plan_chunks
from etl_dagster.stores.memory import MemoryStore

#: The position is looked at this often, where the moment matters.
_LOOK_S = 0.002
#: The rows of shards are counted this often.
_ROWS_EVERY_S = 0.1


class Discard:
    """Takes typed Arrow and drops it: what is left is receiving and decoding."""

    name = "discard"
    capabilities = Capabilities(shards=True)

    def startup(self, store: DestinationStore) -> None: ...

    def drop_table_for_copy(self, schema: TableSchema) -> None: ...

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        for _ in rows.batches():
            pass

    def write_events(self, events: EventBatch) -> None: ...

    def shutdown(self) -> None: ...


def main() -> None:
    task = json.loads(sys.argv[1])
    measure: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "catch_up": catch_up,
        "catch_up_shards": catch_up_shards,
        "serve": serve,
        "copy": copy,
        "compare": compare,
        "read": read,
    }
    print(json.dumps(measure[task["kind"]](task)), flush=True)


# -- a whole pipeline --------------------------------------------------------------------------


def catch_up(task: dict[str, Any]) -> dict[str, Any]:
    """Run a pipeline until everything committed before is durable.

    Seconds and `cpu_s` count from the moment it begins to stream, `cpu_s_in_all` from before its
    start.
    """
    cpu_s_before = _cpu_s()
    with _pipeline(task) as (pipeline, started, cpu_s):
        goal = Lsn.parse(task["end_lsn"]) if "end_lsn" in task else None
        if not pipeline.wait_until_caught_up(task.get("timeout_s", 600)):
            sys.exit("the pipeline did not catch up")
        seconds, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_s
        status = pipeline.status()
    if goal is not None and Lsn.parse(status.confirmed_lsn) < goal:
        sys.exit("the pipeline says that it caught up, and did not")
    broken = [name for name, table in status.tables.items() if table.error]
    if broken:
        sys.exit(f"tables that stopped: {broken}")
    return {
        "rows": status.rows_total,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "cpu_s_in_all": _cpu_s() - cpu_s_before,
        "peak_rss_mb": _peak_rss_mb(),
    }


def catch_up_shards(task: dict[str, Any]) -> dict[str, Any]:
    """Run one shard, or all, or a pipeline that has none, until what was committed is durable.

    Prints a line and waits until stdin is closed before it starts. Returns when all of its streams
    had begun and when it had caught up, and in between how many rows there were at which moment,
    with its CPU seconds until then; by the system's monotonic clock, so that processes can be
    compared.
    """
    config = parse_config(task["config"], {})
    configs = config.members() or {config.pipeline: config}
    if task["shard"]:
        configs = {task["shard"]: configs[task["shard"]]}
    looks: list[tuple[float, int, float]] = []
    has_ended = threading.Event()
    with ExitStack() as opened:
        stores = {n: opened.enter_context(opened_store(each)) for n, each in configs.items()}
        together = Together(configs, stores, lambda c, s: Pipeline(c, s, _destination(task, c)))

        def look() -> float:
            count = sum(status.rows_total for status in together.statuses().values())
            looks.append((time.monotonic(), count, _cpu_s()))
            return looks[-1][0]

        def watch() -> None:
            while not has_ended.wait(_ROWS_EVERY_S):
                look()

        print("ready", flush=True)
        sys.stdin.read()
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        together.start()
        began = look()
        for name, each in configs.items():
            mirrored = mirrored_positions(each, stores[name], together.pipelines[name].status)
            opened.enter_context(mirrored)
        if not together.wait_until_caught_up(task.get("timeout_s", 600)):
            sys.exit("the pipeline did not catch up")
        has_ended.set()
        watcher.join()
        ended = look()
        statuses = together.statuses().values()
        together.shutdown()
        together.wait(60)
    if any(table.error for status in statuses for table in status.tables.values()):
        sys.exit("a table stopped")
    peak = _peak_rss_mb()
    return {"began": began, "ended": ended, "looks": looks, "peak_rss_mb": peak}


def serve(task: dict[str, Any]) -> dict[str, Any]:
    """Run a pipeline until stdin is closed; returns when each LSN was durable.

    Prints a line once it has caught up. Times are seconds by the system's monotonic clock.
    """
    durable: list[tuple[float, str]] = []
    closed = _stdin_closed()
    with _pipeline(task) as (pipeline, _, _):
        if not pipeline.wait_until_caught_up(600):
            sys.exit("the pipeline did not catch up")
        print("ready", flush=True)
        last = ""
        while not closed.wait(_LOOK_S):
            confirmed = pipeline.status().confirmed_lsn
            if confirmed != last:
                durable.append((time.monotonic(), confirmed))
                last = confirmed
    return {"durable": durable, "peak_rss_mb": _peak_rss_mb()}


@contextmanager
def _pipeline(task: dict[str, Any]) -> Iterator[tuple[Pipeline, float, float]]:
    """A running pipeline; when it began to stream, and the CPU seconds until then."""
    config = parse_config(task["config"], {})
    if task.get("shard"):
        config = config.members()[task["shard"]]
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        pipeline = Pipeline(config, store, _destination(task, config))
        pipeline.start()
        # Its threads are at work from here on; the mirror takes a moment to begin.
        started, cpu_s = time.perf_counter(), _cpu_s()
        with mirrored_positions(config, store, pipeline.status):
            yield pipeline, started, cpu_s
            pipeline.shutdown()
            pipeline.wait(60)


def _destination(task: dict[str, Any], config: PipelineConfig) -> Destination:
    return Discard() if task.get("destination") == "discard" else build_destination(config)


def _stdin_closed() -> threading.Event:
    """An event that is set once stdin ends."""
    closed = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        closed.set()

    threading.Thread(target=watch, daemon=True).start()
    return closed


# -- a copy alone ------------------------------------------------------------------------------


def copy(task: dict[str, Any]) -> dict[str, Any]:
    """One table over one connection into a new file, without slot and hand-over."""
    config = parse_config(task["config"], {})
    with psycopg.connect(config.source.conninfo(), autocommit=True) as connection:
        [table] = fetch_published_tables(connection, config.source.publication)
        leaves = fetch_leaves(connection, table.schema.id)
    plan = CopyPlan(
        copy_id="benchmark",
        chunks=plan_chunks(leaves, config.copy_tables.chunk_rows),
        finished={},
        slot_lsn=LSN_ZERO,
        started_at=datetime.now(UTC),
    )
    store, destination = MemoryStore(), build_destination(config)
    destination.startup(store)
    store.store_copy_plan(table.schema.id, plan)
    control = SourceControl(config.source, application_name="benchmark")
    parts = WorkerParts(config, store, destination, control, threading.Event())
    source = PostgresSource(config, table.schema.id)
    worker = TableCopy(parts, source, table, plan, snapshot_name=None, on_chunk=lambda chunk: None)
    cpu_s, started = _cpu_s(), time.perf_counter()
    summary = worker.run()
    seconds = time.perf_counter() - started
    destination.shutdown()
    return {
        "rows": summary.row_count,
        "seconds": seconds,
        "cpu_s": _cpu_s() - cpu_s,
        "peak_rss_mb": _peak_rss_mb(),
    }


# -- a comparison ------------------------------------------------------------------------------


def compare(task: dict[str, Any]) -> dict[str, Any]:
    """The only table of a pipeline that another process runs."""
    config = parse_config(task["config"], {})
    destination = build_destination(config)
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        wanted = find_table_ids(config, store)
        cpu_s, started = _cpu_s(), time.perf_counter()
        [(_, found)] = compare_tables(config, store, destination, wanted)
        seconds, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_s
    destination.shutdown()
    assert found is not None
    return {
        "result": found.result,
        "reason": found.reason,
        "rows": found.source_rows,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "peak_rss_mb": _peak_rss_mb(),
    }


# -- a reader ----------------------------------------------------------------------------------


def read(task: dict[str, Any]) -> dict[str, Any]:
    """Ask the file for its newest row again and again, as a plain DuckDB client does.

    While the pipeline writes, DuckDB refuses the file; then it tries again. Prints a line once it
    has read the file for the first time, and returns when each newest ID was first seen.
    """
    import duckdb

    seen: list[tuple[float, int]] = []
    tries = refusals = 0
    closed = _stdin_closed()
    newest = 0
    while not closed.wait(task["pause_s"]):
        tries += 1
        try:
            with duckdb.connect(task["path"], read_only=True) as connection:
                row = connection.execute(task["query"]).fetchone()
                at = time.monotonic()
        except duckdb.IOException:
            refusals += 1
            continue
        if tries - refusals == 1:
            print("ready", flush=True)
        if row is not None and row[0] is not None and row[0] > newest:
            newest = row[0]
            seen.append((at, newest))
    return {"seen": seen, "tries": tries, "refusals": refusals}


def _peak_rss_mb() -> float:
    """The largest resident set of this process so far.

    Not `ru_maxrss`, which begins with what the process had that started this one.

    Source: proc(5), /proc/pid/status, VmHWM.
    """
    status = Path("/proc/self/status").read_text()
    return next(
        int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")
    )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
