"""One large transaction, read while it is in progress, and once it has committed.

The pipeline runs all the while. Measured is how long after the commit's return the transaction is
durable at the destination, which is what a reader waits for.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Literal

from benchmarks.harness import PUBLICATION, BenchmarkFailed, Harness
from benchmarks.streams import ORDER_ROWS, ORDERS
from etl_dagster.lsn import Lsn

_TIMEOUT_S = 600.0
_LOOK_S = 0.2


@dataclass(frozen=True)
class Arrival:
    """Of one transaction."""

    durable_after_s: float
    peak_rss_mb: float


def arrival(harness: Harness, rows: int, streaming: Literal["auto", "off"]) -> Arrival:
    """Commit so many rows in one transaction alongside a running pipeline."""
    name = f"in_progress_{streaming}"
    publication = f"create publication {PUBLICATION} for table orders"
    with harness.database(name, ORDERS, publication) as database:
        config = harness.config(database, name)
        config["source"]["streaming"] = streaming
        with harness.worker({"kind": "serve", "config": config}) as pipeline:
            assert pipeline.stdout is not None
            if pipeline.stdout.readline().strip() != "ready":
                raise BenchmarkFailed("the pipeline did not catch up")
            with harness.connect(database) as connection:
                # As users have it. Else the server sends WAL up to 0.2 s after a commit.
                connection.execute("set synchronous_commit = on")
                connection.execute(ORDER_ROWS.format(first=1, last=rows))
            committed = time.monotonic()
            end = Lsn.parse(harness.insert_lsn(database))
            wait_confirmed(harness, database, end)
            served = json.loads(pipeline.communicate()[0].splitlines()[-1])
    durable = next(at for at, lsn in served["durable"] if Lsn.parse(lsn) >= end)
    return Arrival(durable - committed, served["peak_rss_mb"])


def wait_confirmed(harness: Harness, database: str, end: Lsn) -> None:
    """Until Postgres was told that everything before is durable."""
    deadline = time.monotonic() + _TIMEOUT_S
    query = (
        "select bool_and(confirmed_flush_lsn >= '{}') from pg_replication_slots"
        " where database = current_database()"
    )
    while not harness.ask(database, query.format(end))[0]:
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"the transaction did not arrive in {_TIMEOUT_S:g} s")
        time.sleep(_LOOK_S)
