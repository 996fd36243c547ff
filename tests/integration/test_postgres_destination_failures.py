"""What happens to a Postgres destination, or stands in its way, while a pipeline writes to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from etl_dagster.assembly import build_destination
from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.destinations.postgres import PostgresDestination, connections
from etl_dagster.errors import (
    DestinationError,
    DestinationReplaced,
    DestinationRestored,
    DestinationShared,
    InvalidState,
)
from etl_dagster.runtime.checking.belonging import Belonging
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.stores.memory import MemoryStore
from tests.support.database import Database
from tests.support.pipelines import running
from tests.support.waiting import PATIENCE_S, wait_until

MakeConfig = Callable[..., PipelineConfig]
#: Sessions of the destination.
OURS = "application_name = 'etl_dagster destination' and datname = current_database()"


@pytest.fixture
def replica(newest_server: EmbeddedPostgres) -> Iterator[Database]:
    with Database.create(newest_server) as fresh:
        yield fresh


@pytest.fixture
def items(newest_database: Database) -> Database:
    """The source: a table with a hundred rows."""
    newest_database.execute(
        "create table items (id int primary key)",
        "insert into items select generate_series(1, 100)",
        "create publication etl_pub for table items",
    )
    return newest_database


def to(dsn: str, **more: Any) -> dict[str, Any]:
    return {"destination": {"type": "postgres", "dsn": dsn}, **more}


def test_a_session_that_is_ended_in_the_middle_of_a_batch_loses_and_doubles_nothing(
    items: Database, replica: Database, make_config: MakeConfig
) -> None:
    config = make_config(items, **to(replica.dsn, **{"destination.changelog": True}))
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(PATIENCE_S)
        with replica.connect(autocommit=False) as other:
            other.execute("lock table items in access exclusive mode")
            items.execute("insert into items select generate_series(101, 600)")
            items.execute("update items set id = -id where id < 10")
            waiting = f"select pid from pg_stat_activity where {OURS} and wait_event_type = 'Lock'"
            wait_until(lambda: replica.query(waiting) != [])
            replica.query(f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS}")
        assert pipeline.wait_until_caught_up(PATIENCE_S)

    count = "select count(*), count(distinct id), sum(id) from items"
    assert replica.query(count) == items.query(count)
    doubled = "select 1 from _etl.changelog group by commit_lsn, ordinal having count(*) > 1"
    assert replica.query(doubled) == []


def test_a_stop_does_not_wait_for_a_lock_at_the_destination_and_loses_nothing(
    items: Database,
    replica: Database,
    make_config: MakeConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until then, log and status name the session that holds it."""
    destination = PostgresDestination(replica.dsn, tell_after_s=0.1)
    config = make_config(items, **to(replica.dsn))
    store = MemoryStore()
    with replica.connect(autocommit=False, application_name="a report") as other:
        with running(config, store=store, destination=destination) as pipeline:
            assert pipeline.wait_until_caught_up(PATIENCE_S)
            other.execute("lock table items in access exclusive mode")
            items.execute("insert into items select generate_series(101, 200)")
            pid = other.info.backend_pid
            holder = f"public.items is locked by PID {pid} (a report), idle in transaction, open "
            wait_until(lambda: holder in str(pipeline.status().note))
            # Stops while the lock is held.
        assert replica.query("select 1 from pg_locks where pid = %s and granted", (pid,))
    assert f"{holder}for" in caplog.text
    assert f"select pg_terminate_backend({pid});" in caplog.text

    with running(config, store=store) as pipeline:
        assert pipeline.wait_until_caught_up(PATIENCE_S)
        assert pipeline.status().note is None
    assert replica.query("select count(*), sum(id) from items") == [(200, 20100)]


def test_a_stop_during_the_start_does_not_wait_for_a_lock_either(
    items: Database, replica: Database, make_config: MakeConfig
) -> None:
    config = make_config(items, **to(replica.dsn))
    pipeline = Pipeline(config, MemoryStore(), build_destination(config))
    with replica.connect(autocommit=False) as other:
        other.execute("select pg_advisory_xact_lock(%s)", [connections.ALONE])

        def stop() -> None:
            wait_until(lambda: replica.query("select 1 from pg_locks where not granted") != [])
            pipeline.shutdown()

        stopping = threading.Thread(target=stop)
        stopping.start()
        with pytest.raises(InvalidState, match="stopped before it started"):
            pipeline.start()
        stopping.join()


def test_a_database_other_than_the_one_written_is_refused(
    items: Database, replica: Database, make_config: MakeConfig
) -> None:
    """Another pipeline's, an empty one, and one that was restored from a backup."""
    store = MemoryStore()
    config = make_config(items, **to(replica.dsn))

    def require(config: PipelineConfig, store: MemoryStore) -> None:
        destination = build_destination(config)
        try:
            Belonging(config, store, destination).require()
        finally:
            destination.shutdown()

    with running(config, store=store) as pipeline:
        assert pipeline.wait_until_caught_up(PATIENCE_S)
    with Database.create(replica.server) as backup, Database.create(replica.server) as empty:
        with psycopg.connect(replica.server.dsn(), autocommit=True) as admin:
            name, template = sql.Identifier(backup.name), sql.Identifier(replica.name)
            admin.execute(sql.SQL("drop database {}").format(name))
            admin.execute(sql.SQL("create database {} template {}").format(name, template))
        items.execute("insert into items values (101)")
        with running(config, store=store) as pipeline:
            assert pipeline.wait_until_caught_up(PATIENCE_S)

        require(config, store)
        with pytest.raises(DestinationRestored, match="older copy"):
            require(make_config(items, **to(backup.dsn)), store)
        with pytest.raises(DestinationReplaced):
            require(make_config(items, **to(empty.dsn)), store)
    with pytest.raises(DestinationShared, match="holds the tables of the pipeline 'test'"):
        require(make_config(items, **to(replica.dsn, pipeline="other")), MemoryStore())


def test_a_database_that_is_read_only_by_default_is_not_written_until_it_no_longer_is(
    items: Database,
    replica: Database,
    make_config: MakeConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An administrator, or a provider whose disk is nearly full, had a reason."""
    read_only = f"alter database {replica.name} {{}} default_transaction_read_only"
    config = make_config(items, **to(replica.dsn, **{"retry.max_delay_ms": 100}))
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(PATIENCE_S)
        items.execute(f"{read_only.format('set')} = on")
        replica.query("select pg_terminate_backend(pid) from pg_stat_activity where " + OURS)
        items.execute("insert into items values (101)")
        wait_until(lambda: "the destination takes no writes now" in caplog.text)

        destination = build_destination(config)
        with pytest.raises(DestinationError, match="default_transaction_read_only is on"):
            destination.startup(MemoryStore())
        destination.shutdown()
        items.execute(read_only.format("reset"))
        assert pipeline.wait_until_caught_up(PATIENCE_S)
    assert replica.query("select count(*) from items") == [(101,)]


def test_a_table_in_a_schema_that_the_role_may_not_use_stops_alone(
    items: Database, replica: Database, make_config: MakeConfig
) -> None:
    items.execute(
        "create schema sales; create table sales.orders (id int primary key)",
        "alter publication etl_pub add table sales.orders",
    )
    role = f"least_{replica.name}"
    replica.execute(
        f"create role {role} login password 'x'",
        f"create schema _etl authorization {role}",
        f"grant create, usage on schema public to {role}",
        "create schema sales",
    )
    dsn = psycopg.conninfo.make_conninfo(replica.dsn, user=role, password="x")
    try:
        with running(make_config(items, **to(dsn))) as pipeline:
            wait_until(lambda: pipeline.status().tables["sales.orders"].state == "errored")
            wait_until(lambda: pipeline.status().tables["public.items"].state == "ready")
            found = pipeline.status().tables["sales.orders"]
        assert replica.query("select count(*) from items") == [(100,)]
        assert "permission denied for schema sales" in str(found)
        assert "Grant the user of destination.dsn" in str(found)
    finally:
        replica.execute(f"drop owned by {role}", f"drop role {role}")
