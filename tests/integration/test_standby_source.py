"""A standby as the source: read like a primary, never written to, and survived when promoted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from click.testing import CliRunner

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.cli.app import cli
from etl_dagster.cli.status import collect
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import SlotInvalidated
from etl_dagster.runtime.checking.preflight import run_checks
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.source.slots import apply_slot_name
from etl_dagster.stores.memory import MemoryStore
from tests.integration.test_retry import Refusing
from tests.support.database import Database
from tests.support.in_step import differences
from tests.support.pipelines import running
from tests.support.replica import Replica
from tests.support.standby import Pair, running_pair
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: One table has no key, so that a change that came twice is a row too many; one has values that
#: updates leave out.
SHOP = """
    create table orders (id int primary key, n int not null, note text);
    alter table orders alter note set storage external;
    create table visits (page text, n int);
    alter table visits replica identity full;
    create table people (id int primary key, name text);
    insert into orders select i, 0, repeat('x', 3000) || i from generate_series(1, 800) i;
    insert into visits select 'p' || i, i from generate_series(1, 500) i;
    insert into people values (1, 'Ada');
    create publication etl_pub for table orders, visits, people;
"""
TABLES = ("public.orders", "public.visits", "public.people")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The last test of this file promotes the standby."""
    with running_pair() as pair:
        yield pair


class Shop:
    """A database on the primary, and pipelines that read it from the standby."""

    def __init__(self, pair: Pair, store: Database, folder: Path) -> None:
        self.pair = pair
        self.primary, self.standby = pair.create_database(store.name)
        self.primary.execute(SHOP)
        pair.await_replay()
        self.path = folder / "shop.duckdb"
        self.file = folder / "etl.yaml"
        self.sections: dict[str, Any] = {
            "pipeline": store.name,
            "source": {
                "dsn": self.standby.dsn,
                "publication": "etl_pub",
                "standby": True,
                "primary_dsn": f"host={pair.primary.host} port={pair.primary.port}",
                "heartbeat_s": 0.2,
            },
            "state_store": {"type": "postgres", "dsn": store.dsn},
            "destination": {"type": "duckdb", "path": str(self.path)},
            "batch": {"max_fill_ms": 50},
            "copy": {"chunk_rows": 200},
            "retry": {"initial_delay_ms": 50, "max_delay_ms": 500, "max_attempts": 1000},
        }

    def config(self, **source: Any) -> PipelineConfig:
        """Into a DuckDB file."""
        sections = {**self.sections, "source": {**self.sections["source"], **source}}
        return PipelineConfig.model_validate(sections)

    def replica(self) -> Replica:
        """Into memory."""
        memory = {"type": "memory"}
        config = {**self.sections, "destination": memory, "state_store": memory}
        return Replica(self.primary, PipelineConfig.model_validate(config))

    def small_replica(self) -> Replica:
        """Of one small table."""
        self.primary.execute("alter publication etl_pub set table people")
        self.pair.await_replay()
        return self.replica()

    def call(self, command: str, *arguments: str) -> str:
        self.file.write_text(yaml.safe_dump(self.sections), "utf-8")
        done = CliRunner().invoke(cli, [command, "-c", str(self.file), *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    def states(self) -> Any:
        with closing(build_store(self.config())) as store:  # type: ignore[type-var]
            return store.get_table_replication_states()

    def catch_up(self, pipeline: Pipeline) -> None:
        """With what is committed on the primary."""
        self.pair.await_replay()
        assert pipeline.wait_until_caught_up(PATIENCE_S)

    def assert_in_step(self, pipeline: Pipeline) -> None:
        """The DuckDB file."""
        self.catch_up(pipeline)
        tables = [name.removeprefix("public.") for name in TABLES]
        assert differences(self.primary, self.config(), tables) == []

    def disconnect(self) -> None:
        self.primary.disconnect()
        self.standby.disconnect()


@pytest.fixture
def shop(pair: Pair, newest_database: Database, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(pair, newest_database, tmp_path)
    yield made
    made.disconnect()


@contextmanager
def written_to(database: Database) -> Iterator[None]:
    """Rows come, change and go in the block."""
    ended = threading.Event()

    def write() -> None:
        with database.connect() as connection:
            [(key,)] = connection.execute("select max(id) from orders").fetchall()
            first = key = max(key, 10_000)
            while not ended.wait(0.005):
                key += 1
                connection.execute(
                    "insert into orders values (%s, 1, repeat('y', 3000) || %s)", [key, key]
                )
                connection.execute("update orders set n = n + 1 where id %% 97 = %s", [key % 97])
                connection.execute("delete from orders where id = %s", [key - first])
                connection.execute("insert into visits values ('new', %s)", [key])
                connection.execute("update visits set n = n + 1 where n = %s", [key - first])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


def test_a_standby_is_copied_and_streamed_like_its_primary(shop: Shop) -> None:
    replica = shop.replica()
    # What is written meanwhile has no end: being caught up once is enough.
    with written_to(shop.primary), replica.running():
        pass
    shop.pair.await_replay()
    with replica.running() as pipeline:
        replica.assert_in_step(*TABLES)
        wait_until(lambda: pipeline.status().latency_seconds is not None)

        shop.primary.execute(
            "create table more (id int primary key)",
            "insert into more select generate_series(1, 10)",
            "alter publication etl_pub add table more",
            "alter publication etl_pub drop table people",
            "alter table orders add column paid bool default true",
            "update orders set n = 5 where id = 799",
        )
        shop.catch_up(pipeline)
        replica.assert_in_step("public.orders", "public.visits", "public.more")
        assert "public.people" not in pipeline.status().tables

        # It replays again what it had shown, and answers meanwhile.
        with written_to(shop.primary):
            shop.standby.disconnect()
            shop.pair.standby.stop()
            shop.pair.standby.start()
        shop.catch_up(pipeline)
        replica.assert_in_step("public.orders", "public.visits", "public.more")
    assert [c.message for c in run_checks(replica.config) if c.level == "error"] == []


def test_what_a_slot_on_a_standby_waits_for_is_reported(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """Without `primary_dsn`, and with a primary that is idle."""
    replica = shop.small_replica()
    source = replica.config.source.model_copy(update={"primary_dsn": None})
    replica.config = config = replica.config.model_copy(update={"source": source})
    of_status: list[str] = []
    ended = threading.Event()

    def run_there() -> None:
        """What the log says, until every slot is there."""
        while "waits for the primary to log" not in caplog.text:
            if ended.wait(0.05):
                return
        report = collect(config, MemoryStore())
        for slot in (report["slot"], *report["table_slots"]):
            of_status.extend(waited["solution"] for waited in slot["waits_for"])
        with shop.primary.connect() as admin:
            while not ended.wait(0.1):
                admin.execute("select pg_log_standby_snapshot()")

    operator = threading.Thread(target=run_there)
    operator.start()
    try:
        replica.catch_up()
    finally:
        ended.set()
        operator.join()
    [told] = of_status
    for words in (caplog.text, told):
        assert "On the primary: run SELECT pg_log_standby_snapshot();" in words


def test_the_doctor_reports_what_a_standby_lacks(shop: Shop, newest_database: Database) -> None:
    def findings(**source: Any) -> dict[str, tuple[str, str]]:
        return {c.name: (c.level, c.message) for c in run_checks(shop.config(**source))}

    found = findings()
    assert {level for level, _ in found.values()} <= {"ok", "warning"}
    assert found["primary"] == ("ok", "heartbeats and new slots go by the primary")
    assert found["hot_standby_feedback"] == ("ok", "on, by slot 'standby_1'")
    for primary_dsn, match in (
        (shop.standby.dsn, "leads to a standby"),
        (newest_database.dsn, "leads to another cluster"),
    ):
        level, message = findings(primary_dsn=primary_dsn)["primary"]
        assert level == "error"
        assert match in message
    level, message = findings(standby=False, primary_dsn=None)["standby"]
    assert level == "error"
    assert "the source is a standby" in message


def test_every_command_works_on_a_standby(shop: Shop) -> None:
    config = shop.config()
    with running(config) as pipeline:
        shop.assert_in_step(pipeline)
    with duckdb.connect(str(shop.path)) as file:
        file.execute("delete from public.orders where id % 400 = 7")
    destination = Refusing(build_destination(config))
    with running(config, destination=destination) as pipeline:
        shop.call("repair", "--yes", "public.orders")
        shop.assert_in_step(pipeline)

        # Its slot is a copy of the pipeline's.
        destination.refused.add("visits")
        shop.primary.execute("insert into visits values ('late', 1)")
        wait_until(lambda: len(shop.standby.slots()) == 2)
        wait_until(lambda: "something is in the way" in str(shop.states()))
        destination.refused.clear()
        assert "without a copy" in shop.call("retry", "--yes", "public.visits")
        shop.assert_in_step(pipeline)

        shop.call("resync", "--yes", "public.people")
        shop.assert_in_step(pipeline)
    assert shop.standby.slots() == [apply_slot_name(config.pipeline)]
    assert "installed the event trigger" in shop.call("migrate", "--source", "--yes")
    shop.call("remove", "--yes")
    assert shop.standby.slots() == []


def test_a_slot_that_the_primary_made_useless_is_named(shop: Shop, pair: Pair) -> None:
    replica = shop.small_replica()
    replica.catch_up()
    shop.disconnect()
    with pair.standby_with(hot_standby_feedback="off"):
        with shop.primary.connect() as admin:

            def holds_nothing() -> bool:
                row = admin.execute(
                    "select xmin is null and catalog_xmin is null from pg_replication_slots"
                    " where slot_name = 'standby_1'"
                )
                return row.fetchone() == (True,)

            wait_until(holds_nothing)
            admin.execute("create table passing as select 1")
            admin.execute("drop table passing")
            admin.execute("vacuum pg_class")
        pair.await_replay()
        [about] = [c for c in run_checks(replica.config) if c.name == "hot_standby_feedback"]
        assert about.level == "error"
    with pytest.raises(SlotInvalidated, match="removed catalog rows") as refused:
        replica.catch_up()
    assert "primary_slot_name" in refused.value.solution


def test_a_promotion_loses_and_doubles_nothing(shop: Shop, pair: Pair) -> None:
    replica = shop.replica()
    with replica.running() as pipeline:
        with written_to(shop.primary):
            assert pipeline.wait_until_caught_up(PATIENCE_S)
        shop.primary.disconnect()

        pair.fail_over()

        # What the standby didn't get of it is gone, for the pipeline too.
        replica.database = shop.standby
        with written_to(shop.standby):
            assert pipeline.wait_until_caught_up(PATIENCE_S)
        assert pipeline.wait_until_caught_up(PATIENCE_S)
        replica.assert_in_step(*TABLES)
    shop.standby.execute("insert into people values (2, 'Bob')")
    # As any primary, from now on.
    source = replica.config.source.model_copy(update={"standby": False, "primary_dsn": None})
    replica.config = replica.config.model_copy(update={"source": source})
    replica.catch_up()
    replica.assert_in_step(*TABLES)
