"""A pipeline with several destinations is killed, and its connections are: each has all, once."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.destinations.duckdb import query
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.source.catalog import emit_marker
from tests.acceptance.test_killed_workers import _AS_TEXT, _source_rows
from tests.support.database import Database
from tests.support.random_shop import TABLES, create_tables, is_caught_up, workload
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess

BLOWS, ROWS = 8, 2000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_random_changes_arrive_exactly_once_at_every_destination(
    newest_database: Database, tmp_path: Path
) -> None:
    dsn = newest_database.dsn
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    create_tables(dsn, ROWS)
    settings = _settings(dsn, tmp_path)
    members = parse_config(settings, {}).members()
    stores = {name: build_store(member) for name, member in members.items()}
    blows = {"kill": 0, "reader": 0}
    with (
        workload(dsn, rng.randrange(2**32), ROWS) as changes,
        WorkerProcess("tests.support.worker", {"config": settings}, tmp_path) as it,
    ):
        while sum(blows.values()) < BLOWS or not all(blows.values()):
            it.start()
            stores["left"].wait_for_change(5)
            time.sleep(rng.uniform(0, 2))
            blow = rng.choice([*blows])
            blows[blow] += 1
            if blow == "kill":
                it.kill()
            else:
                _end_a_reader(newest_database, rng)
        changes.stop()
        it.start()
        _wait_until_caught_up(it, stores, dsn)
        # Whoever was set aside has returned, and left no slot behind.
        wait_until(lambda: newest_database.slots() == ["etl_dagster_apply_shop"])
    for name, member in members.items():
        for table in TABLES:
            assert _rows(member, table) == _source_rows(dsn, table), (name, table)
        doubled = _query(
            member,
            "select table_id, commit_lsn, ordinal, count(*) from _etl.changelog"
            " group by table_id, commit_lsn, ordinal having count(*) > 1",
        )
        assert doubled == [], name


def _end_a_reader(database: Database, rng: random.Random) -> None:
    """End the connection that reads one of the slots."""
    pids = database.query(
        "select active_pid from pg_replication_slots where database = %s and active_pid is not null"
        " order by slot_name",
        [database.name],
    )
    if pids:
        database.query("select pg_terminate_backend(%s)", rng.choice(pids))


def _wait_until_caught_up(
    process: WorkerProcess, stores: Mapping[str, CoordinatingStore], dsn: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        goal = emit_marker(connection)
    for store in stores.values():
        while not is_caught_up(store, goal):
            process.start()
            store.wait_for_change(0.5)
        with contextlib.suppress(AttributeError):
            store.close()  # type: ignore[attr-defined]


def _rows(config: PipelineConfig, table: str) -> list[tuple[Any, ...]]:
    return sorted(_query(config, f"select {_AS_TEXT[table]} from public.{table}"))


def _query(config: PipelineConfig, statement: str) -> list[tuple[Any, ...]]:
    path = Path(config.destination.place)
    return [tuple(row.values()) for row in query(path, statement).to_pylist()]


def _settings(dsn: str, folder: Path) -> dict[str, Any]:
    def places() -> Iterator[tuple[str, dict[str, Any]]]:
        for name in ("left", "right"):
            path = str(folder / f"{name}.duckdb")
            yield name, {"type": "duckdb", "path": path, "changelog": True}

    return {
        "pipeline": "shop",
        "source": {"dsn": dsn, "publication": "etl_pub"},
        "destinations": dict(places()),
        "fan_out": {"buffer": "64kB", "max_wal_behind": "1MB"},
        "batch": {"max_fill_ms": 50},
        "copy": {"chunk_rows": 500, "max_connections_per_table": 2},
        "retry": {"initial_delay_ms": 100, "max_delay_ms": 1000, "max_attempts": 100},
    }
