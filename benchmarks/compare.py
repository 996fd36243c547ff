"""How long comparing a table with its source takes, next to a copy of the same table."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness import PUBLICATION, BenchmarkFailed, Harness
from benchmarks.streams import ORDER_ROWS, ORDERS


@dataclass(frozen=True)
class Compared:
    """Of one table, as the settings are by default."""

    copy_s: float
    copy_cpu_s: float
    compare_s: float
    compare_cpu_s: float
    peak_rss_mb: float


def compared(harness: Harness, rows: int, destination: str = "duckdb") -> Compared:
    """Copy a table of so many rows once by itself, and compare it while a pipeline streams it."""
    name = f"compare_{rows}"
    publication = f"create publication {PUBLICATION} for table orders"
    fill = ORDER_ROWS.format(first=1, last=rows)
    with (
        harness.database(name, ORDERS, fill, publication) as database,
        harness.database(f"{name}_other") as other,
    ):
        with harness.connect(database) as connection:
            connection.execute("vacuum analyze")
            connection.execute("checkpoint")

        def config(pipeline: str) -> dict[str, object]:
            found = harness.config(database, pipeline)
            if destination == "postgres":
                found["destination"] = {"type": "postgres", "dsn": harness.server.dsn(other)}
            return found

        copied = harness.run_worker({"kind": "copy", "config": config("copied")})
        harness.file(database, "copied").unlink(missing_ok=True)
        with harness.worker({"kind": "serve", "config": config("served")}) as pipeline:
            assert pipeline.stdout is not None
            if pipeline.stdout.readline().strip() != "ready":
                raise BenchmarkFailed("the pipeline did not catch up")
            found = harness.run_worker({"kind": "compare", "config": config("served")})
            pipeline.communicate()
    if (found["result"], found["rows"]) != ("equal", rows):
        raise BenchmarkFailed(f"{found['result']}, of {found['rows']} rows: {found['reason']}")
    return Compared(
        copied["seconds"], copied["cpu_s"], found["seconds"], found["cpu_s"], found["peak_rss_mb"]
    )
