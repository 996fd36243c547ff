"""A pipeline with several destinations, and its connections, are killed: each has all, once."""

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
from etl_dagster.config import parse_config
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.source.catalog import emit_marker
from etl_dagster.source.slots import apply_slot_name
from tests.acceptance.test_http_killed import _assert_in_step
from tests.support.database import Database
from tests.support.killed_workers import destination_rows, query_destination, source_rows
from tests.support.random_shop import TABLES, create_tables, is_caught_up, workload
from tests.support.receiver import Receiver
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess

ROWS = 1000
SHARED = apply_slot_name("shop")
REMOTE, REPLICA = apply_slot_name("shop__remote"), apply_slot_name("shop__replica")
#: Where the process ends by itself: steps of setting a destination aside, and of its return.
STEPS = (
    # It has a slot of its own, and the shared one still keeps all that it needs, too.
    "after shared:copy_slot",
    # It reads its own slot, and has a place in the shared stream.
    "after shared:SharedSlot.join_ahead",
    # It reads the shared stream, and still has a slot of its own.
    "before member_wire:drop_slot",
    "after member_wire:drop_slot",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_random_changes_arrive_exactly_once_at_every_destination(
    newest_database: Database, newest_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    dsn = newest_database.dsn
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    create_tables(dsn, ROWS)
    with Database.create(newest_server) as replica, Receiver(tmp_path) as receiver:
        settings = _settings(dsn, replica.dsn, receiver.url, tmp_path)
        members = parse_config(settings, {}).members()
        stores = {name: build_store(member) for name, member in members.items()}
        troubles = {"remote": _away(receiver), "replica": _locked(replica)}
        # Less than the budgets allow in the time that a return takes on a busy machine.
        with workload(dsn, rng.randrange(2**32), ROWS, pause_s=0.5) as changes:
            with _worker(settings, tmp_path) as it:
                it.start()
                _wait_until_caught_up(it, stores, dsn)
            for number, step in enumerate(STEPS):
                in_trouble = rng.choice([*troubles])
                with _worker(settings, tmp_path, step) as it:
                    it.start()
                    # A busy machine may have set one aside before; its return may be the step.
                    wait_until(lambda: not it.is_alive or not _are_aside(newest_database))
                    with troubles[in_trouble]():
                        _large_change(dsn, number)
                        _end_a_reader(newest_database, rng)
                        wait_until(lambda: not it.is_alive or bool(_are_aside(newest_database)))
                    wait_until(lambda: not it.is_alive)
            # Both are set aside, and one returns while the other one is away.
            with _worker(settings, tmp_path) as it:
                it.start()
                with troubles["replica"]():
                    with troubles["remote"]():
                        _large_change(dsn, len(STEPS))
                        wait_until(lambda: {REMOTE, REPLICA} <= {*newest_database.slots()})
                    changes.stop()
                    wait_until(lambda: REMOTE not in newest_database.slots())
                    assert REPLICA in newest_database.slots()
                _wait_until_caught_up(it, stores, dsn)
                # A destination that was set aside has returned, and left no slot behind.
                wait_until(lambda: newest_database.slots() == [SHARED])
        for name in ("file", "replica"):
            for table in TABLES:
                assert destination_rows(members[name], table) == source_rows(dsn, table), (
                    name,
                    table,
                )
            doubled = query_destination(
                members[name],
                "select table_id, commit_lsn, ordinal, count(*) from _etl.changelog"
                " group by table_id, commit_lsn, ordinal having count(*) > 1",
            )
            assert doubled == [], name
        _assert_in_step(stores["remote"], dsn, receiver)
        for store in stores.values():
            with contextlib.suppress(AttributeError):
                store.close()  # type: ignore[attr-defined]


def _worker(settings: Mapping[str, Any], folder: Path, step: str | None = None) -> WorkerProcess:
    task = {"config": settings, "ends_at": step}
    return WorkerProcess("tests.support.worker", task, folder)


def _away(receiver: Receiver) -> Any:
    @contextlib.contextmanager
    def away() -> Iterator[None]:
        receiver.kill()
        try:
            yield
        finally:
            receiver.start()

    return away


def _locked(replica: Database) -> Any:
    """One that hangs, in the middle of a large transaction."""

    @contextlib.contextmanager
    def locked() -> Iterator[None]:
        with replica.connect(autocommit=False) as connection:
            # Not one that a slot would wait for, which is made on the same server.
            connection.execute("lock table public.orders in share mode")
            yield

    return locked


def _large_change(dsn: str, number: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"alter table visits add column extra_{number} int")
        connection.execute(
            "insert into orders select %s * 1000000 + i, i, repeat('x', 400), now()"
            " from generate_series(1, 6000) i",
            [number + 1],
        )


def _are_aside(database: Database) -> list[str]:
    return [name for name in database.slots() if name.startswith(f"{SHARED}__")]


def _end_a_reader(database: Database, rng: random.Random) -> None:
    """Perhaps, end the connection that reads one of the slots."""
    pids = database.query(
        "select active_pid from pg_replication_slots where database = %s and active_pid is not null"
        " order by slot_name",
        [database.name],
    )
    if pids and rng.random() < 0.5:
        database.query("select pg_terminate_backend(%s)", rng.choice(pids))


def _wait_until_caught_up(
    process: WorkerProcess, stores: Mapping[str, CoordinatingStore], dsn: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        goal = emit_marker(connection)
    deadline = time.monotonic() + 180
    for name, store in stores.items():
        while not is_caught_up(store, goal):
            assert time.monotonic() < deadline, name
            process.start()
            store.wait_for_change(0.5)


def _settings(dsn: str, replica: str, url: str, folder: Path) -> dict[str, Any]:
    return {
        "pipeline": "shop",
        "source": {"dsn": dsn, "publication": "etl_pub"},
        "destinations": {
            "file": {"type": "duckdb", "path": str(folder / "shop.duckdb"), "changelog": True},
            "replica": {"type": "postgres", "dsn": replica, "changelog": True},
            "remote": {"type": "http", "url": url, "timeout_s": 5, "max_attempts": 1},
        },
        "fan_out": {"buffer": "512kB", "max_wal_behind": "1MB"},
        "batch": {"max_fill_ms": 50},
        "copy": {"chunk_rows": 500, "max_connections_per_table": 2},
        "retry": {"initial_delay_ms": 50, "max_delay_ms": 200, "max_attempts": 3},
    }
