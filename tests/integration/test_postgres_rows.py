"""The rows of a Postgres destination as they are read to be compared with the source's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.destinations.postgres import PostgresDestination, connections, rows
from etl_dagster.destinations.postgres.connections import DestinationConnections
from etl_dagster.errors import TableRewritten
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import ORDERS, chunk, end_of_copy, order
from tests.support.database import Database
from tests.support.pooler import needs_pgbouncer, pgbouncer
from tests.support.waiting import PATIENCE_S, wait_until

_ROWS = 3000


@pytest.fixture
def copied(newest_server: EmbeddedPostgres) -> Iterator[Database]:
    """A destination with the orders, in a good many blocks."""
    with Database.create(newest_server) as database:
        destination = PostgresDestination(database.dsn)
        destination.startup(MemoryStore())
        destination.drop_table_for_copy(ORDERS)
        given = [order(number) for number in range(_ROWS)]
        destination.write_table_rows(ORDERS, chunk("a", 0, ORDERS, given))
        destination.write_table_rows(ORDERS, end_of_copy("a"))
        destination.shutdown()
        yield database


def ids(dsn: str) -> list[int]:
    destination = PostgresDestination(dsn)
    try:
        with destination.read_rows(ORDERS) as batches:
            return sorted(id for batch in batches for id in batch["id"].to_pylist())
    finally:
        destination.shutdown()


def test_each_row_is_read_once_by_any_of_the_connections(
    copied: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_PIECE_BLOCKS", 2)
    assert ids(copied.dsn) == list(range(_ROWS))


@needs_pgbouncer
def test_a_pooler_may_share_the_sessions_of_readers(
    copied: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_PIECE_BLOCKS", 2)
    with pgbouncer(copied, "transaction") as dsn:
        assert ids(dsn) == list(range(_ROWS))


def test_readers_do_not_wait_for_a_session_that_waits_to_alter_the_table(
    copied: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the transaction in which the readers read, so all would wait forever."""
    waits = "select from pg_locks where relation = 'orders'::regclass and not granted"
    altering: list[threading.Thread] = []
    as_it_is = DestinationConnections.reader

    @contextlib.contextmanager
    def reader(self: DestinationConnections, snapshot: str) -> Iterator[Any]:
        wait_until(lambda: len(copied.query(waits)) == 1)
        with as_it_is(self, snapshot) as connection:
            yield connection

    def exported(*arguments: Any, **options: Any) -> Any:
        statement = "alter table orders add column other int"
        altering.append(threading.Thread(target=copied.execute, args=[statement]))
        altering[0].start()
        return as_it_reads(*arguments, **options)

    as_it_reads = rows.read_queries
    monkeypatch.setattr(connections, "_READER_LOCK_TIMEOUT", "100ms")
    monkeypatch.setattr(rows, "read_queries", exported)
    monkeypatch.setattr(DestinationConnections, "reader", reader)

    with pytest.raises(TableRewritten, match="is altered at the destination"):
        ids(copied.dsn)
    altering[0].join(PATIENCE_S)
    assert not altering[0].is_alive()
