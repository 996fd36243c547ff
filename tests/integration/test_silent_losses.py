"""What happens behind the stream's back is noticed: nothing is lost without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import query
from etl_dagster.errors import PublicationMissing
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.pipeline import Pipeline
from tests.support.database import Database

MakeConfig = Callable[..., PipelineConfig]

ITEMS = """
    create table items (id int primary key, n int not null, filler text);
    insert into items select i, 0, repeat('x', 200) from generate_series(1, 5000) i;
    delete from items where id % 3 = 0;
"""


class AfterChunk:
    """A destination that calls a function after the first chunk of a table, once."""

    def __init__(self, inner: Destination, then: Callable[[], None]) -> None:
        self._inner = inner
        self._then: Callable[[], None] | None = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        self._inner.write_table_rows(schema, rows)
        then, self._then = self._then, None
        if then is not None:
            then()


@pytest.fixture
def config(newest_database: Database, make_config: MakeConfig) -> PipelineConfig:
    newest_database.execute(ITEMS, "vacuum analyze items")
    return make_config(newest_database, copy={"chunk_rows": 500, "max_connections_per_table": 1})


@pytest.fixture
def store(config: PipelineConfig) -> Iterator[CoordinatingStore]:
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        yield store


def run(
    config: PipelineConfig,
    store: CoordinatingStore,
    then: Callable[[], None] = lambda: None,
    while_streaming: Callable[[Pipeline], None] = lambda pipeline: None,
) -> None:
    destination: Any = AfterChunk(build_destination(config), then)
    pipeline = Pipeline(config, store, destination)
    pipeline.start()
    try:
        assert pipeline.wait_until_caught_up(60)
        while_streaming(pipeline)
    finally:
        pipeline.shutdown()
        pipeline.wait(60)


def assert_in_step(database: Database, config: PipelineConfig) -> None:
    assert config.destination.type == "duckdb"
    there = query(config.destination.path, "select id, n from public.items order by id, n")
    rows = [tuple(row.values()) for row in there.to_pylist()]
    assert rows == database.query("select id, n from items order by id, n")


def test_a_table_that_is_rewritten_during_its_copy_is_copied_again(
    newest_database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    newest_database.execute("create publication etl_pub for table items")
    run(config, store, lambda: newest_database.execute("vacuum full items"))
    assert_in_step(newest_database, config)


def test_a_column_that_is_dropped_during_the_copy_restarts_it(
    newest_database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    newest_database.execute("create publication etl_pub for table items")
    run(config, store, lambda: newest_database.execute("alter table items drop filler"))
    assert_in_step(newest_database, config)


def test_rows_that_move_are_single_though_updates_are_not_published(
    newest_database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    newest_database.execute("create publication etl_pub for table items with (publish = 'insert')")

    def move() -> None:
        newest_database.execute("update items set filler = 'y' where id > 4000 or id < 500")

    run(config, store, move)
    assert_in_step(newest_database, config)


def test_a_copy_requested_during_a_copy_is_made(
    newest_database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    newest_database.execute("create publication etl_pub for table items")
    plans: list[str] = []

    def ask() -> None:
        [table_id] = store.get_table_replication_states()
        plan = store.get_copy_plan(table_id)
        assert plan is not None
        plans.append(plan.copy_id)
        store.request_copy(table_id)

    run(config, store, ask)

    [table_id] = store.get_table_replication_states()
    plan = store.get_copy_plan(table_id)
    assert plan is not None
    assert plan.copy_id not in plans
    assert_in_step(newest_database, config)


def test_a_table_that_was_out_of_the_publication_is_copied_again(
    newest_database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    newest_database.execute("create publication etl_pub for table items")
    run(config, store)
    newest_database.execute(
        "alter publication etl_pub drop table items",
        "insert into items values (9001, 1, null)",
        "alter publication etl_pub add table items",
    )
    run(config, store)
    assert_in_step(newest_database, config)


def test_a_publication_that_is_gone_ends_the_pipeline(
    newest_database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    newest_database.execute("create publication etl_pub for table items")

    def drop(pipeline: Pipeline) -> None:
        newest_database.execute("drop publication etl_pub")
        with pytest.raises(PublicationMissing):
            assert pipeline.wait(60)

    with pytest.raises(PublicationMissing):
        run(config, store, while_streaming=drop)
    newest_database.execute(
        "insert into items values (9001, 1, null)", "create publication etl_pub for table items"
    )
    run(config, store)
    assert_in_step(newest_database, config)
