"""One measurement in a process of its own: reads a task from stdin, prints its result as JSON.

The clock runs from the connection to the last durable row; starting Python is not counted.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.destinations.duckdb import DuckDBDestination
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.destination import Capabilities, Destination
from etl_dagster.model.events import EventBatch, TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.states import Ready
from etl_dagster.model.stores import CopyPlan, DestinationStore
from etl_dagster.runtime.apply_worker import ApplyWorker
from etl_dagster.runtime.metrics import Metrics
from etl_dagster.runtime.schemas import destination_metadata
from etl_dagster.runtime.table_copy import TableCopy
from etl_dagster.source.catalog import PublishedTable, fetch_leaves, fetch_published_tables
from etl_dagster.source.copy import plan_chunks
from etl_dagster.stores.memory import MemoryStore


class Discard:
    """Takes typed Arrow and drops it: what is left is receiving and decoding."""

    name = "discard"
    capabilities = Capabilities()

    def startup(self, store: DestinationStore) -> None: ...

    def drop_table_for_copy(self, schema: TableSchema) -> None: ...

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        for _ in rows.batches():
            pass

    def write_events(self, events: EventBatch) -> None: ...

    def shutdown(self) -> None: ...


def main() -> None:
    task = json.loads(sys.stdin.readline())
    config = parse_config(task["config"], {})
    destination: Destination = Discard()
    if task["destination"] == "duckdb":
        destination = DuckDBDestination(Path(task["path"]))
    measure = {"stream": stream, "copy": copy}[task["kind"]]
    with psycopg.connect(config.source.conninfo(), autocommit=True) as connection:
        [table] = fetch_published_tables(connection, config.source.publication)
    store = MemoryStore()
    destination.startup(store)
    before = resource.getrusage(resource.RUSAGE_SELF)
    rows, seconds = measure(config, store, destination, table, task)
    after = resource.getrusage(resource.RUSAGE_SELF)
    destination.shutdown()
    result = {
        "rows": rows,
        "seconds": seconds,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_rss_mb": after.ru_maxrss / 1024,
    }
    print(json.dumps(result), flush=True)


def stream(
    config: PipelineConfig,
    store: MemoryStore,
    destination: Destination,
    table: PublishedTable,
    task: dict[str, Any],
) -> tuple[int, float]:
    """Everything that the slot holds, through the apply worker as it is."""
    _pretend_copied(store, destination, table.schema)
    metrics, stop = Metrics(), threading.Event()

    def durable(lsn: Lsn) -> None:
        if metrics.rows >= task["rows"]:
            stop.set()

    worker = ApplyWorker(
        config,
        store,
        destination,
        start_lsn=LSN_ZERO,
        epoch=1,
        fetch_schema=lambda table_id: table.schema,
        metrics=metrics,
        on_durable=durable,
        stop=stop,
    )
    started = time.perf_counter()
    worker.run()
    return metrics.rows, time.perf_counter() - started


def copy(
    config: PipelineConfig,
    store: MemoryStore,
    destination: Destination,
    table: PublishedTable,
    task: dict[str, Any],
) -> tuple[int, float]:
    """The table as it is, over one connection."""
    with psycopg.connect(config.source.conninfo(), autocommit=True) as connection:
        leaves = fetch_leaves(connection, table.schema.id)
    plan = CopyPlan(
        copy_id="benchmark",
        chunks=plan_chunks(leaves, config.copy_tables.chunk_rows),
        finished={},
        slot_lsn=LSN_ZERO,
        started_at=datetime.now(UTC),
    )
    store.store_copy_plan(table.schema.id, plan)
    worker = TableCopy(
        config,
        store,
        destination,
        table,
        plan,
        snapshot_name=None,
        stop=threading.Event(),
        on_chunk=lambda chunk: None,
    )
    started = time.perf_counter()
    summary = worker.run()
    return summary.row_count, time.perf_counter() - started


def _pretend_copied(store: MemoryStore, destination: Destination, schema: TableSchema) -> None:
    """An empty table whose copy is done: the stream brings all rows."""
    destination.write_table_rows(schema, TableRows("benchmark"))
    store.store_table_schema(schema)
    store.store_destination_table_metadata(schema.id, destination_metadata(schema, "applied"))
    store.update_table_replication_states([(schema.id, Ready(LSN_ZERO))])


if __name__ == "__main__":
    main()
