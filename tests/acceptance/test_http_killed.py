"""Sender and server are killed at random moments while rows change at random; what the server then
has is what the source has."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from etl_dagster.assembly import build_store
from etl_dagster.config import parse_config
from etl_dagster.lsn import Lsn
from etl_dagster.model.json_values import row_from_json
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.states import Errored, Ready, TimedRetry
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.source.catalog import emit_marker
from tests.support.database import Database
from tests.support.receiver import Receiver

ROWS = 2000
TABLES = {
    "orders": "id bigint primary key, amount numeric(12,2), note text, made timestamptz",
    "documents": "id int primary key, title text, body text",
    "prices": "sku text, region int, price float8, primary key (sku, region)",
    #: Without a key, the whole row identifies it.
    "visits": "page text, n int8, made timestamp",
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_server_has_what_the_source_has_though_both_sides_are_killed(
    newest_database: Database, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    _create_tables(newest_database.dsn)
    config = _config(newest_database.dsn)
    store = build_store(parse_config(config, {}))
    with (
        closing(store),  # type: ignore[type-var]
        Receiver(tmp_path, "--chaos", "0.02", "--hmac-secret", "hush") as receiver,
        Sender(
            {
                "config": config,
                "kind": "http",
                "settings": {
                    "url": receiver.url,
                    "hmac_secret": "hush",
                    "gzip": True,
                    "timeout_s": 5,
                    "max_body_bytes": 30_000,
                },
            },
            tmp_path,
        ) as sender,
        _workload(newest_database.dsn, rng.randrange(2**32)) as workload,
    ):
        for kills in (3, 5):  # while tables are copied, and then while changes are streamed
            while sender.kills < kills or receiver.kills < kills:
                receiver.start()
                sender.start()
                # Something happened, or all is idle: the moment after is what is random.
                store.wait_for_change(2)
                time.sleep(rng.uniform(0, 0.7))
                both: list[Sender | Receiver] = [sender, receiver]
                rng.choice([side for side in both if side.kills < kills]).kill()
            _run_until_caught_up(store, newest_database.dsn, sender, receiver)
        workload.stop()
        _run_until_caught_up(store, newest_database.dsn, sender, receiver)
        _assert_in_step(store, newest_database.dsn, receiver)
        doubled = [change for change, n in Counter(receiver.changelog()).items() if n > 1]
        assert doubled == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_forty_lines_survive_a_server_that_is_killed(
    newest_database: Database, tmp_path: Path
) -> None:
    """The destination and the receiver of the tutorial."""
    assert len(Path("tests/support/forty_lines.py").read_text().splitlines()) <= 40
    rng = random.Random()
    _create_tables(newest_database.dsn)
    config = _config(newest_database.dsn)
    store = build_store(parse_config(config, {}))
    with (
        closing(store),  # type: ignore[type-var]
        Receiver(tmp_path, module="dying_receiver") as receiver,
        Sender(
            {"config": config, "kind": "forty_lines", "settings": {"url": receiver.url}}, tmp_path
        ) as sender,
        _workload(newest_database.dsn, rng.randrange(2**32)) as workload,
    ):
        while receiver.kills < 4 or receiver.starts < 9:
            receiver.start()
            sender.start()
            store.wait_for_change(1)
            time.sleep(rng.uniform(0, 0.4))
            if rng.random() < 0.5:
                receiver.kill()
        workload.stop()
        _run_until_caught_up(store, newest_database.dsn, sender, receiver)
        assert sender.starts == 1
        _assert_in_step(store, newest_database.dsn, receiver)


class Sender:
    """A pipeline in a process of its own."""

    def __init__(self, task: dict[str, Any], folder: Path) -> None:
        self._task = task
        self._log = (folder / "sender.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0
        self.starts = 0

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def start(self) -> None:
        """Start it unless it lives."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.http_worker"],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._task).encode() + b"\n")
        self._process.stdin.close()
        self.starts += 1

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self.kills += self._process.wait() == -signal.SIGKILL


def _run_until_caught_up(
    store: CoordinatingStore, dsn: str, sender: Sender, receiver: Receiver
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        goal = emit_marker(connection)
    while not _is_caught_up(store, goal):
        receiver.start()
        sender.start()
        store.wait_for_change(0.5)
    receiver.start()


def _is_caught_up(store: CoordinatingStore, goal: Lsn) -> bool:
    states = store.get_table_replication_states()
    for state in states.values():
        if isinstance(state, Errored):
            assert isinstance(state.retry, TimedRetry), state.reason
    progress = store.get_replication_progress(ApplyWorker())
    are_ready = len(states) == len(TABLES) and all(
        isinstance(state, Ready) for state in states.values()
    )
    return are_ready and progress is not None and progress >= goal


# -- comparing -----------------------------------------------------------------------------------


def _assert_in_step(store: CoordinatingStore, dsn: str, receiver: Receiver) -> None:
    store.load_table_schemas()
    schemas = {schema.table_name: schema for schema in store.get_table_schemas()}
    assert schemas.keys() == TABLES.keys()
    for name, schema in schemas.items():
        arrived = receiver.rows(schema.name)
        assert arrived is not None
        found = _content(row_from_json(schema.columns, row) for row in arrived)
        assert found == _source_content(dsn, schema), name


def _source_content(dsn: str, schema: TableSchema) -> Counter[tuple[tuple[str, Any], ...]]:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        statement = sql.SQL("select * from {}").format(sql.Identifier(schema.table_name))
        return _content(connection.execute(statement).fetchall())


def _content(rows: Iterable[dict[str, Any]]) -> Counter[tuple[tuple[str, Any], ...]]:
    return Counter(tuple(sorted(row.items())) for row in rows)


# -- the source ----------------------------------------------------------------------------------


def _config(dsn: str) -> dict[str, Any]:
    return {
        "pipeline": "shop",
        "source": {"dsn": dsn, "publication": "etl_pub"},
        "destination": {"type": "memory"},  # stands in for the one that the worker makes
        "batch": {"max_fill_ms": 50},
        "copy": {"chunk_rows": 500, "max_connections_per_table": 2},
        "retry": {"initial_delay_ms": 100, "max_delay_ms": 1000, "max_attempts": 100},
    }


def _create_tables(dsn: str) -> None:
    rng = random.Random(0)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table, columns in TABLES.items():
            connection.execute(
                sql.SQL("create table {} ({})").format(sql.Identifier(table), sql.SQL(columns))
            )
            with connection.cursor().copy(
                sql.SQL("copy {} from stdin").format(sql.Identifier(table))
            ) as copy:
                for number in range(ROWS):
                    copy.write_row(_row(table, number, rng))
        connection.execute("alter table documents alter column body set storage external")
        connection.execute("alter table visits replica identity full")
        connection.execute("create publication etl_pub for all tables")
        connection.execute("analyze")


def _row(table: str, number: int, rng: random.Random) -> list[Any]:
    match table:
        case "orders":
            return [number, rng.randrange(10**6) / 100, f"nöte {number}", "2024-05-01 12:00+02"]
        case "documents":
            return [number, f"title {number}", rng.choice("abcdef") * rng.randrange(10, 4000)]
        case "prices":
            return [f"sku {number}", rng.randrange(3), rng.random()]
        case _:
            return [rng.choice(["/", "/cart"]), rng.randrange(50), "2024-05-01 12:00"]


class Workload:
    """Changes rows in a thread until it is stopped."""

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
                    for _ in range(self._rng.choice([1, 1, 2, 5, 20, 200])):
                        self._change(connection)
                    if self._rng.random() < 0.1:
                        connection.rollback()
                    else:
                        connection.commit()
                    self._stop.wait(self._rng.uniform(0, 0.1))
        except BaseException as failure:
            self._failure = failure

    def _change(self, connection: psycopg.Connection[Any]) -> None:
        table = self._rng.choice(list(TABLES))
        kinds = ["insert", "update", "delete", "key", "truncate"]
        [kind] = self._rng.choices(kinds, [40, 40, 15, 5, 0.03])
        number, new = self._rng.randrange(self._next), self._next
        self._next += kind in ("insert", "key")
        name = sql.Identifier(table)
        if kind == "insert":
            values = _row(table, new, self._rng)
            places = sql.SQL(", ").join(sql.Placeholder() * len(values))
            connection.execute(sql.SQL("insert into {} values ({})").format(name, places), values)
        elif kind == "truncate":
            connection.execute(sql.SQL("truncate {}").format(name))
        elif statement := _STATEMENTS.get((kind, table)):
            large = self._rng.choice("xyz") * self._rng.randrange(2500, 4000)
            values_by_name = {"number": number, "new": new, "large": large, "n": number % 50}
            if isinstance(statement, tuple):
                statement = self._rng.choice(statement)
            connection.execute(statement, values_by_name)


#: A row of `visits` is one of several equal ones; each change is of one of these.
_ONE_VISIT = "(select ctid from visits where n = %(n)s limit 1)"
_STATEMENTS: dict[tuple[str, str], Any] = {
    ("update", "orders"): "update orders set amount = amount + 1 where id = %(number)s",
    ("update", "documents"): (
        # The first leaves a large value as it is, so that Postgres doesn't send it.
        "update documents set title = title || '.' where id = %(number)s",
        "update documents set body = %(large)s where id = %(number)s",
    ),
    ("update", "prices"): "update prices set price = random() where sku = 'sku ' || %(number)s",
    ("update", "visits"): f"update visits set page = page || '+' where ctid = {_ONE_VISIT}",
    ("delete", "orders"): "delete from orders where id = %(number)s",
    ("delete", "documents"): "delete from documents where id = %(number)s",
    ("delete", "prices"): "delete from prices where sku = 'sku ' || %(number)s",
    ("delete", "visits"): f"delete from visits where ctid = {_ONE_VISIT}",
    ("key", "orders"): "update orders set id = %(new)s where id = %(number)s",
    ("key", "documents"): "update documents set id = %(new)s where id = %(number)s",
    ("key", "prices"): "update prices set sku = 'sku ' || %(new)s where sku = 'sku ' || %(number)s",
}


@contextmanager
def _workload(dsn: str, seed: int) -> Iterator[Workload]:
    workload = Workload(dsn, seed)
    try:
        yield workload
    finally:
        workload.stop()
