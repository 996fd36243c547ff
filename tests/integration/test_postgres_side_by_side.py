"""Batches that several pipelines, such as shards, write into one Postgres at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.destinations.postgres import PostgresDestination
from etl_dagster.model.events import EventBatch
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    ORDERS,
    VISITS,
    Change,
    Transactions,
    batch,
    chunk,
    column,
    end_of_copy,
    insert,
    relation,
    update,
)
from tests.support.database import Database
from tests.support.waiting import PATIENCE_S, wait_until

#: By the kind of lock.
_WAITING = (
    "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    " and wait_event ~ '{}' and datname = current_database()"
)


def batch_of(shard: str, changes: list[Change]) -> EventBatch:
    return replace(batch(changes), pipeline=shard)


class Replica:
    """A database with both tables; a batch of one shard that waits is under way."""

    def __init__(self, database: Database, threads: ThreadPoolExecutor) -> None:
        self.database = database
        self._threads = threads
        self.stream = Transactions()
        self.shards = {
            name: PostgresDestination(database.dsn, changelog=True)
            for name in ("shop", "shop__events")
        }
        for destination in self.shards.values():
            destination.startup(MemoryStore())
        first = self.stream.commit(insert(ORDERS, id=1), insert(VISITS, page="/", at=1))
        self.shards["shop"].write_events(batch_of("shop", first))

    def begin(self, shard: str, changes: list[Change]) -> Future[None]:
        """Have the shard write the changes in a thread."""
        return self.submit(self.shards[shard].write_events, batch_of(shard, changes))

    def submit(self, work: Callable[..., None], *values: object) -> Future[None]:
        return self._threads.submit(work, *values)

    def wait_for(self, lock: str, count: int) -> None:
        wait_until(lambda: self.database.query(_WAITING.format(lock)) == [(count,)])

    @contextmanager
    def order_locked(self) -> Iterator[None]:
        """Another session has locked the only order, so that an update of it waits."""
        with self.database.connect(autocommit=False) as other:
            other.execute("select from orders for update")
            yield


@pytest.fixture
def replica(newest_server: EmbeddedPostgres) -> Iterator[Replica]:
    with Database.create(newest_server) as database, ThreadPoolExecutor(2) as threads:
        found = Replica(database, threads)
        yield found
        for destination in found.shards.values():
            destination.shutdown()


def test_a_shard_does_not_wait_for_a_batch_of_another_one(replica: Replica) -> None:
    orders = replica.stream.commit(update(ORDERS, id=1, note="changed"))
    visits = replica.stream.commit(insert(VISITS, page="/", at=2))
    with replica.order_locked():
        held = replica.begin("shop", orders)
        replica.wait_for("transactionid", 1)
        replica.begin("shop__events", visits).result(PATIENCE_S)
        assert not held.done()
    held.result(PATIENCE_S)
    assert replica.database.query("select note from orders") == [("changed",)]


def test_a_chunk_of_a_copy_does_not_wait_for_a_batch(replica: Replica) -> None:
    """If it did, the batches after it would wait for the chunk."""
    copying = replica.shards["shop__events"]
    first, second = (
        chunk("a", index, VISITS, [{"page": "/", "at": 10 + index}]) for index in range(2)
    )
    copying.drop_table_for_copy(VISITS)
    copying.write_table_rows(VISITS, first)
    orders = replica.stream.commit(update(ORDERS, id=1, note="changed"))
    with replica.order_locked():
        held = replica.begin("shop", orders)
        replica.wait_for("transactionid", 1)
        replica.submit(copying.write_table_rows, VISITS, second).result(PATIENCE_S)
        assert not held.done()
    held.result(PATIENCE_S)
    copying.write_table_rows(VISITS, end_of_copy("a"))
    assert replica.database.query("select at from visits order by at") == [(10,), (11,)]


def test_changes_that_two_shards_have_of_one_table_are_applied_once(replica: Replica) -> None:
    """As when a process stalled before its table was moved, and writes what it has left."""
    changes = replica.stream.commit(
        update(ORDERS, id=1, note="changed"), insert(VISITS, page="/", at=2)
    )
    with replica.order_locked():
        both = [replica.begin("shop", changes)]
        replica.wait_for("transactionid", 1)
        both.append(replica.begin("shop__events", changes))
        # The second waits for the first one, or would wait for what that waits for.
        replica.wait_for("", 2)
    for each in both:
        each.result(PATIENCE_S)
    assert replica.database.query("select at from visits order by at") == [(1,), (2,)]
    assert replica.database.query("select count(*) from _etl.positions") == [(2,)]
    assert replica.database.query(
        "select count(*), count(distinct (table_id, commit_lsn, ordinal)) from _etl.changelog"
    ) == [(4, 4)]


def test_a_batch_that_alters_a_table_is_written_alone(replica: Replica) -> None:
    orders = replica.stream.commit(update(ORDERS, id=1, note="changed"))
    wider = replace(VISITS, columns=(*VISITS.columns, column("took", INT4, 3)))
    visits = replica.stream.commit(relation(wider), insert(wider, page="/", at=2, took=3))
    with replica.order_locked():
        held = replica.begin("shop", orders)
        replica.wait_for("transactionid", 1)
        altering = replica.begin("shop__events", visits)
        replica.wait_for("advisory", 1)
        assert not altering.done()
    for each in (held, altering):
        each.result(PATIENCE_S)
    assert replica.database.query("select at, took from visits order by at") == [(1, None), (2, 3)]
    assert replica.database.query(
        "select pipeline, revision::int from _etl.pipelines order by pipeline"
    ) == [("shop", 2), ("shop__events", 1)]
