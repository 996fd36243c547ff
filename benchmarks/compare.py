"""How long comparing a table with its source takes, next to a copy of the same table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.harness import PUBLICATION, BenchmarkFailed, Harness, Measurement, servers_cpu_s_of
from benchmarks.streams import ORDER_ROWS, ORDERS


@dataclass(frozen=True)
class Compared:
    """Of one table, as the settings are by default; medians of some rounds."""

    copy_s: float
    #: Of the worker, and of the source's and the destination's server.
    copy_cpu_s: float
    compare_s: float
    compare_cpu_s: float
    peak_rss_mb: float


def compared(
    harness: Harness, rows: int, destination: str = "duckdb", *, rounds: int = 1
) -> Compared:
    """Copy a table of so many rows, and compare it while a pipeline streams it, by turns."""
    name = f"compare_{rows}"
    publication = f"create publication {PUBLICATION} for table orders"
    fill = ORDER_ROWS.format(first=1, last=rows)
    copies: list[Measurement] = []
    compares: list[Measurement] = []
    with (
        harness.database(name, ORDERS, fill, publication) as database,
        harness.database(f"{name}_other") as other,
    ):
        with harness.connect(database) as connection:
            connection.execute("vacuum analyze")
            connection.execute("checkpoint")

        def config(pipeline: str, into: str) -> dict[str, object]:
            found = harness.config(database, pipeline)
            if destination == "postgres":
                found["destination"] = {"type": "postgres", "dsn": harness.server.dsn(into)}
            return found

        def measured(kind: str, task: dict[str, object]) -> Measurement:
            cpu_s = servers_cpu_s_of(harness.server)
            found = harness.run_worker({"kind": kind, "config": task})
            cpu_s = servers_cpu_s_of(harness.server) - cpu_s + found["cpu_s"]
            if kind == "compare" and (found["result"], found["rows"]) != ("equal", rows):
                raise BenchmarkFailed(
                    f"{found['result']}, of {found['rows']} rows: {found['reason']}"
                )
            return Measurement(rows, found["seconds"], cpu_s, found["peak_rss_mb"])

        with harness.worker({"kind": "serve", "config": config("served", other)}) as pipeline:
            assert pipeline.stdout is not None
            if pipeline.stdout.readline().strip() != "ready":
                raise BenchmarkFailed("the pipeline did not catch up")
            for _ in range(rounds):
                with harness.database(f"{name}_copied") as into:
                    copies.append(measured("copy", config("copied", into)))
                harness.file(database, "copied").unlink(missing_ok=True)
                compares.append(measured("compare", config("served", other)))
            pipeline.communicate()
    return Compared(
        statistics.median(each.seconds for each in copies),
        statistics.median(each.cpu_s for each in copies),
        statistics.median(each.seconds for each in compares),
        statistics.median(each.cpu_s for each in compares),
        max(each.peak_rss_mb for each in compares),
    )
