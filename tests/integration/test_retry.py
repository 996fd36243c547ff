"""Tables that stop, and are resumed where they stopped, without a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.cli.app import cli
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import CopyNeeded, TableWriteFailed
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Errored, ManualRetry, Ready, TableState
from etl_dagster.model.stores import CoordinatingStore, TableSyncWorker, WorkerType
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.retention import prune_schemas
from etl_dagster.runtime.retrying import request_retry, require_retryable
from etl_dagster.runtime.timing import TIMING
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import apply_slot_name, table_sync_slot_name
from etl_dagster.stores.postgres import PostgresStore
from tests.support.asking import control_with
from tests.support.database import Database
from tests.support.fan_outs import Several, several
from tests.support.pipelines import rows, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

#: One of them has no key: a change that came twice would be a row too many.
SHOP = """
    create table orders (id int primary key, n int);
    create table visits (page text, n int);
    alter table visits replica identity full;
    insert into orders values (0, 0);
    insert into visits values ('home', 0);
    create publication etl_pub for table orders, visits;
"""


class Refusing:
    """A destination that refuses some tables' changes."""

    def __init__(self, inner: Destination) -> None:
        self._inner = inner
        self.refused: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_events(self, events: EventBatch) -> Any:
        for table_id, steps in events.tables.items():
            if steps and steps[0].schema.table_name in self.refused:
                raise TableWriteFailed(table_id, "something is in the way", solution="Move it.")
        return self._inner.write_events(events)


@pytest.fixture
def config(database: Database, make_config: MakeConfig) -> PipelineConfig:
    database.execute(SHOP)
    return make_config(database, batch={"max_fill_ms": 20})


@pytest.fixture
def store(config: PipelineConfig) -> Iterator[CoordinatingStore]:
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        yield store


def id_of(database: Database, table: str) -> TableId:
    [(table_id,)] = database.query("select %s::regclass::oid::int", [table])
    assert isinstance(table_id, int)
    return table_id


def state_of(store: CoordinatingStore, table_id: TableId) -> TableState | None:
    return store.get_table_replication_state(table_id)


def stopped(store: CoordinatingStore, table_id: TableId) -> Errored:
    store.load_table_replication_states()
    state = store.get_table_replication_state(table_id)
    assert isinstance(state, Errored), state
    return state


def retry(config: PipelineConfig, store: CoordinatingStore, table_id: TableId) -> Lsn | None:
    control = SourceControl(config.source, application_name="test")
    with closing(control):
        state = require_retryable(config, store, control, table_id, str(table_id))
    return request_retry(store, table_id, state)


def written(folder: Path, database: Database) -> str:
    """The configuration as a file."""
    file = folder / "etl.yaml"
    sections = {
        "pipeline": "test",
        "source": {"dsn": database.dsn, "publication": "etl_pub"},
        "destination": {"type": "duckdb", "path": "test.duckdb"},
    }
    file.write_text(yaml.safe_dump(sections), "utf-8")
    return str(file)


def stop_visits(database: Database, pipeline: Pipeline, destination: Refusing) -> None:
    """Have the destination refuse the table's changes, of which there are some."""
    assert pipeline.wait_until_caught_up(60)
    destination.refused.add("visits")
    database.execute(
        "insert into visits values ('a', 1), ('b', 2)",
        "begin; insert into orders values (1, 1); insert into visits values ('c', 3); commit",
    )
    assert pipeline.wait_until_caught_up(60)


def assert_in_step(database: Database, config: PipelineConfig) -> None:
    for table in ("orders", "visits"):
        statement = f"select * from public.{table} order by all"
        there = sorted(rows(config, statement))
        assert there == sorted(database.query(f"select * from {table}")), table


def test_a_table_that_stopped_is_resumed_where_it_stopped(
    database: Database, config: PipelineConfig, store: CoordinatingStore, tmp_path: Path
) -> None:
    """Nothing is copied, and what came meanwhile is applied once, under the columns of its time."""
    visits = id_of(database, "visits")
    destination = Refusing(build_destination(config))
    with running(config, store=store, destination=destination) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "alter table visits add column at date", "update visits set at = '2026-05-01'"
        )
        assert pipeline.wait_until_caught_up(60)
        # The version of its schema that was copied is not needed to resume it.
        assert prune_schemas(store)
        stop_visits(database, pipeline, destination)
        assert rows(config, "select n from public.orders order by n") == [(0,), (1,)]
        assert rows(config, "select n from public.visits") == [(0,)]
        copy = store.get_copy_plan(visits)
        state = stopped(store, visits)
        assert (state.reason, state.retry, state.is_kept) == (
            "something is in the way",
            ManualRetry(),
            True,
        )
        own = table_sync_slot_name(config.pipeline, visits)
        assert sorted(database.slots()) == [apply_slot_name(config.pipeline), own]
        database.execute(
            "alter table visits add column more int default 7",
            "insert into visits values ('d', 4, null, 8)",
            "update visits set n = 11 where page = 'a'",
            "delete from visits where page = 'home'",
            "insert into orders values (2, 2)",
        )
        assert pipeline.wait_until_caught_up(60)

        destination.refused.clear()
        answer = CliRunner().invoke(
            cli, ["retry", "-c", written(tmp_path, database), "--all", "--yes"]
        )
        assert answer.output.splitlines() == [
            f"public.visits will be resumed from {state.lsn}, without a copy.",
            "Done. The running pipeline starts on it now.",
        ]
        wait_until(lambda: isinstance(state_of(store, visits), Ready))
        database.execute("insert into visits values ('e', 5, null, 9)")
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)
        assert store.get_copy_plan(visits) == copy
        wait_until(lambda: database.slots() == [apply_slot_name(config.pipeline)])


class Killed(BaseException):
    """In place of a SIGKILL."""


@pytest.mark.parametrize(
    "step", ["the slot is made", "its progress is stored", "the table has stopped"]
)
def test_a_process_that_dies_while_it_sets_a_table_aside_loses_and_doubles_nothing(
    newest_database: Database, make_config: MakeConfig, step: str
) -> None:
    database = newest_database
    database.execute(SHOP)
    config = make_config(database, batch={"max_fill_ms": 20})
    visits = id_of(database, "visits")
    destination = Refusing(build_destination(config))

    def is_done(now: str) -> None:
        if now == step and "visits" in destination.refused:
            raise Killed

    class Store(PostgresStore):
        def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
            stored = super().upsert_replication_progress(worker, flush_lsn)
            if worker == TableSyncWorker(visits):
                is_done("its progress is stored")
            return stored

        def transition_table_state(
            self, table_id: TableId, expected: TableState, new: TableState
        ) -> bool:
            changed = super().transition_table_state(table_id, expected, new)
            is_done("the table has stopped")
            return changed

    def asked(what: str) -> None:
        if what == "keeping the changes of a table":
            is_done("the slot is made")

    with (
        closing(Store(database.dsn, config.pipeline)) as store,
        pytest.raises(Killed),
        running(
            config, store=store, destination=destination, make_control=control_with(after=asked)
        ) as pipeline,
    ):
        stop_visits(database, pipeline, destination)
    database.execute("insert into visits values ('d', 4)")
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store) as pipeline,
    ):
        if isinstance(state_of(store, visits), Errored):
            retry(config, store, visits)
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)
        wait_until(lambda: database.slots() == [apply_slot_name(config.pipeline)])


def test_tables_that_cannot_be_kept_need_a_copy_and_a_retry_says_so(
    newest_database: Database, make_config: MakeConfig
) -> None:
    database = newest_database
    database.execute(SHOP)
    config = make_config(database, batch={"max_fill_ms": 20}, retry={"max_retained_wal": 0})
    visits = id_of(database, "visits")
    destination = Refusing(build_destination(config))
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store, destination=destination) as pipeline,
    ):
        stop_visits(database, pipeline, destination)
        assert not stopped(store, visits).is_kept
        assert database.slots() == [apply_slot_name(config.pipeline)]
        with pytest.raises(CopyNeeded, match=r"its changes, since .*, are not kept"):
            retry(config, store, visits)
        destination.refused.clear()
        store.request_copy(visits)
        wait_until(lambda: isinstance(state_of(store, visits), Ready))
        assert pipeline.wait_until_caught_up(60)
        assert_in_step(database, config)


def test_a_table_that_is_dropped_while_it_is_stopped_leaves_no_slot(
    newest_database: Database, make_config: MakeConfig
) -> None:
    database = newest_database
    database.execute(SHOP)
    config = make_config(database, batch={"max_fill_ms": 20})
    destination = Refusing(MemoryDestination())
    with running(config, destination=destination) as pipeline:
        stop_visits(database, pipeline, destination)
        assert len(database.slots()) == 2
        database.execute("drop table visits")
        assert pipeline.wait_until_caught_up(60)
        wait_until(lambda: database.slots() == [apply_slot_name(config.pipeline)])


def test_a_slot_that_keeps_too_much_is_dropped_and_the_table_needs_a_copy(
    newest_database: Database,
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    timing = replace(TIMING, kept_slots_s=0.1)
    database = newest_database
    database.execute(SHOP)
    config = make_config(database, batch={"max_fill_ms": 20}, retry={"max_retained_wal": 2**20})
    visits = id_of(database, "visits")
    destination = Refusing(build_destination(config))
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store, destination=destination, timing=timing) as pipeline,
    ):
        stop_visits(database, pipeline, destination)
        database.execute("select pg_logical_emit_message(false, 'x', repeat('x', 2000000))")
        wait_until(lambda: not stopped(store, visits).is_kept)
        wait_until(lambda: database.slots() == [apply_slot_name(config.pipeline)])
        wait_until(lambda: "resync" in str(pipeline.status().tables["public.visits"].solution))
        # It is known to the commands, and the rest is streamed as before.
        answer = CliRunner().invoke(cli, ["status", "-c", written(tmp_path, database)])
        assert "more than retry.max_retained_wal (1.0 MiB), and was dropped" in answer.output
        assert "`etl-dagster resync public.visits`" in answer.output
        database.execute("insert into orders values (2, 2)")
        assert pipeline.wait_until_caught_up(60)
        assert rows(config, "select n from public.orders order by n") == [(0,), (1,), (2,)]


def test_tables_that_stop_at_one_destination_of_several_are_resumed_there(
    newest_database: Database, tmp_path: Path
) -> None:
    database = newest_database
    database.execute(SHOP)
    right = Refusing(MemoryDestination())
    both = Several(database, several(database, tmp_path), {"right": right})  # type: ignore[dict-item]
    store, member = both.stores["right"], both.config.members()["right"]
    tables = [id_of(database, name) for name in ("orders", "visits")]
    with both.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        right.refused |= {"orders", "visits"}
        database.execute(
            "insert into orders values (1, 1)",
            "begin; insert into orders values (2, 2); insert into visits values ('a', 1); commit",
        )
        assert fan_out.wait_until_caught_up(60)
        assert both.is_in_step("left", "public.orders")
        assert not both.is_in_step("right", "public.orders")
        own = [table_sync_slot_name(member.pipeline, table_id) for table_id in tables]
        assert sorted(database.slots()) == sorted([apply_slot_name("test"), *own])
        right.refused.clear()
        for table_id in tables:
            retry(member, store, table_id)
        database.execute("insert into visits values ('b', 2)", "delete from orders where id = 0")
        assert fan_out.wait_until_caught_up(60)
        both.assert_in_step("public.orders", "public.visits")
        wait_until(lambda: database.slots() == [apply_slot_name("test")])
