"""Long texts within a budget: four tables copied and changed, and one large transaction at once."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from benchmarks.harness import PUBLICATION, BenchmarkFailed, Harness
from benchmarks.in_progress import wait_confirmed
from etl_dagster.lsn import Lsn

#: DuckDB keeps up to 256 MB of it for itself.
_BUDGET_MB = 512
#: Random, so that Postgres doesn't make them short.
_TEXT = """
create function long_text(length int, seed int) returns text language sql volatile as $$
  select string_agg(md5(random()::text || seed), '') from generate_series(1, length / 32)
$$
"""
_TABLE = """
create table texts_{0} (id int primary key, t text);
alter table texts_{0} alter t set storage external;
insert into texts_{0} select g, long_text({1}, g) from generate_series(1, {2}) g
"""
_INSERT = "insert into texts_{0} select g, long_text({1}, g) from generate_series({2}, {3}) g"


@dataclass(frozen=True)
class Peak:
    budget_mb: float
    peak_rss_mb: float
    seconds: float


def peak(harness: Harness) -> Peak:
    """Two tables of texts of 2 kB and two of 32 kB; as much in the large transaction as in one."""
    kinds = [(0, 2_000), (1, 2_000), (2, 32_000), (3, 32_000)]
    bytes_each = harness.scaled(400_000_000)
    rows = {number: bytes_each // length for number, length in kinds}
    fills = [_TABLE.format(number, length, rows[number]) for number, length in kinds]
    publication = f"create publication {PUBLICATION} for table texts_0, texts_1, texts_2, texts_3"
    with harness.database("memory", _TEXT, *fills, publication) as database:
        config = harness.config(database, "memory")
        config["memory"] = {"max_bytes": _BUDGET_MB * 1024**2}
        started = time.monotonic()
        with harness.worker({"kind": "serve", "config": config}) as pipeline:
            assert pipeline.stdout is not None
            with harness.connect(database) as connection:
                for number, length in kinds:
                    first = rows[number] + 1
                    for at in range(first, first + 500, 50):
                        connection.execute(_INSERT.format(number, length, at, at + 49))
                connection.execute(_INSERT.format(2, 32_000, 10**8, 10**8 + rows[2]))
            end = Lsn.parse(harness.insert_lsn(database))
            if pipeline.stdout.readline().strip() != "ready":
                raise BenchmarkFailed("the pipeline did not catch up")
            wait_confirmed(harness, database, end)
            seconds = time.monotonic() - started
            served = json.loads(pipeline.communicate()[0].splitlines()[-1])
    return Peak(_BUDGET_MB, served["peak_rss_mb"], seconds)
