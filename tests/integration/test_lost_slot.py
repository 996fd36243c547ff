"""A slot whose WAL Postgres removed: the start stops, or copies again if so configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.cli.checks import all_checks
from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres, find_servers
from etl_dagster.errors import SlotInvalidated
from etl_dagster.runtime.table_ids import find_table_ids
from etl_dagster.source.slots import apply_slot_name
from tests.support.database import Database
from tests.support.pipelines import assert_table_in_step, rows, running

MakeConfig = Callable[..., PipelineConfig]


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    folder = tmp_path_factory.mktemp("tight")
    folder.chmod(0o755)
    settings = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB"}
    with (
        EmbeddedPostgres(
            folder / "data", find_servers()[0], settings=settings, durable=False
        ) as server,
        Database.create(server) as database,
    ):
        database.execute(
            "create table items (id int primary key, n int not null)",
            "insert into items select i, 0 from generate_series(1, 100) i",
            "create publication etl_pub for table items",
        )
        yield database


def lose_slot(database: Database) -> None:
    for _ in range(4):
        database.execute("select pg_logical_emit_message(false, 'x', 'x'); select pg_switch_wal()")
    database.execute("checkpoint")
    assert database.query("select wal_status from pg_replication_slots") == [("lost",)]


def about_the_slot(config: PipelineConfig) -> list[tuple[str, str]]:
    checks = all_checks(config)
    return [(check.level, check.message) for check in checks if check.name == "slot"]


def test_a_lost_slot_is_replaced_and_every_table_copied_if_so_configured(
    database: Database, make_config: MakeConfig
) -> None:
    """Rows that only the destination still has are removed, as are rows deleted meanwhile."""
    stopping = make_config(database)
    with running(stopping) as pipeline:
        pipeline.wait_until_caught_up()
        database.execute("insert into items values (101, 1)")
        pipeline.wait_until_caught_up()
    lose_slot(database)
    database.execute("delete from items where id <= 10", "update items set n = 2 where id = 11")

    with pytest.raises(SlotInvalidated), running(stopping):
        pass
    [(level, _)] = about_the_slot(stopping)
    assert level == "error"
    recopying = stopping.model_copy(update={"on_lost_slot": "recopy"})
    [(level, message)] = about_the_slot(recopying)
    assert (level, "copies every table again" in message) == ("warning", True)

    with running(recopying) as pipeline:
        pipeline.wait_until_caught_up()
        database.execute("insert into items values (102, 3)")
        pipeline.wait_until_caught_up()
        assert pipeline.status().tables["public.items"].state == "ready"
    expected = database.query("select count(*), sum(n), min(id) from items")
    assert rows(recopying, "select count(*), sum(n), min(id) from public.items") == expected
    assert database.slots() == [apply_slot_name(recopying.pipeline)]


def test_after_a_lost_slot_the_rows_that_differ_are_replaced_if_so_configured(
    database: Database, make_config: MakeConfig
) -> None:
    """Rows that changed while nothing was streamed, and while both sides are compared."""
    database.execute(
        "create table log (n int)",
        "alter table log replica identity full",
        "insert into log select i from generate_series(1, 20) i",
        "alter publication etl_pub add table log",
    )
    repairing = make_config(database, on_lost_slot="repair")
    with closing(build_store(repairing)) as store:  # type: ignore[type-var]
        with running(repairing, store=store) as pipeline:
            pipeline.wait_until_caught_up()
        lose_slot(database)
        database.execute("delete from items where id <= 10", "update items set n = 2 where id = 11")
        database.execute("insert into items values (101, 1)", "delete from log where n = 3")
        [(level, message)] = about_the_slot(repairing)
        assert (level, "compares and repairs every table" in message) == ("warning", True)

        with running(repairing, store=store) as pipeline:
            database.execute("insert into items values (102, 3)", "delete from items where id = 20")
            pipeline.wait_until_caught_up()
            database.execute("update items set n = 4 where id = 102")
            pipeline.wait_until_caught_up()
        outcomes = {
            name: store.get_note(f"repaired {table_id}")
            for name, table_id in find_table_ids(repairing, store).items()
        }
    items, log = outcomes["public.items"], outcomes["public.log"]
    assert items is not None
    assert log is not None
    assert (items["by"], log["by"], log["reason"]) == ("ranges", "copy", "it has no key")
    assert items["extra"] in (10, 11)
    assert_table_in_step(database, repairing, "items")
    assert_table_in_step(database, repairing, "log")
    assert database.slots() == [apply_slot_name(repairing.pipeline)]
