"""Workers are killed at random moments while rows change at random; nothing is lost or doubled."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.destinations.duckdb import query
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Errored, Ready, TimedRetry
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.runtime.table_syncs import is_sync_due
from etl_dagster.source.catalog import emit_marker
from tests.support.database import Database

KILLS = 24
ROWS = 6000
TABLES = {
    "orders": "id bigint primary key, amount numeric(12,2), note text, made timestamptz",
    "documents": "id int primary key, title text, body text",
    "prices": "sku text, region int, price float8, primary key (sku, region)",
    "events": "kind text, payload jsonb, made timestamp",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_random_changes_arrive_exactly_once_though_workers_are_killed(
    newest_database: Database, tmp_path: Path
) -> None:
    dsn = newest_database.dsn
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    _create_tables(dsn)
    task = _task(dsn, tmp_path)
    config = parse_config(task["config"], {})
    store = build_store(config)
    with _workload(dsn, rng.randrange(2**32)) as workload, Workers(task, tmp_path) as workers:
        while sum(workers.kills.values()) < KILLS:
            workers.keep_alive(store)
            # Something happened, or the workers are idle: the moment after is what is random.
            store.wait_for_change(5)
            time.sleep(rng.uniform(0, 1))
            workers.kill_one(rng)
        assert min(workers.kills.values()) >= 5, workers.kills
        workload.stop()
        workers.run_until_caught_up(store, dsn)
    store.close()
    for table in TABLES:
        assert _destination_rows(config, table) == _source_rows(dsn, table), table
    doubled = _query(
        config,
        "select table_id, commit_lsn, ordinal, count(*) from _etl.changelog"
        " group by all having count(*) > 1",
    )
    assert doubled == []


class Workers:
    """The pipeline and a process for each table that needs one, started again when they end."""

    def __init__(self, task: dict[str, Any], folder: Path) -> None:
        self._task = task
        self._log = (folder / "workers.log").open("ab")
        self._processes: dict[int | None, subprocess.Popen[bytes]] = {}
        self.kills = {"pipeline": 0, "copy": 0}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._log.close()

    def keep_alive(self, store: CoordinatingStore) -> None:
        self._start(None)
        for table_id, state in store.get_table_replication_states().items():
            if is_sync_due(state):
                self._start(table_id)

    def _start(self, table_id: int | None) -> None:
        process = self._processes.get(table_id)
        if process is not None and process.poll() is None:
            return
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.worker"],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdin is not None
        task = self._task if table_id is None else {**self._task, "table_id": table_id}
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.close()
        self._processes[table_id] = process

    def kill_one(self, rng: random.Random) -> None:
        living = {t: p for t, p in self._processes.items() if p.poll() is None}
        copying = [table_id for table_id in living if table_id is not None]
        # The copies end soon, so they come first.
        victim = rng.choice(copying if copying and rng.random() < 0.7 else [None])
        if victim not in living:
            return
        living[victim].send_signal(signal.SIGKILL)
        assert living[victim].wait() == -signal.SIGKILL
        self.kills["pipeline" if victim is None else "copy"] += 1

    def run_until_caught_up(self, store: CoordinatingStore, dsn: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            goal = emit_marker(connection)
        while not self._is_caught_up(store, goal):
            self.keep_alive(store)
            store.wait_for_change(0.5)

    @staticmethod
    def _is_caught_up(store: CoordinatingStore, goal: Lsn) -> bool:
        states = store.get_table_replication_states()
        for state in states.values():
            if isinstance(state, Errored):
                assert isinstance(state.retry, TimedRetry), state.reason
        progress = store.get_replication_progress(ApplyWorker())
        assert len(states) <= len(TABLES)
        are_ready = len(states) == len(TABLES) and all(
            isinstance(state, Ready) for state in states.values()
        )
        return are_ready and progress is not None and progress >= goal


# -- the source ----------------------------------------------------------------------------------


def _create_tables(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table, columns in TABLES.items():
            connection.execute(
                sql.SQL("create table {} ({})").format(sql.Identifier(table), sql.SQL(columns))
            )
        connection.execute("alter table documents alter column body set storage external")
        connection.execute("alter table events replica identity full")
        connection.execute("create publication etl_pub for all tables")
        rng = random.Random(0)
        for table in TABLES:
            with connection.cursor().copy(
                sql.SQL("copy {} from stdin").format(sql.Identifier(table))
            ) as copy:
                for number in range(ROWS):
                    copy.write_row(_row(table, number, rng))
        connection.execute("analyze")


def _row(table: str, number: int, rng: random.Random) -> list[Any]:
    match table:
        case "orders":
            return [number, rng.randrange(10**6) / 100, f"note {number}", "2024-05-01 12:00+02"]
        case "documents":
            return [number, f"title {number}", rng.choice("abcdef") * rng.randrange(100, 6000)]
        case "prices":
            return [f"sku {number}", rng.randrange(3), rng.random()]
        case _:
            return [rng.choice(["view", "click"]), json.dumps({"n": number}), "2024-05-01 12:00"]


class _Workload:
    def __init__(self, dsn: str, seed: int) -> None:
        self._dsn = dsn
        self._rng = random.Random(seed)
        self._next = ROWS
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with psycopg.connect(self._dsn) as connection:
                while not self._stop.is_set():
                    for _ in range(self._rng.choice([1, 1, 2, 5, 20, 300])):
                        self._change(connection)
                    if self._rng.random() < 0.1:
                        connection.rollback()
                    else:
                        connection.commit()
                    self._stop.wait(self._rng.uniform(0, 0.05))
        except BaseException as failure:
            self._failure = failure

    def _change(self, connection: psycopg.Connection[Any]) -> None:
        rng = self._rng
        number, other = rng.randrange(self._next), self._next
        table = rng.choice(list(TABLES))
        kind = rng.choices(
            ["insert", "update", "delete", "key", "truncate"], [40, 40, 15, 5, 0.02]
        )[0]
        self._next += kind in ("insert", "key")
        match kind, table:
            case "truncate", _:
                connection.execute(sql.SQL("truncate {}").format(sql.Identifier(table)))
            case "insert", _:
                values = _row(table, other, rng)
                connection.execute(
                    sql.SQL("insert into {} values ({})").format(
                        sql.Identifier(table), sql.SQL(", ").join(sql.Placeholder() * len(values))
                    ),
                    values,
                )
            case "update", "orders":
                connection.execute("update orders set amount = amount + 1 where id = %s", [number])
            case "update", "documents" if rng.random() < 0.8:
                # Leaves a TOAST value as it is: Postgres doesn't send it.
                connection.execute(
                    "update documents set title = title || '.' where id = %s", [number]
                )
            case "update", "documents":
                body = rng.choice("xyz") * rng.randrange(2500, 6000)
                connection.execute("update documents set body = %s where id = %s", [body, number])
            case "update", "prices":
                connection.execute(
                    "update prices set price = random() where sku = %s", [f"sku {number}"]
                )
            case "update", _:
                connection.execute(
                    "update events set kind = 'seen' where payload->>'n' = %s", [str(number)]
                )
            case "delete", "events":
                connection.execute("delete from events where payload->>'n' = %s", [str(number)])
            case "delete", "prices":
                connection.execute("delete from prices where sku = %s", [f"sku {number}"])
            case "delete", _:
                connection.execute(
                    sql.SQL("delete from {} where id = %s").format(sql.Identifier(table)), [number]
                )
            case "key", "events":
                pass
            case "key", "prices":
                connection.execute(
                    "update prices set sku = %s where sku = %s", [f"sku {other}", f"sku {number}"]
                )
            case "key", _:
                connection.execute(
                    sql.SQL("update {} set id = %s where id = %s").format(sql.Identifier(table)),
                    [other, number],
                )


@contextmanager
def _workload(dsn: str, seed: int) -> Iterator[_Workload]:
    workload = _Workload(dsn, seed)
    try:
        yield workload
    finally:
        workload.stop()


# -- comparing -----------------------------------------------------------------------------------

#: Both databases print these the same.
_AS_TEXT = {
    "orders": "id::text, amount::text, note, extract(epoch from made)::bigint::text",
    "documents": "id::text, title, body",
    "prices": "sku, region::text, (price * 1e9)::bigint::text",
    "events": "kind, replace(payload::text, ' ', ''), extract(epoch from made)::bigint::text",
}


def _source_rows(dsn: str, table: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return sorted(connection.execute(f"select {_AS_TEXT[table]} from {table}").fetchall())


def _destination_rows(config: PipelineConfig, table: str) -> list[tuple[Any, ...]]:
    return sorted(_query(config, f"select {_AS_TEXT[table]} from public.{table}"))


def _query(config: PipelineConfig, statement: str) -> list[tuple[Any, ...]]:
    assert config.destination.type == "duckdb"
    return [tuple(row.values()) for row in query(config.destination.path, statement).to_pylist()]


def _task(dsn: str, folder: Path) -> dict[str, Any]:
    return {
        "config": {
            "pipeline": "shop",
            "source": {"dsn": dsn, "publication": "etl_pub"},
            "destination": {
                "type": "duckdb",
                "path": str(folder / "shop.duckdb"),
                "changelog": True,
            },
            "batch": {"max_fill_ms": 50},
            "copy": {"chunk_rows": 500, "max_connections_per_table": 2},
            "retry": {"initial_delay_ms": 100, "max_delay_ms": 1000, "max_attempts": 100},
        }
    }
