"""Workers are killed at random moments while rows change at random; nothing is lost or doubled.

Other destinations, and much else that goes wrong: `tests.acceptance.test_chaos`.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

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
from tests.support.random_shop import TABLES, create_tables, workload

#: Of all workers, and of each kind of them.
KILLS, KILLS_OF_EACH = 7, 2
ROWS = 6000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_random_changes_arrive_exactly_once_though_workers_are_killed(
    newest_database: Database, newest_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    dsn = newest_database.dsn
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    create_tables(dsn, ROWS)
    with Database.create(newest_server) as catalog:
        destination = {
            "type": "ducklake",
            "catalog": catalog.dsn,
            "data_path": str(tmp_path / "files"),
            "changelog": True,
            "inline_rows": 100,
        }
        task = task_of(dsn, destination)
        config = parse_config(task["config"], {})
        store = build_store(config)
        with (
            workload(dsn, rng.randrange(2**32), ROWS) as changes,
            Workers(task, [store], tmp_path) as workers,
        ):
            while (
                sum(workers.kills.values()) < KILLS or min(workers.kills.values()) < KILLS_OF_EACH
            ):
                workers.keep_alive()
                # Something happened, or the workers are idle: the moment after is what is random.
                store.wait_for_change(5)
                time.sleep(rng.uniform(0, 1))
                workers.kill_one(rng)
                if workers.kills["copy"] < KILLS_OF_EACH:
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
