"""Workers are killed at random moments while rows change at random; nothing is lost or doubled."""

from __future__ import annotations

import importlib.util
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import parse_config
from etl_dagster.demo.server import EmbeddedPostgres
from tests.support.database import Database
from tests.support.killed_workers import (
    Workers,
    destination_rows,
    query_destination,
    source_rows,
    task_of,
)
from tests.support.random_shop import (
    TABLES,
    create_tables,
    workload,
)

#: Of all workers, and of each kind of them.
KILLS: Mapping[str, tuple[int, int]] = {
    "duckdb": (24, 5),
    # Its workers take longer to start.
    "ducklake": (12, 4),
    "postgres": (24, 5),
}
ROWS = 6000


@pytest.fixture(params=KILLS)
def destination(
    request: pytest.FixtureRequest, newest_server: EmbeddedPostgres, tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """The section of the configuration."""
    if request.param == "duckdb":
        yield {"type": "duckdb", "path": str(tmp_path / "shop.duckdb"), "changelog": True}
    elif request.param == "ducklake":
        if importlib.util.find_spec("duckdb_extension_ducklake") is None:
            pytest.skip("`make test-ducklake` runs it, with the DuckDB that DuckLake is there for")
        with Database.create(newest_server) as catalog:
            files = str(tmp_path / "files")
            yield {
                "type": "ducklake",
                "catalog": catalog.dsn,
                "data_path": files,
                "changelog": True,
                "inline_rows": 100,
            }
    else:
        with Database.create(newest_server) as replica:
            yield {"type": "postgres", "dsn": replica.dsn, "changelog": True}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_random_changes_arrive_exactly_once_though_workers_are_killed(
    newest_database: Database, destination: dict[str, Any], tmp_path: Path
) -> None:
    dsn = newest_database.dsn
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    create_tables(dsn, ROWS)
    task = task_of(dsn, destination)
    kills, kills_of_each = KILLS[destination["type"]]
    config = parse_config(task["config"], {})
    store = build_store(config)
    with (
        workload(dsn, rng.randrange(2**32), ROWS) as changes,
        Workers(task, store, tmp_path) as workers,
    ):
        while sum(workers.kills.values()) < kills or min(workers.kills.values()) < kills_of_each:
            workers.keep_alive()
            # Something happened, or the workers are idle: the moment after is what is random.
            store.wait_for_change(5)
            time.sleep(rng.uniform(0, 1))
            workers.kill_one(rng)
            if workers.kills["copy"] < kills_of_each:
                workers.have_something_copied(rng)
        changes.stop()
        workers.run_until_caught_up(dsn)
    store.close()
    for table in TABLES:
        assert destination_rows(config, table) == source_rows(dsn, table), table
    doubled = query_destination(
        config,
        "select table_id, commit_lsn, ordinal, count(*) from _etl.changelog"
        " group by table_id, commit_lsn, ordinal having count(*) > 1",
    )
    assert doubled == []
