"""Connections to the source, the store and the destination break, one by one; nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.errors import EtlError
from etl_dagster.model.states import DataSync
from etl_dagster.runtime.pipeline import Pipeline
from tests.support.database import Database
from tests.support.pipelines import running
from tests.support.proxy import Proxy
from tests.support.waiting import PATIENCE_S, wait_until

MakeConfig = Callable[..., PipelineConfig]
ROWS = "insert into items select g, repeat('x', 100) from generate_series({}, {}) g"


class Replica:
    """A Postgres destination, a store and the source, with a proxy in front of one of them."""

    def __init__(self, source: Database, target: Database, store: Database) -> None:
        self.source, self.target, self.store = source, target, store
        self._next_id = 1

    def add_rows(self) -> None:
        self.source.execute(ROWS.format(self._next_id, self._next_id + 999))
        self._next_id += 1000

    def assert_in_step(self) -> None:
        rows = "select id, v from items order by id"
        assert self.target.query(rows) == self.source.query(rows)
        changes = "select commit_lsn, ordinal from _etl.changelog"
        doubled = f"{changes} group by commit_lsn, ordinal having count(*) > 1"
        assert self.target.query(doubled) == []


@pytest.fixture
def replica(newest_database: Database, newest_server: EmbeddedPostgres) -> Iterator[Replica]:
    newest_database.execute(
        "create table items (id int primary key, v text)",
        "create publication etl_pub for table items",
    )
    with (
        Database.create(newest_server) as target,
        Database.create(newest_server) as store,
    ):
        made = Replica(newest_database, target, store)
        made.add_rows()
        yield made


@contextmanager
def through_proxy(
    replica: Replica, place: str, make_config: MakeConfig
) -> Iterator[tuple[PipelineConfig, Proxy]]:
    databases = {
        "source": replica.source,
        "store": replica.store,
        "destination": replica.target,
    }
    with Proxy(databases[place].dsn) as proxy:
        dsns = {name: database.dsn for name, database in databases.items()} | {place: proxy.dsn}
        sections: dict[str, Any] = {
            "source.dsn": dsns["source"],
            "state_store": {"dsn": dsns["store"]},
            "destination": {"type": "postgres", "dsn": dsns["destination"], "changelog": True},
            "retry.max_attempts": 100,
            "copy": {"chunk_rows": 300},
        }
        yield make_config(replica.source, **sections), proxy


def is_caught_up(pipeline: Pipeline) -> bool:
    """The question itself may meet a connection that was just broken."""
    try:
        return pipeline.wait_until_caught_up(PATIENCE_S)
    except EtlError as error:
        if error.retryable:
            return False
        raise


def cut(proxy: Proxy, replica: Replica) -> None:
    """With changes under way."""
    replica.add_rows()
    proxy.cut()


def refuse(proxy: Proxy, replica: Replica) -> None:
    """Until it was tried again several times."""
    proxy.refuse()
    replica.add_rows()
    wait_until(lambda: proxy.refused >= 3)
    proxy.flow()


def stall(proxy: Proxy, replica: Replica) -> None:
    """What was sent arrives late, and then breaks."""
    proxy.stall()
    replica.add_rows()
    proxy.flow()
    proxy.cut()


def slow(proxy: Proxy, replica: Replica) -> None:
    """Broken in the middle of what is being sent."""
    proxy.slow(20_000)
    replica.add_rows()
    proxy.cut()
    proxy.flow()


@pytest.mark.parametrize("place", ["source", "store", "destination"])
def test_stream_and_copy_go_on_after_their_connections_broke(
    replica: Replica, make_config: MakeConfig, place: str
) -> None:
    with (
        through_proxy(replica, place, make_config) as (config, proxy),
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store) as pipeline,
    ):
        assert pipeline.wait_until_caught_up(PATIENCE_S)
        for fault in (cut, refuse, stall, slow):
            fault(proxy, replica)
            wait_until(lambda: is_caught_up(pipeline))
            replica.assert_in_step()

        [table_id] = store.get_table_replication_states()
        proxy.slow(50_000)
        store.request_copy(table_id)
        wait_until(lambda: isinstance(store.get_table_replication_states()[table_id], DataSync))
        proxy.cut()
        proxy.flow()
        wait_until(lambda: is_caught_up(pipeline))
        replica.assert_in_step()
