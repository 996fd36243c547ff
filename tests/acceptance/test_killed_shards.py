"""Two shards in two processes that are killed, and a move that is: every change arrives once."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import parse_config
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.model.states import Ready
from etl_dagster.source.catalog import emit_marker
from tests.support.database import Database
from tests.support.forked import etl_dagster
from tests.support.killed_workers import (
    destination_rows,
    query_destination,
    source_rows,
    task_of,
)
from tests.support.random_shop import TABLES, create_tables, is_caught_up, workload
from tests.support.waiting import PATIENCE_S, wait_until
from tests.support.worker_process import WorkerProcess

ROWS, KILLS, KILLED_MOVES = 300, 3, 2
#: The tables of the shard that was added, and the table that is moved there.
OTHERS, MOVED = {"documents", "prices"}, "orders"


@pytest.fixture(params=["duckdb", "postgres"])
def destination(
    request: pytest.FixtureRequest, newest_server: EmbeddedPostgres, tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """The section of the configuration."""
    if request.param == "duckdb":
        yield {"type": "duckdb", "path": str(tmp_path / "shop.duckdb"), "changelog": True}
        return
    with Database.create(newest_server) as replica:
        yield {"type": "postgres", "dsn": replica.dsn, "changelog": True}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_change_of_both_shards_arrives_once_and_a_move_loses_none(
    newest_database: Database, destination: dict[str, Any], tmp_path: Path
) -> None:
    dsn = newest_database.dsn
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    create_tables(dsn, ROWS)
    newest_database.execute(
        "drop publication etl_pub",
        f"create publication etl_pub for table {', '.join({*TABLES} - OTHERS)}",
        f"create publication others_pub for table {', '.join(OTHERS)}",
    )
    raw = task_of(dsn, destination)["config"] | {
        "shards": {"others": {"publication": "others_pub"}}
    }
    (tmp_path / "etl.yaml").write_text(json.dumps(raw))
    shards = parse_config(raw, {}).members()
    with ExitStack() as stack:
        stores = {name: build_store(config) for name, config in shards.items()}
        for store in stores.values():
            stack.callback(store.close)  # type: ignore[attr-defined]
        workers = {
            name: stack.enter_context(
                WorkerProcess(
                    "tests.support.worker",
                    {"config": raw, "shard": name, "copies": "own"},
                    tmp_path,
                    name,
                )
            )
            for name in shards
        }

        def run_until_caught_up(counts: dict[str, int]) -> None:
            with psycopg.connect(dsn, autocommit=True) as connection:
                goal = emit_marker(connection)
            while not all(is_caught_up(stores[n], goal, counts[n]) for n in shards):
                for each in workers.values():
                    each.start()
                time.sleep(0.1)

        def kill_some() -> None:
            for _ in range(KILLS):
                for each in workers.values():
                    each.start()
                time.sleep(rng.uniform(0.3, 1.5))
                rng.choice([*workers.values()]).kill()

        with workload(dsn, rng.randrange(2**32), ROWS, pause_s=0.1) as changes:
            kill_some()
            run_until_caught_up({"shop": 3, "others": 2})
            copied = _copy_of(newest_database, shards["shop"])
            for each in workers.values():
                each.kill()
            for number in range(KILLED_MOVES + 1):
                # What a worker that was killed has held is free in a moment.
                is_last = number == KILLED_MOVES
                wait_until(lambda last=is_last: _move(tmp_path, None if last else rng))  # type: ignore[misc]
            kill_some()
            changes.stop()
            run_until_caught_up({"shop": 2, "others": 3})
        assert all(
            isinstance(state, Ready)
            for store in stores.values()
            for state in store.get_table_replication_states().values()
        )
        assert _copy_of(newest_database, shards["others"]) == copied
        for table in TABLES:
            found = destination_rows(shards["shop"], table)
            assert found == source_rows(dsn, table), table
        doubled = query_destination(
            shards["shop"],
            "select table_id, commit_lsn, ordinal, count(*) from _etl.changelog"
            " group by table_id, commit_lsn, ordinal having count(*) > 1",
        )
        assert doubled == []
        assert [name for name in newest_database.slots() if "sync" in name] == []


def _move(folder: Path, rng: random.Random | None) -> bool:
    """Whether the move was done or, after a moment by the random numbers, killed."""
    with etl_dagster("move", f"public.{MOVED}", "--to", "others", "--yes", cwd=folder) as process:
        if rng is not None:
            time.sleep(rng.uniform(0.2, 2.5))
            process.kill()
            process.wait()
            return True
        out, err = process.communicate(timeout=PATIENCE_S)
        print(out, err)
        return process.returncode == 0 or "has it already" in err


def _copy_of(database: Database, config: Any) -> list[tuple[Any, ...]]:
    """By which copy the destination got the table that is moved."""
    [(oid,)] = database.query("select %s::regclass::oid::bigint", [MOVED])
    return query_destination(config, f"select copy_id from _etl.copies where table_id = {oid}")
