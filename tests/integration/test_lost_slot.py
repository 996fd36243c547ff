"""A slot whose WAL Postgres removed: the start stops, or copies again where it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from etl_dagster.cli.checks import all_checks
from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres, find_servers
from etl_dagster.errors import SlotInvalidated
from etl_dagster.source.slots import apply_slot_name
from tests.support.database import Database
from tests.support.pipelines import rows, running

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


def test_a_lost_slot_is_replaced_and_every_table_copied_where_that_is_chosen(
    database: Database, make_config: MakeConfig
) -> None:
    """What was streamed and is only at the destination goes, as rows deleted meanwhile do."""
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
