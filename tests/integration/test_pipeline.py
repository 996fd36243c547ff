"""A pipeline between a real Postgres and DuckDB, its workers as threads of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import SlotAdvanced, SlotMissing, TableWriteFailed
from etl_dagster.lsn import LSN_ZERO
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch
from etl_dagster.model.memory_lease import MemoryLease
from etl_dagster.model.states import Errored, ManualRetry, Ready
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.timing import TIMING
from etl_dagster.source.slots import apply_slot_name
from etl_dagster.source.stream import ReplicationStream
from etl_dagster.stores.memory import MemoryStore
from tests.support.database import Database
from tests.support.pipelines import rows, running
from tests.support.waiting import wait_until

MakeConfig = Callable[..., PipelineConfig]
OpenStore = Callable[[PipelineConfig], CoordinatingStore]

SHOP = """
    create table customers (id int primary key, name text not null, since timestamptz);
    create table orders
      (id bigint primary key, customer int references customers, total numeric(12, 2));
    create table visits (page text, at timestamp);
    insert into customers
      select i, 'customer ' || i, '2024-05-01 12:00+02' from generate_series(1, 100) i;
    insert into orders select i, i % 100 + 1, i * 1.5 from generate_series(1, 5000) i;
    insert into visits select 'page ' || i, '2024-05-01' from generate_series(1, 500) i;
    create publication etl_pub for table customers, orders, visits;
    alter table visits replica identity full;
"""


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    with ExitStack() as stack:
        yield lambda config: stack.enter_context(closing(build_store(config)))  # type: ignore[type-var]


def assert_in_step(database: Database, config: PipelineConfig) -> None:
    for table in ("customers", "orders", "visits"):
        columns = database.query(
            "select string_agg(format('\"%%s\"::text', attname), ', ' order by attnum)"
            " from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped",
            [table],
        )[0][0].replace('"since"::text', "extract(epoch from since)::bigint::text")
        statement = f"select {columns} from {table}"
        there = rows(config, statement.replace(f"from {table}", f"from public.{table}"))
        assert sorted(there, key=repr) == sorted(database.query(statement), key=repr)


def test_tables_are_copied_and_then_streamed(database: Database, make_config: MakeConfig) -> None:
    database.execute(SHOP)
    config = make_config(database, copy={"chunk_rows": 1000})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)
        database.execute(
            "insert into orders select i, 1, 3 from generate_series(5001, 6000) i",
            "update orders set total = total + 1 where id % 7 = 0",
            "update customers set id = id + 1000 where id > 90 and not exists"
            " (select from orders where customer = customers.id)",
            "delete from orders where id % 5 = 0",
            "insert into visits select 'page ' || i, null from generate_series(1, 50) i",
            "delete from visits where page = 'page 7'",
            "update visits set at = '2025-01-01' where page = 'page 8'",
        )
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)
        database.execute("truncate visits", "insert into visits values ('after', null)")
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)
    assert database.slots() == [apply_slot_name("test")]


def test_a_restart_resumes_where_it_stopped(database: Database, make_config: MakeConfig) -> None:
    database.execute(SHOP)
    config = make_config(database, **{"destination.changelog": True})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    database.execute(
        "insert into orders values (7001, 1, 1)", "update orders set total = 0 where id < 100"
    )
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)
        [status] = [t for t in pipeline.status().tables.values() if t.name == "public.orders"]
        assert (status.state, status.rows_inserted, status.rows_updated) == ("ready", 1, 99)
    doubled = (
        "select 1 from _etl.changelog group by table_id, commit_lsn, ordinal having count(*) > 1"
    )
    assert rows(config, doubled) == []


def test_an_unchanged_toast_value_is_kept(database: Database, make_config: MakeConfig) -> None:
    database.execute(
        SHOP,
        "alter table customers alter name set storage external",
        "update customers set name = repeat('x', 5000)",
    )
    config = make_config(database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "update customers set since = null where id < 50",
            "insert into customers values (500, repeat('y', 4000), null)",
            "update customers set id = 501, since = '2020-01-01' where id = 500",
        )
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)


def test_a_table_added_to_the_publication_is_copied_and_one_taken_out_is_left_alone(
    database: Database, make_config: MakeConfig, open_store: OpenStore
) -> None:
    database.execute(SHOP)
    config = make_config(database)
    store = open_store(config)
    with running(config, store=store) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "create table later (id int primary key)",
            "insert into later values (1), (2)",
            "alter publication etl_pub add table later",
            "alter publication etl_pub drop table visits",
        )
        while "public.later" not in pipeline.status().tables:
            store.wait_for_change(0.1)
        assert pipeline.wait_until_caught_up(60)
        database.execute("insert into later values (3)")
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, "select count(*) from public.later") == [(3,)]
        assert rows(config, "select count(*) from public.visits") == [(500,)]
        assert "public.visits" not in pipeline.status().tables
        assert len(store.get_table_replication_states()) == 3


def test_columns_can_be_added_renamed_retyped_and_dropped_while_streaming(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SHOP)
    config = make_config(database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "alter table customers add city text",
            "insert into customers values (201, 'new', null, 'Bonn')",
            "alter table customers rename name to full_name",
            "update customers set city = 'Köln' where id = 1",
            "alter table orders alter total type numeric(20, 4)",
            "update orders set total = 123456789012.3456 where id = 1",
            "alter table customers drop since",
            "update customers set city = 'Aachen' where id = 2",
        )
        assert pipeline.wait_until_caught_up(60)
        for table in ("customers", "orders"):
            there = rows(config, f"select * from public.{table} order by id")
            assert there == database.query(f"select * from {table} order by id")


def test_a_requested_copy_replaces_the_table_while_it_is_streamed(
    database: Database, make_config: MakeConfig, open_store: OpenStore
) -> None:
    database.execute(SHOP)
    config = make_config(database)
    store = open_store(config)
    with running(config, store=store) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        for table in pipeline.status().tables.values():
            store.request_copy(table.table_id)
        database.execute("update orders set total = 1 where id = 1", "truncate visits")
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)


class RefusesOrders:
    """A destination that can't write one table's changes."""

    def __init__(self, inner: Destination) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_events(self, events: EventBatch) -> Any:
        for table_id, steps in events.tables.items():
            if steps and steps[0].schema.name == "public.orders":
                raise TableWriteFailed(table_id, "orders are refused", solution="Let them in.")
        return self._inner.write_events(events)


def test_a_table_that_fails_does_not_stop_the_others(
    database: Database, make_config: MakeConfig, open_store: OpenStore
) -> None:
    database.execute(SHOP)
    config = make_config(database)
    store = open_store(config)
    with running(
        config, store=store, destination=RefusesOrders(build_destination(config))
    ) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "insert into orders values (9001, 1, 1)",
            "insert into customers values (300, 'c', null)",
        )
        assert pipeline.wait_until_caught_up(60)
        database.execute("insert into customers values (301, 'd', null)")
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, "select count(*) from public.customers") == [(102,)]
        assert rows(config, "select count(*) from public.orders") == [(5000,)]
        orders = pipeline.status().tables["public.orders"]
        assert (orders.state, orders.error, orders.solution) == (
            "errored",
            "orders are refused",
            "Let them in. To resume it without a copy: `etl-dagster retry public.orders`.",
        )
        state = store.get_table_replication_state(orders.table_id)
        assert isinstance(state, Errored)
        assert state.retry == ManualRetry()
    # Once the cause is gone, a copy brings it back.
    store.request_copy(orders.table_id)
    with running(config, store=store) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)


def test_a_slot_that_vanished_is_refused(
    newest_database: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(SHOP)
    config = make_config(newest_database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    newest_database.drop_slots()
    with pytest.raises(SlotMissing, match="etl_dagster_apply_test"), running(config):
        pass
    assert newest_database.slots() == []


def test_a_slot_that_another_reader_moved_is_refused(
    newest_database: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(SHOP)
    config = make_config(newest_database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    newest_database.execute("set synchronous_commit = on; insert into orders values (8001, 1, 1)")
    newest_database.query(
        "select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [apply_slot_name("test")]
    )
    with pytest.raises(SlotAdvanced), running(config):
        pass


def test_a_broken_connection_is_replaced(database: Database, make_config: MakeConfig) -> None:
    database.execute(SHOP)
    config = make_config(database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.query(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        database.execute("insert into orders values (8001, 1, 1)")
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)


def test_a_table_can_be_streamed_without_its_existing_rows(
    newest_database: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(SHOP)
    config = make_config(newest_database, tables={"public.orders": {"copy": False}})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, "select count(*) from public.orders") == [(0,)]
        newest_database.execute("insert into orders values (8001, 1, 1)")
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, "select id from public.orders") == [(8001,)]


def test_an_idle_database_does_not_retain_wal(
    newest_database: Database, make_config: MakeConfig, open_store: OpenStore
) -> None:
    newest_database.execute(SHOP, "create table unpublished (id int)")
    config = make_config(newest_database)
    store = open_store(config)
    with running(config, store=store) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        newest_database.execute("insert into unpublished select generate_series(1, 50000)")
        assert pipeline.wait_until_caught_up(60)
        end = newest_database.current_lsn()
        # The server gets the position a moment after everything is durable.
        wait_until(
            lambda: (
                newest_database.query(
                    "select confirmed_flush_lsn > %s::pg_lsn - 100000 from pg_replication_slots"
                    " where slot_name = %s",
                    [end, apply_slot_name("test")],
                )
                == [(True,)]
            )
        )
    assert all(isinstance(s, Ready) for s in store.get_table_replication_states().values())


def test_the_state_store_is_not_replicated_though_all_tables_are_published(
    newest_database: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(
        "create table items (id int primary key)", "create publication etl_pub for all tables"
    )
    config = make_config(newest_database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert list(pipeline.status().tables) == ["public.items"]


def test_a_slot_that_another_connection_still_reads_is_waited_for(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """After a broken connection the server may take a while to notice that its reader is gone."""
    newest_database.execute(SHOP)
    config = make_config(newest_database, retry={"max_attempts": 100})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    other = ReplicationStream(
        config.source,
        apply_slot_name("test"),
        ReplicationSession(max_bytes=1024, max_rows=10),
        LSN_ZERO,  # confirms nothing
        application_name="other",
    )
    other.open()

    with running(config, timing=replace(TIMING, idle_slot_s=0.3)) as pipeline:
        while pipeline.status().phase != "retrying":
            assert not pipeline.wait(0.01)
        assert "is read by another process" in str(pipeline.status().error)
        other.close()
        assert pipeline.wait_until_caught_up(60)


def test_a_worker_that_begins_while_the_pipeline_ends_is_waited_for(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """It would write to a destination that is shut down."""
    is_shut_down, begun = threading.Event(), threading.Event()

    class Store(MemoryStore):
        def is_leased(self, name: str) -> bool:
            """The manager asks right before it starts a worker."""
            pipeline.shutdown()
            while pipeline.status().phase != "stopping":
                time.sleep(0.001)
            return super().is_leased(name)

        def acquire_lease(self, name: str) -> MemoryLease | None:
            if name.startswith("table:"):
                begun.set()
                assert not is_shut_down.wait(0.5)
            return super().acquire_lease(name)

    class Closing(MemoryDestination):
        def shutdown(self) -> None:
            is_shut_down.set()

    newest_database.execute(SHOP)
    pipeline = Pipeline(make_config(newest_database), Store(), Closing())
    pipeline.start()

    assert pipeline.wait(60)
    assert begun.is_set()
    assert not [t for t in threading.enumerate() if t.name.startswith("table sync")]
