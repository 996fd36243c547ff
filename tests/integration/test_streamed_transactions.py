"""Transactions that are sent in parts before they commit arrive as any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch, TableChanges
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.protocol.pgoutput import Relation
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.source.spool import Spools
from etl_dagster.source.stream import ReplicationStream
from etl_dagster.source.trigger import install
from tests.support.database import Database
from tests.support.fan_outs import Several, several
from tests.support.pipelines import assert_table_in_step, running
from tests.support.waiting import wait_until

MakeConfig = Callable[..., PipelineConfig]

TABLES = ("a", "b", "c")
SETUP = (
    *(f"create table {name} (id int primary key, v text)" for name in TABLES),
    "insert into c select i, 'before' from generate_series(1, 100) i",
    "create publication etl_pub for table a, b, c",
)
#: Some 600 kB of changes, ten times what the server keeps in memory.
LARGE = "insert into {} select i, repeat('x', 100) from generate_series({}, {} + 2999) i"


@pytest.fixture
def source(database: Database) -> Database:
    """A database that sends each transaction that is larger than 64 kB before it commits."""
    database.execute(
        *SETUP, f"alter database {database.name} set logical_decoding_work_mem = '64kB'"
    )
    with database.connect() as connection:
        install(connection)
    return database


@contextmanager
def transaction(source: Database, *statements: str) -> Iterator[psycopg.Connection[Any]]:
    with source.connect() as connection:
        connection.execute("begin")
        for statement in statements:
            connection.execute(statement)
        yield connection


def side_by_side(source: Database) -> None:
    """Large transactions of every kind, a part of each between two parts of another."""
    with (
        transaction(source, LARGE.format("a", 1, 1)) as one,
        transaction(source, LARGE.format("b", 1, 1)) as two,
        transaction(source, LARGE.format("a", 10_000, 10_000)) as undone,
        transaction(source, LARGE.format("a", 20_000, 20_000)) as prepared,
    ):
        one.execute("savepoint kept")
        one.execute("update a set v = 'kept' where id <= 1500")
        one.execute("savepoint lost")
        one.execute("update a set v = 'lost', id = -id where id <= 1500")
        one.execute("savepoint inside")
        one.execute(LARGE.format("a", 50_000, 50_000))
        one.execute("release inside")
        source.execute("update c set v = 'meanwhile' where id < 10")
        two.execute("delete from b where id % 2 = 0")
        two.execute("truncate c")
        one.execute("rollback to lost")
        one.execute("delete from a where id > 2900")
        one.execute("release kept")
        two.execute("alter table b add column w int default 7")
        two.execute("update b set v = repeat('y', 200), w = id where id < 900")
        two.execute("insert into b select i, 'z', 7 from generate_series(5000, 7000) i")
        prepared.execute("prepare transaction 'large'")
        undone.execute(LARGE.format("a", 30_000, 30_000))
        undone.execute("rollback")
        two.execute("commit")
        one.execute(LARGE.format("a", 40_000, 40_000))
        one.execute("commit")
    source.execute("commit prepared 'large'", "insert into c values (1, 'after')")


def is_in_progress(pipeline: Pipeline, count: int = 1) -> Callable[[], bool]:
    return lambda: pipeline.status().transactions_in_progress == count


# -- both ways -----------------------------------------------------------------------------------


def _schema_of(relation: Relation, commit_lsn: Lsn) -> TableSchema:
    columns = tuple(
        ColumnSchema(c.name, c.type_oid, c.type_modifier, is_identity=c.is_identity)
        for c in relation.columns
    )
    return TableSchema(relation.id, relation.schema_name, relation.table_name, columns)


class Changes:
    """What a slot brings, one line for everything that happened."""

    def __init__(
        self, source: Database, config: PipelineConfig, slot: str, spools: Spools | None
    ) -> None:
        tables = source.query("select oid from pg_class where relname = any(%s)", [list(TABLES)])
        self._apply_from = {table_id: Lsn(0) for (table_id,) in tables}
        self.lines: list[str] = []
        #: Kept on disk at most.
        self.most_spooled = 0
        self._session = ReplicationSession(max_rows=1000)
        self._spools = spools
        self._stream = ReplicationStream(
            config.source, slot, self._session, Lsn(0), application_name="test", spools=spools
        )

    def read_up_to(self, end: Lsn) -> None:
        self._stream.open()
        try:
            while self._session.last_keepalive_end < end:
                self._stream.request_keepalive()
                self._stream.read(0.2)
                if self._spools is not None:
                    self.most_spooled = max(self.most_spooled, self._spools.bytes_kept)
                self._note(self._session.take_batch())
        finally:
            self._stream.close()

    def _note(self, batch: Any) -> None:
        events: EventBatch = batch.decode(_schema_of, self._apply_from, 1)
        for table_id, steps in events.tables.items():
            for step in steps:
                if isinstance(step, TableChanges):
                    rows = zip(
                        step.ops, step.commit_lsns, step.ordinals, step.commit_times_us, step.xids,
                        step.rows.to_pylist(), strict=True,
                    )  # fmt: skip
                    self.lines += [f"{table_id} {' '.join(map(str, row))}" for row in rows]
                else:
                    self.lines.append(
                        f"{table_id} {type(step).__name__} {step.schema.column_names}"
                    )


def test_a_transaction_has_the_same_changes_and_positions_however_it_is_sent(
    source: Database, make_config: MakeConfig, tmp_path: Path
) -> None:
    """So it may be sent in one way before a crash, and in the other one after it."""
    for slot in ("whole", "parts"):
        source.query("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    side_by_side(source)
    end = Lsn.parse(source.current_lsn())
    config = make_config(source)
    whole = Changes(source, config, "whole", None)
    parts = Changes(source, config, "parts", Spools(tmp_path, 10**9))

    whole.read_up_to(end)
    parts.read_up_to(end)

    assert len(whole.lines) > 15_000
    assert parts.most_spooled > 10**6
    assert sorted(parts.lines) == sorted(whole.lines)


# -- pipelines -----------------------------------------------------------------------------------


@contextmanager
def settled(config: PipelineConfig) -> Iterator[Pipeline]:
    """A pipeline that streams; a copy's slot would wait for transactions that are open."""
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        yield pipeline


def test_large_transactions_arrive_though_the_pipeline_stops_and_the_connection_breaks(
    source: Database, make_config: MakeConfig
) -> None:
    config = make_config(source)
    with settled(config):
        pass
    with transaction(source, LARGE.format("a", 100_000, 100_000)) as writer:
        with running(config) as pipeline:
            wait_until(is_in_progress(pipeline))
            wait_until(lambda: pipeline.status().spooled_bytes > 0)
        writer.execute("savepoint s")
        writer.execute(LARGE.format("a", 200_000, 200_000))
        writer.execute("rollback to s")
        with running(config) as pipeline:
            wait_until(is_in_progress(pipeline))
            source.query(
                "select pg_terminate_backend(active_pid) from pg_replication_slots where active"
            )
            wait_until(is_in_progress(pipeline, 0))
            wait_until(is_in_progress(pipeline))
            side_by_side(source)
            writer.execute("commit")
            assert pipeline.wait_until_caught_up(60)
            status = pipeline.status()
    assert (status.transactions_in_progress, status.spooled_bytes, status.note) == (0, 0, None)
    for table in TABLES:
        assert_table_in_step(source, config, table)


def test_a_transaction_that_may_have_altered_a_table_in_a_savepoint_is_read_again_whole(
    source: Database, make_config: MakeConfig
) -> None:
    """Postgres does not report in which savepoint a message was written."""
    config = make_config(source)
    with (
        settled(config) as pipeline,
        transaction(source, LARGE.format("a", 1, 1), "savepoint s") as writer,
    ):
        writer.execute("alter table a add column undone int")
        writer.execute("insert into a select i, 'undone', 1 from generate_series(10000, 20000) i")
        # More than what came before, so that what is undone was sent.
        wait_until(lambda: pipeline.status().spooled_bytes > 700_000)
        writer.execute("rollback to s")
        writer.execute("commit")
        assert pipeline.wait_until_caught_up(60)
        note = pipeline.status().note
    assert "altered a table near a savepoint" in (note or "")
    assert_table_in_step(source, config, "a")


def test_with_a_full_spool_postgres_keeps_the_transaction(
    source: Database, make_config: MakeConfig
) -> None:
    config = make_config(source, batch={"spool_max_bytes": "200kB"})
    with (
        settled(config) as pipeline,
        transaction(source, LARGE.format("a", 1, 1)) as writer,
    ):
        wait_until(lambda: pipeline.status().note is not None)
        note = pipeline.status().note or ""
        source.execute("insert into b values (1, 'continues')")
        wait_until(lambda: pipeline.status().rows_total > 0)
        writer.execute("commit")
        assert pipeline.wait_until_caught_up(60)
    assert "batch.spool_max_bytes (195.3 KiB)" in note
    assert "Raise batch.spool_max_bytes" in note
    for table in TABLES:
        assert_table_in_step(source, config, table)


def test_every_destination_gets_the_transaction(source: Database, tmp_path: Path) -> None:
    sides = Several(source, several(source, tmp_path))
    with sides.running() as fan_out:
        assert fan_out.wait_until_caught_up(60)
        with transaction(source, LARGE.format("a", 1, 1)) as writer:
            wait_until(
                lambda: all(s.transactions_in_progress == 1 for s in fan_out.statuses().values())
            )
            writer.execute("savepoint s")
            writer.execute(LARGE.format("a", 5000, 5000))
            writer.execute("rollback to s")
            writer.execute("commit")
        wait_until(lambda: all(sides.is_in_step(name, "public.a") for name in ("left", "right")))
