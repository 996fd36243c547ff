"""A pipeline into Postgres through dlt is killed at random moments; what is there in the end is
what the source has, each key once."""

from __future__ import annotations

import random
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import parse_config
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.source.catalog import emit_marker
from tests.support.database import Database
from tests.support.dlt_warehouse import uri, warehouse_of
from tests.support.random_shop import create_tables, is_caught_up, workload
from tests.support.worker_process import WorkerProcess

pytest.importorskip("dlt")

ROWS = 500
#: Those of the shop's tables that have a key.
TABLES = ("orders", "documents", "prices")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_warehouse_has_what_the_source_has_though_loads_are_killed(
    newest_database: Database, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    create_tables(newest_database.dsn, ROWS)
    newest_database.execute(
        "drop publication etl_pub", f"create publication etl_pub for table {', '.join(TABLES)}"
    )
    with warehouse_of(newest_database) as warehouse:
        config = {
            "pipeline": "shop",
            "source": {"dsn": newest_database.dsn, "publication": "etl_pub"},
            "destination": {
                "type": "dlt",
                "destination": "postgres",
                "credentials": uri(warehouse),
                "work_folder": str(tmp_path / "packages"),
            },
            "batch": {"max_fill_ms": 50, "max_in_flight": 3},
            "retry": {"initial_delay_ms": 100, "max_delay_ms": 1000, "max_attempts": 100},
        }
        with (
            closing(build_store(parse_config(config, {}))) as store,  # type: ignore[type-var]
            WorkerProcess("tests.support.dlt_worker", config, tmp_path) as worker,
        ):
            # While tables are copied, and then while changes are streamed: under keys of their own.
            for kills, first_key in ((2, ROWS), (5, 10 * ROWS)):
                with workload(newest_database.dsn, rng.randrange(2**32), first_key):
                    while worker.kills < kills:
                        worker.start()
                        # Something happened, or all is idle: the moment after is what is random.
                        store.wait_for_change(10)
                        time.sleep(rng.uniform(0, 1.5))
                        worker.kill()
                _run_until_caught_up(store, newest_database.dsn, worker)
            for table in TABLES:
                statement = f"select * from public.{table}"
                there = _rows(warehouse, statement, without="_etl_deleted")
                assert there == _rows(newest_database.dsn, statement), table
        worker.kill()
        left = [path for path in (tmp_path / "packages" / "shop").iterdir() if path.is_dir()]
        assert len(left) <= 1, "what killed processes left is removed by the next one"


def _run_until_caught_up(store: CoordinatingStore, dsn: str, worker: WorkerProcess) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        goal = emit_marker(connection)
    while not is_caught_up(store, goal, len(TABLES)):
        worker.start()
        store.wait_for_change(0.5)


def _rows(dsn: str, statement: str, without: str = "") -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        assert cursor.description is not None
        places = [place for place, c in enumerate(cursor.description) if c.name != without]
        found = [tuple(row[place] for place in places) for row in cursor.fetchall()]
    return sorted(found, key=repr)
