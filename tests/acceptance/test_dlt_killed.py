"""A pipeline through dlt is killed at random moments. A mirror then has what the source has, each
key once; a log has each change once, and they lead to what the source has."""

from __future__ import annotations

import json
import random
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
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
#: Those of the shop's tables that have a key, and the key.
TABLES = {"orders": ("id",), "documents": ("id",), "prices": ("sku", "region")}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_warehouse_has_what_the_source_has_though_loads_are_killed(
    newest_database: Database, tmp_path: Path
) -> None:
    with warehouse_of(newest_database) as warehouse:
        destination = {"destination": "postgres", "credentials": uri(warehouse)}
        run_and_kill(newest_database, tmp_path, destination, kills=(1, 3))
        for table in TABLES:
            statement = f"select * from public.{table}"
            there = _rows(warehouse, statement, without="_etl_deleted")
            assert there == _rows(newest_database.dsn, statement), table
    left = [path for path in (tmp_path / "packages" / "shop").iterdir() if path.is_dir()]
    assert len(left) <= 1, "what killed processes left is removed by the next one"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_log_in_plain_files_has_each_change_once_though_loads_are_killed(
    newest_database: Database, tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"
    destination = {"destination": "filesystem", "options": {"bucket_url": bucket.as_uri()}}
    run_and_kill(newest_database, tmp_path, destination, kills=(1, 3), mode="append")

    for table, key in TABLES.items():
        log = duckdb.read_parquet(str(bucket / "public" / table / "*.parquet"), union_by_name=True)
        entries = log.order("_etl_commit_lsn, _etl_ordinal").to_arrow_table().to_pylist()
        places = [(e["_etl_commit_lsn"], e["_etl_ordinal"]) for e in entries]
        changes = [p for p, e in zip(places, entries, strict=True) if e["_etl_op"] != "copy"]
        assert len(set(changes)) == len(changes), table
        copied = [e for e in entries if e["_etl_op"] == "copy"]
        assert len({tuple(e[name] for name in key) for e in copied}) == len(copied), table
        now = [tuple(row.values()) for row in replayed(entries, key).values()]
        there = _rows(newest_database.dsn, f"select * from public.{table}")
        assert sorted(now, key=repr) == there, table


def replayed(
    entries: list[dict[str, Any]], key: tuple[str, ...]
) -> dict[tuple[str, ...], dict[str, Any]]:
    """The rows that changes lead to, by their keys as text."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for entry in entries:
        row = {name: value for name, value in entry.items() if not name.startswith("_etl_")}
        before = json.loads(entry["_etl_before"] or "null")
        if before is not None:
            rows.pop(tuple(str(before[name]) for name in key), None)
        if entry["_etl_op"] == "truncate":
            rows.clear()
        elif entry["_etl_op"] != "delete":
            rows[tuple(str(row[name]) for name in key)] = row
    return rows


def run_and_kill(
    database: Database,
    folder: Path,
    destination: dict[str, Any],
    *,
    kills: tuple[int, int],
    **settings: Any,
) -> None:
    """Run a pipeline until it has caught up, killed some times while rows change.

    Args:
        kills: how often while tables are copied, and how often altogether.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    create_tables(database.dsn, ROWS)
    database.execute(
        # A log in files is not asked for values that Postgres doesn't send.
        f"alter table documents replica identity {'full' if settings else 'default'}",
        "drop publication etl_pub",
        f"create publication etl_pub for table {', '.join(TABLES)}",
    )
    config = {
        "pipeline": "shop",
        "source": {"dsn": database.dsn, "publication": "etl_pub"},
        "destination": {"type": "dlt", "work_folder": str(folder / "packages"), **destination},
        "batch": {"max_fill_ms": 50, "max_in_flight": 3},
        "retry": {"initial_delay_ms": 100, "max_delay_ms": 1000, "max_attempts": 100},
        **settings,
    }
    with (
        closing(build_store(parse_config(config, {}))) as store,  # type: ignore[type-var]
        WorkerProcess("tests.support.dlt_worker", config, folder) as worker,
    ):
        # While tables are copied, and then while changes are streamed: under keys of their own.
        for until, first_key in zip(kills, (ROWS, 10 * ROWS), strict=True):
            with workload(database.dsn, rng.randrange(2**32), first_key):
                while worker.kills < until:
                    worker.start()
                    # Something happened, or all is idle: the moment after is what is random.
                    store.wait_for_change(10)
                    time.sleep(rng.uniform(0, 1.5))
                    worker.kill()
            _run_until_caught_up(store, database.dsn, worker)
        worker.kill()


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
