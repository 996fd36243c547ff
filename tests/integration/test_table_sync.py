"""Copies that are interrupted, and rows that move while they are copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import query
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import DestinationUnreachable, HandoverTimeout
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import TableRows
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import DataSync, Errored, Init, TimedRetry
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.copying.table_sync import TableSync
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.timing import Timing
from tests.support.database import Database
from tests.support.leaks import make_secret

SECRET = make_secret("geheim")

MakeConfig = Callable[..., PipelineConfig]

#: 14 rows to a block, each with a value out of line; the first block is empty but for its space.
DOCUMENTS = """
    create table documents (id int primary key, n int, filler char(500), body text);
    alter table documents alter body set storage external;
    insert into documents select i, 0, 'x', repeat(chr(65 + i % 26), 3000)
      from generate_series(1, 300) i;
    delete from documents where ctid < '(1,0)';
    create publication etl_pub for table documents;
"""


class Hooked:
    """A destination that calls a function after each chunk that it has written."""

    def __init__(self, inner: Destination, after_chunk: Callable[[int], None]) -> None:
        self._inner = inner
        self._after_chunk = after_chunk
        self.chunks: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        self._inner.write_table_rows(schema, rows)
        if rows.chunk is not None:
            self.chunks.append(rows.chunk.index)
            self._after_chunk(rows.chunk.index)


@pytest.fixture
def config(database: Database, make_config: MakeConfig) -> PipelineConfig:
    database.execute(DOCUMENTS, "vacuum analyze documents")
    return make_config(database, copy={"chunk_rows": 30, "max_connections_per_table": 1})


@pytest.fixture
def store(config: PipelineConfig) -> Iterator[CoordinatingStore]:
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        yield store


def block_of(database: Database, row_id: int) -> int:
    [(block,)] = database.query(
        "select (ctid::text::point)[0]::int from documents where id = %s", [row_id]
    )
    assert isinstance(block, int)
    return block


def table_id_of(database: Database) -> TableId:
    [(table_id,)] = database.query("select 'documents'::regclass::oid::int")
    assert isinstance(table_id, int)
    return table_id


def assert_in_step(database: Database, config: PipelineConfig) -> None:
    assert config.destination.type == "duckdb"
    statement = "select id, n, body from {}documents order by id"
    there = query(config.destination.path, statement.format("public.")).to_pylist()
    assert [tuple(row.values()) for row in there] == database.query(statement.format(""))


def run_until_caught_up(config: PipelineConfig, store: CoordinatingStore, destination: Any) -> None:
    pipeline = Pipeline(config, store, destination)
    pipeline.start()
    try:
        assert pipeline.wait_until_caught_up(60)
    finally:
        pipeline.shutdown()
        assert pipeline.wait(60)


def test_a_row_that_moves_between_chunks_is_not_lost(
    database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    def move(chunk: int) -> None:
        if chunk == 0:
            before = block_of(database, 150)
            database.execute("update documents set n = 1 where id = 150")
            assert before > 2
            assert block_of(database, 150) == 0

    run_until_caught_up(config, store, Hooked(build_destination(config), move))

    assert_in_step(database, config)


def test_a_row_that_moves_between_chunks_and_then_changes_its_key_is_not_lost(
    database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    def move(chunk: int) -> None:
        if chunk == 0:
            database.execute(
                "update documents set n = 1 where id = 150",
                "update documents set id = 1150 where id = 150",
                "update documents set id = 150, n = 2 where id = 151",
            )

    run_until_caught_up(config, store, Hooked(build_destination(config), move))

    assert_in_step(database, config)


def test_an_interrupted_copy_resumes_with_the_missing_chunks(
    database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    def stop(chunk: int) -> None:
        if chunk == 2:
            pipeline.shutdown()

    first = Hooked(build_destination(config), stop)
    pipeline = Pipeline(config, store, first)  # type: ignore[arg-type]
    pipeline.start()
    assert pipeline.wait(60)
    assert first.chunks == [0, 1, 2]
    assert store.get_table_replication_state(table_id_of(database)) == DataSync()
    database.execute(
        "update documents set n = 7 where id % 2 = 0", "delete from documents where id < 40"
    )

    second = Hooked(build_destination(config), lambda chunk: None)
    run_until_caught_up(config, store, second)

    assert min(second.chunks) == 3
    assert_in_step(database, config)


def test_a_copy_survives_a_destination_that_fails_for_a_while(
    database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    failures = iter([1, 2, 3])

    class Flaky(Hooked):
        def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
            if rows.chunk is not None and rows.chunk.index == 1 and next(failures, None):
                raise DestinationUnreachable("the disk is on holiday")
            super().write_table_rows(schema, rows)

    flaky = Flaky(build_destination(config), lambda chunk: None)
    run_until_caught_up(config, store, flaky)

    assert sorted(flaky.chunks) == list(range(len(flaky.chunks)))
    assert_in_step(database, config)


def test_a_worker_that_fails_records_the_reason_and_the_time_of_the_next_try(
    database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    table_id = table_id_of(database)

    class Broken(Hooked):
        def drop_table_for_copy(self, schema: TableSchema) -> None:
            raise DestinationUnreachable("no route to the disk")

    broken = Broken(build_destination(config), lambda chunk: None)
    store.update_table_replication_states([(table_id, Init())])

    for attempt in (1, 2):
        with pytest.raises(DestinationUnreachable):
            TableSync(config, store, broken, table_id).run()  # type: ignore[arg-type]
        state = store.get_table_replication_state(table_id)
        assert isinstance(state, Errored)
        assert state.reason == "no route to the disk"
        assert isinstance(state.retry, TimedRetry)
        assert state.retry.attempt == attempt


def test_before_a_new_copy_the_destination_gets_the_table_as_it_knew_it(
    database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    """It has to find what it wrote, which is under the old name."""
    told: list[str] = []

    class Noting(MemoryDestination):
        def drop_table_for_copy(self, schema: TableSchema) -> None:
            told.append(schema.name)
            super().drop_table_for_copy(schema)

    run_until_caught_up(config, store, Noting())
    database.execute("alter table documents rename to papers")
    [table_id] = store.get_table_replication_states()
    store.request_copy(table_id)
    destination = Noting()
    run_until_caught_up(config, store, destination)

    assert told == ["public.documents", "public.documents"]
    assert len(destination.rows("public.papers")) > 0


def test_a_foreign_error_of_a_destination_is_retried_and_keeps_its_message(
    database: Database,
    config: PipelineConfig,
    store: CoordinatingStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in the stream. Its message may hold a row's value."""
    failures = iter([ValueError(f"{SECRET} row"), KeyError(f"{SECRET} row")])

    class Weak(MemoryDestination):
        def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
            if failure := next(failures, None):
                raise failure
            super().write_table_rows(schema, rows)

    destination = Weak()
    with caplog.at_level("INFO"):
        run_until_caught_up(config, store, destination)

    assert len(destination.rows("public.documents")) == 286
    assert "memory failed with ValueError at:" in caplog.text
    assert SECRET not in caplog.text


def test_a_copy_that_no_process_takes_over_is_given_up(
    database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    """It leaves nothing at the source or the destination that keeps WAL or space."""
    table_id = table_id_of(database)
    store.update_table_replication_states([(table_id, Init())])
    destination = build_destination(config)
    destination.startup(store)

    with pytest.raises(HandoverTimeout, match=r"public\.documents is copied, but for"):
        TableSync(config, store, destination, table_id, timing=Timing(handover_s=0.5)).run()
    destination.shutdown()

    assert database.slots() == []
    assert not store.is_leased(f"table:{table_id}")
    assert tables_of(config) == ["documents"]
    state = store.get_table_replication_state(table_id)
    assert isinstance(state, Errored)
    assert "Start the pipeline" in state.solution
    # The next start of the pipeline copies the table by itself.
    database.execute("update documents set n = 3 where id = 150")
    run_until_caught_up(config, store, build_destination(config))
    assert_in_step(database, config)
    assert database.slots() == ["etl_dagster_apply_test"]


def tables_of(config: PipelineConfig) -> list[str]:
    """Every table of the destination but those that it keeps for itself."""
    assert config.destination.type == "duckdb"
    found = query(
        config.destination.path,
        "select table_name from duckdb_tables() where schema_name <> '_etl' order by 1",
    )
    return [str(name) for name in found["table_name"].to_pylist()]
