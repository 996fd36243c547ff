"""DuckLake refuses one of two transactions that overlap, wherever it matters.

A writer takes a lock before. These tests are about what holds without it: two sessions of one
lake, which both have seen what was there before either of them committed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.ducklake.attaching import NAME, open_lake
from etl_dagster.destinations.ducklake.failures import is_conflict
from etl_dagster.destinations.ducklake.fence import Fence
from etl_dagster.destinations.ducklake.session import DuckLakeSession
from etl_dagster.destinations.sql.copies import Copies
from etl_dagster.destinations.sql.ledger import Ledger
from etl_dagster.destinations.sql.statements import insert
from etl_dagster.destinations.sql.tables import Target, create_table, drop_tables, move_table
from etl_dagster.errors import DestinationReplaced, DestinationRestored
from etl_dagster.model.events import ChunkId
from etl_dagster.testing.changes import ORDERS, arrow_rows, order
from tests.ducklake.lakes import lake_in_file


class TwoWriters:
    """Transactions of one lake."""

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self._database = database
        self.fence = Fence("the lake")

    @contextmanager
    def transaction(self) -> Iterator[DuckLakeSession]:
        """Committed when the block ends; what that fails with is raised.

        It sees what there is when it begins.
        """
        with self._database.cursor() as connection:
            connection.execute(f"USE {NAME}")
            connection.execute("BEGIN")
            connection.execute("FROM duckdb_tables()").fetchall()
            yield DuckLakeSession(connection)
            connection.execute("COMMIT")


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[TwoWriters]:
    with open_lake(lake_in_file("duckdb", tmp_path)) as database:
        writers = TwoWriters(database)
        with writers.transaction() as session:
            Ledger(session).create()
            writers.fence.create(session)
        yield writers


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(duckdb.TransactionException) as caught:
        yield
    assert is_conflict(caught.value)


def keep(session: DuckLakeSession, target: Target, chunk: ChunkId, number: int) -> None:
    """Write a chunk as the destination does."""
    copies = Copies(session)
    assert not copies.has_chunk(ORDERS.id, chunk)
    copies.keep_chunk(ORDERS.id, chunk)
    session.run(insert(target, arrow_rows(ORDERS, [order(number)])))


def begin(writers: TwoWriters) -> Target:
    """A copy under way; the table that holds its rows."""
    with writers.transaction() as session:
        Copies(session).begin(ORDERS.id, "copy")
        target = Target.staging(session.dialect, ORDERS)
        create_table(session, target)
        return target


def numbers(writers: TwoWriters, target: Target) -> list[int]:
    with writers.transaction() as session:
        return sorted(id for (id,) in session.fetch(f"SELECT id FROM {target.sql}"))


def test_the_second_of_two_writers_that_compare_and_set_is_refused(writers: TwoWriters) -> None:
    with refused(), writers.transaction() as late:
        with writers.transaction() as early:
            early.execute("INSERT INTO _etl.copies VALUES (1, 'a', 'running', NULL)")
            writers.fence.pass_(early)
        late.execute("INSERT INTO _etl.copies VALUES (1, 'b', 'running', NULL)")
        writers.fence.pass_(late)


def test_without_the_fence_both_would_be_committed(writers: TwoWriters) -> None:
    """This is why there is a fence: DuckLake itself does not refuse a second insert of the same."""
    with writers.transaction() as late:
        with writers.transaction() as early:
            early.execute("INSERT INTO _etl.copies VALUES (1, 'a', 'running', NULL)")
        late.execute("INSERT INTO _etl.copies VALUES (1, 'b', 'running', NULL)")


def test_a_chunk_that_two_workers_write_at_the_same_time_is_written_once(
    writers: TwoWriters,
) -> None:
    target, chunk = begin(writers), ChunkId("copy", 0)
    with refused(), writers.transaction() as late:
        assert not Copies(late).has_chunk(ORDERS.id, chunk)
        with writers.transaction() as early:
            keep(early, target, chunk, 1)
        keep(late, target, chunk, 1)

    assert numbers(writers, target) == [1]


def test_chunks_of_one_table_are_written_side_by_side(writers: TwoWriters) -> None:
    target = begin(writers)
    with writers.transaction() as late:
        with writers.transaction() as early:
            keep(early, target, ChunkId("copy", 0), 1)
        keep(late, target, ChunkId("copy", 1), 2)

    assert numbers(writers, target) == [1, 2]


def test_a_chunk_that_another_worker_wrote_before_the_copy_ended_is_refused(
    writers: TwoWriters,
) -> None:
    """The end forgets the chunks and renames the table; the rename alone would refuse no insert."""
    staging, chunk = begin(writers), ChunkId("copy", 0)
    target = Target.of(staging.dialect, ORDERS)
    with refused(), writers.transaction() as late:
        keep(late, staging, chunk, 1)
        with writers.transaction() as early:
            keep(early, staging, chunk, 1)
        with writers.transaction() as end:
            move_table(end, staging.name, target.name)
            Copies(end).complete(ORDERS.id, "copy", ORDERS.snapshot_id)
            writers.fence.pass_(end)

    assert numbers(writers, target) == [1]


def test_a_chunk_of_a_copy_that_was_given_up_is_refused(writers: TwoWriters) -> None:
    staging = begin(writers)
    with refused(), writers.transaction() as late:
        keep(late, staging, ChunkId("copy", 0), 1)
        with writers.transaction() as newer:
            Copies(newer).begin(ORDERS.id, "newer")
            drop_tables(newer, [staging.name])
            create_table(newer, staging)
            writers.fence.pass_(newer)

    assert numbers(writers, staging) == []


def test_the_end_of_a_copy_refuses_no_chunk_of_another_table(writers: TwoWriters) -> None:
    staging = begin(writers)
    with writers.transaction() as session:
        Copies(session).begin(7, "other")
        Copies(session).keep_chunk(7, ChunkId("other", 0))
    with writers.transaction() as late:
        keep(late, staging, ChunkId("copy", 0), 1)
        with writers.transaction() as end:
            Copies(end).complete(7, "other", ORDERS.snapshot_id)
            writers.fence.pass_(end)

    assert numbers(writers, staging) == [1]


def test_a_lake_restored_from_a_backup_is_refused_before_anything_is_written(
    writers: TwoWriters,
) -> None:
    for _ in range(2):
        with writers.transaction() as session:
            turn = writers.fence.pass_(session)
        writers.fence.passed(turn)
    with writers.transaction() as session:  # as a backup from before has it
        session.execute("UPDATE _etl.turns SET turn = 1")

    told = "2 writes were committed, and it has 1 of them"
    with pytest.raises(DestinationRestored, match=told), writers.transaction() as session:
        writers.fence.pass_(session)


def test_another_lake_is_refused(writers: TwoWriters) -> None:
    with writers.transaction() as session:
        session.execute("UPDATE _etl.identity SET identity = 'another'")

    with pytest.raises(DestinationReplaced), writers.transaction() as session:
        writers.fence.pass_(session)
