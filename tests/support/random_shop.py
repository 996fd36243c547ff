"""A shop whose rows change at random, for tests that kill the processes that replicate it."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Errored, Ready, TableState, TimedRetry
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore

TABLES = {
    "orders": "id bigint primary key, amount numeric(12,2), note text, made timestamptz",
    "documents": "id int primary key, title text, body text",
    "prices": "sku text, region int, price float8, primary key (sku, region)",
    #: Without a key, the whole row identifies it; of visits there are equal ones.
    "events": "kind text, payload jsonb, made timestamp",
    "visits": "page text, n int8, made timestamp",
}


def create_tables(dsn: str, rows: int) -> None:
    """The tables, each with as many rows, and the publication ``etl_pub``."""
    rng = random.Random(0)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table, columns in TABLES.items():
            name = sql.Identifier(table)
            connection.execute(sql.SQL("create table {} ({})").format(name, sql.SQL(columns)))
            with connection.cursor().copy(sql.SQL("copy {} from stdin").format(name)) as copy:
                for number in range(rows):
                    copy.write_row(row(table, number, rng))
        connection.execute("alter table documents alter column body set storage external")
        connection.execute("alter table events replica identity full")
        connection.execute("alter table visits replica identity full")
        connection.execute("create publication etl_pub for all tables")
        # So that what is larger is sent before it commits.
        database = sql.Identifier(connection.info.dbname)
        connection.execute(
            sql.SQL("alter database {} set logical_decoding_work_mem = '64kB'").format(database)
        )
        connection.execute("analyze")


def row(table: str, number: int, rng: random.Random) -> list[Any]:
    match table:
        case "orders":
            return [number, rng.randrange(10**6) / 100, f"nöte {number}", "2024-05-01 12:00+02"]
        case "documents":
            return [number, f"title {number}", rng.choice("abcdef") * rng.randrange(10, 6000)]
        case "prices":
            return [f"sku {number}", rng.randrange(3), rng.random()]
        case "events":
            return [rng.choice(["view", "click"]), json.dumps({"n": number}), "2024-05-01 12:00"]
        case _:
            return [rng.choice(["/", "/cart"]), rng.randrange(50), "2024-05-01 12:00"]


class Workload:
    """Changes rows in a thread until it is stopped, with a pause after each transaction.

    Args:
        reconnects: whether it waits for a server that is away, and continues then.
    """

    def __init__(self, dsn: str, seed: int, rows: int, pause_s: float, reconnects: bool) -> None:
        self._dsn = dsn
        self._reconnects = reconnects
        self._pause_s = pause_s
        self._rng = random.Random(seed)
        self._next = rows
        #: Savepoints of the open transaction, all of one name.
        self._saved = 0
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
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._dsn) as connection:
                    while not self._stop.is_set():
                        self._transact(connection)
                        self._stop.wait(self._rng.uniform(0, self._pause_s))
            except psycopg.OperationalError as failure:
                if not self._reconnects:
                    self._failure = failure
                    return
                self._stop.wait(0.2)
            except BaseException as failure:
                self._failure = failure
                return

    def _transact(self, connection: psycopg.Connection[Any]) -> None:
        self._saved = 0
        for _ in range(self._rng.choice([1, 1, 2, 5, 20, 300])):
            self._change(connection)
            self._turn_savepoint(connection)
        if self._rng.random() < 0.1:
            connection.rollback()
        else:
            connection.commit()

    def _turn_savepoint(self, connection: psycopg.Connection[Any]) -> None:
        """Now and then: begin one, and keep or undo what came since."""
        [what] = self._rng.choices(["", "savepoint s", "undo", "release"], [90, 4, 3, 3])
        if what == "undo" and self._saved:
            connection.execute("rollback to s")
        elif what == "release" and self._saved:
            connection.execute("release s")
            self._saved -= 1
        elif what == "savepoint s":
            connection.execute(what)
            self._saved += 1

    def _change(self, connection: psycopg.Connection[Any]) -> None:
        table = self._rng.choice(list(TABLES))
        kinds = ["insert", "update", "delete", "key", "truncate"]
        [kind] = self._rng.choices(kinds, [40, 40, 15, 5, 0.02])
        number, new = self._rng.randrange(self._next), self._next
        self._next += kind in ("insert", "key")
        name = sql.Identifier(table)
        if kind == "insert":
            values = row(table, new, self._rng)
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
    ("update", "events"): (
        "update events set kind = 'seen' where payload->>'n' = %(number)s::int::text"
    ),
    ("delete", "events"): "delete from events where payload->>'n' = %(number)s::int::text",
    ("delete", "orders"): "delete from orders where id = %(number)s",
    ("delete", "documents"): "delete from documents where id = %(number)s",
    ("delete", "prices"): "delete from prices where sku = 'sku ' || %(number)s",
    ("delete", "visits"): f"delete from visits where ctid = {_ONE_VISIT}",
    ("key", "orders"): "update orders set id = %(new)s where id = %(number)s",
    ("key", "documents"): "update documents set id = %(new)s where id = %(number)s",
    ("key", "prices"): "update prices set sku = 'sku ' || %(new)s where sku = 'sku ' || %(number)s",
}


@contextmanager
def workload(
    dsn: str, seed: int, rows: int, *, pause_s: float = 0.05, reconnects: bool = False
) -> Iterator[Workload]:
    """Changes while the block runs; `Workload.stop` ends them before."""
    changes = Workload(dsn, seed, rows, pause_s, reconnects)
    try:
        yield changes
    finally:
        changes.stop()


def check_state(state: TableState) -> None:
    """A failed test where the table waits for a person."""
    if isinstance(state, Errored):
        assert isinstance(state.retry, TimedRetry), state


def is_caught_up(store: CoordinatingStore, goal: Lsn, tables: int = len(TABLES)) -> bool:
    """Whether all of so many tables are streamed, and everything before `goal` is durable."""
    states = store.get_table_replication_states()
    for state in states.values():
        check_state(state)
    progress = store.get_replication_progress(ApplyWorker())
    assert len(states) <= tables
    are_ready = len(states) == tables and all(isinstance(state, Ready) for state in states.values())
    return are_ready and progress is not None and progress >= goal
