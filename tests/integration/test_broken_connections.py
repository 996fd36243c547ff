"""Connections to the source, the store and the destination break, one by one; nothing is lost.

They also fall silent, and a stop waits for none of them.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.errors import EtlError, InvalidState
from etl_dagster.model.states import DataSync
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.pipeline import Pipeline
from tests.support.database import Database
from tests.support.fan_outs import Several, several
from tests.support.forked import etl_dagster
from tests.support.pipelines import running
from tests.support.proxy import Proxy
from tests.support.waiting import PATIENCE_S, wait_until

MakeConfig = Callable[..., PipelineConfig]
#: Far shorter than drivers and servers wait for each other.
SOON_S = 20.0
ALL = "select id, v from items order by id"
ROWS = "insert into items select g, repeat('x', 100) from generate_series({}, {}) g"


class Replica:
    """A Postgres destination, a store and the source, with a proxy in front of one of them."""

    def __init__(self, source: Database, target: Database, store: Database) -> None:
        self.source, self.target, self.store = source, target, store
        self._next_id = 1

    def add_rows(self) -> None:
        self.source.execute(ROWS.format(self._next_id, self._next_id + 999))
        self._next_id += 1000

    def is_in_step(self) -> bool:
        is_there = self.target.query("select to_regclass('items') is not null") == [(True,)]
        return is_there and self.target.query(ALL) == self.source.query(ALL)

    def assert_in_step(self) -> None:
        assert self.target.query(ALL) == self.source.query(ALL)
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


def configure(config: PipelineConfig, folder: Path) -> None:
    """Write the settings that lead to the servers into the folder."""
    settings = {
        "pipeline": config.pipeline,
        "source": {"dsn": config.source.conninfo(), "publication": config.source.publication},
        "state_store": {"dsn": config.state_store.model_dump()["dsn"].get_secret_value()},
        "destination": {
            "type": "postgres",
            "dsn": config.destination.model_dump()["dsn"].get_secret_value(),
        },
    }
    (folder / "etl.yaml").write_text(json.dumps(settings))


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
def test_stream_and_copy_continue_after_their_connections_broke(
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


def test_a_stream_that_falls_silent_is_noticed_and_reopened(
    replica: Replica, make_config: MakeConfig
) -> None:
    """The connection stays open, so that no read ever fails."""
    with through_proxy(replica, "source", make_config) as (config, proxy):
        source = config.source.model_copy(update={"receiver_timeout_s": 1.0})
        config = config.model_copy(update={"source": source})
        with running(config) as pipeline:
            assert pipeline.wait_until_caught_up(PATIENCE_S)
            proxy.forget()
            replica.add_rows()
            wait_until(lambda: "has not answered" in str(pipeline.status().error))
            wait_until(lambda: is_caught_up(pipeline))
            replica.assert_in_step()


@contextmanager
def running_again(config: PipelineConfig, store: CoordinatingStore) -> Iterator[Pipeline]:
    """Once a store that was silent knows that the pipeline has ended."""
    wait_until(lambda: not store.is_leased("apply"))
    with running(config, store=store) as pipeline:
        yield pipeline


@pytest.mark.parametrize("place", ["source", "store", "destination"])
def test_a_stop_does_not_wait_for_a_silent_server(
    replica: Replica, make_config: MakeConfig, place: str
) -> None:
    with through_proxy(replica, place, make_config) as (config, proxy):
        with closing(build_store(config)) as store:  # type: ignore[type-var]
            pipeline = Pipeline(config, store, build_destination(config))
            pipeline.start()
            assert pipeline.wait_until_caught_up(PATIENCE_S)
            proxy.stall()
            replica.add_rows()

            pipeline.shutdown()
            assert pipeline.wait(SOON_S)

            proxy.flow()
        with (
            closing(build_store(config)) as store,  # type: ignore[type-var]
            running_again(config, store) as pipeline,
        ):
            wait_until(lambda: is_caught_up(pipeline))
            replica.assert_in_step()


@pytest.mark.parametrize("place", ["source", "store", "destination"])
def test_a_start_that_waits_for_a_silent_server_is_stopped(
    replica: Replica, make_config: MakeConfig, place: str
) -> None:
    with (
        through_proxy(replica, place, make_config) as (config, proxy),
        closing(build_store(config)) as store,  # type: ignore[type-var]
    ):
        pipeline = Pipeline(config, store, build_destination(config))
        proxy.stall()
        with ThreadPoolExecutor(1) as other:
            start = other.submit(pipeline.start)
            wait_until(lambda: proxy.held > 0)
            pipeline.shutdown()
            with pytest.raises(InvalidState, match="was stopped before it started"):
                start.result(SOON_S)
        proxy.flow()


def test_a_copy_from_a_silent_source_is_stopped(replica: Replica, make_config: MakeConfig) -> None:
    with through_proxy(replica, "source", make_config) as (config, proxy):
        with closing(build_store(config)) as store:  # type: ignore[type-var]
            pipeline = Pipeline(config, store, build_destination(config))
            pipeline.start()
            assert pipeline.wait_until_caught_up(PATIENCE_S)
            [table_id] = store.get_table_replication_states()
            proxy.slow(50_000)
            store.request_copy(table_id)
            wait_until(lambda: isinstance(store.get_table_replication_states()[table_id], DataSync))
            proxy.stall()

            pipeline.shutdown()
            assert pipeline.wait(SOON_S)

            proxy.flow()
        with (
            closing(build_store(config)) as store,  # type: ignore[type-var]
            running_again(config, store) as pipeline,
        ):
            wait_until(lambda: is_caught_up(pipeline))
            replica.assert_in_step()


def test_ctrl_c_ends_a_run_whose_store_fell_silent(
    replica: Replica, make_config: MakeConfig, tmp_path: Path
) -> None:
    """What follows the pipeline's end uses the store, too."""
    with through_proxy(replica, "store", make_config) as (config, proxy):
        configure(config, tmp_path)
        with etl_dagster("run", "--plain", cwd=tmp_path) as process, contextlib.ExitStack() as end:
            end.callback(process.kill)
            wait_until(lambda: replica.is_in_step())
            proxy.stall()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=SOON_S)
        assert process.returncode == 0, err
        assert "Traceback" not in err


def test_ctrl_c_ends_a_command_that_waits_for_a_silent_source(
    replica: Replica, make_config: MakeConfig, tmp_path: Path
) -> None:
    with through_proxy(replica, "source", make_config) as (config, proxy):
        proxy.stall()
        configure(config, tmp_path)
        with etl_dagster("doctor", cwd=tmp_path) as process, contextlib.ExitStack() as end:
            end.callback(process.kill)
            wait_until(lambda: proxy.held > 0)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=SOON_S)
        assert process.returncode == 130, err
        assert "Traceback" not in err


def test_several_destinations_stop_although_the_source_fell_silent(
    newest_database: Database, tmp_path: Path
) -> None:
    newest_database.execute(
        "create table items (id int primary key)",
        "create publication etl_pub for table items",
    )
    with Proxy(newest_database.dsn) as proxy:
        config = several(newest_database, tmp_path)
        source = config.source.model_copy(update={"dsn": SecretStr(proxy.dsn)})
        fixture = Several(newest_database, config.model_copy(update={"source": source}))
        with fixture.running() as fan_out:
            assert fan_out.wait_until_caught_up(PATIENCE_S)
            proxy.stall()
            fan_out.shutdown()
            assert fan_out.wait(SOON_S)
            proxy.flow()
