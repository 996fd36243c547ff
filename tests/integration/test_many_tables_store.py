"""What a store does for many tables at once is what it does for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyChunk, CopyPlan, FinishedChunk
from etl_dagster.model.states import Catchup, DataSync, FinishedCopy, Init, SyncWait
from etl_dagster.model.stores import CoordinatingStore, DestinationTableMetadata, ManyTables
from etl_dagster.runtime.many import many
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.stores.postgres import PostgresStore
from etl_dagster.testing.changes import ORDERS
from tests.support.database import Database

TABLES = range(1, 6)
PLAN = CopyPlan("a copy", (CopyChunk(0, 1), CopyChunk(1, 1)), {}, Lsn(7), datetime.now(UTC))


@pytest.fixture(params=["postgres", "one by one"])
def store(request: pytest.FixtureRequest, newest_database: Database) -> Iterator[CoordinatingStore]:
    if request.param == "one by one":
        yield MemoryStore()
        return
    with closing(PostgresStore(newest_database.dsn, "shop")) as store:
        assert isinstance(store, ManyTables)
        yield store


def test_each_table_changes_only_from_the_state_expected_of_it(store: CoordinatingStore) -> None:
    store.update_table_replication_states([(t, SyncWait(Lsn(t))) for t in TABLES])
    store.update_table_replication_states([(3, Init()), (3, FinishedCopy()), (3, Init())])

    changed = many(store).transition_table_states(
        [(t, SyncWait(Lsn(t)), Catchup(Lsn(9))) for t in (1, 2, 3)] + [(99, Init(), DataSync())]
    )

    assert set(changed) == {1, 2}
    assert store.load_table_replication_states() == len(TABLES)
    assert dict(store.get_table_replication_states()) == {
        1: Catchup(Lsn(9)),
        2: Catchup(Lsn(9)),
        3: Init(),
        4: SyncWait(Lsn(4)),
        5: SyncWait(Lsn(5)),
    }
    assert store.rollback_table_replication_state(3) == FinishedCopy()


def test_a_transition_to_the_same_state_succeeds_and_adds_no_history(
    store: CoordinatingStore,
) -> None:
    store.update_table_replication_states([(1, Init()), (2, Init())])
    store.update_table_replication_states([(1, DataSync()), (2, DataSync())])

    same = [(t, DataSync(), DataSync()) for t in (1, 2)]
    assert set(many(store).transition_table_states(same)) == {1, 2}

    assert store.rollback_table_replication_state(1) == Init()
    assert many(store).transition_table_states([]) in (set(), [], ())


def test_the_copy_states_of_many_tables_are_stored_and_cleared_together(
    store: CoordinatingStore,
) -> None:
    together = many(store)
    together.store_table_schemas([replace(ORDERS, id=t, table_name=f"t{t}") for t in TABLES])
    together.store_destination_tables_metadata(
        {t: DestinationTableMetadata(f"public.t{t}", Lsn(0), "applied", (True,)) for t in TABLES}
    )
    for table_id in (1, 2):
        store.store_copy_plan(table_id, PLAN)

    assert [schema.table_name for schema in store.get_table_schemas()] == [f"t{t}" for t in TABLES]
    assert store.get_destination_table_metadata(4) is not None
    assert together.get_copy_plans(TABLES) == {1: PLAN, 2: PLAN}

    chunk = FinishedChunk(1, 20, 300, Lsn(8), 0.5)
    together.finish_chunks([(1, "a copy", chunk), (2, "another copy", chunk), (4, "a copy", chunk)])
    assert together.get_copy_plans(TABLES) == {1: replace(PLAN, finished={1: chunk}), 2: PLAN}

    together.clear_table_copy_states([1, 4])

    assert {schema.id for schema in store.get_table_schemas()} == {2, 3, 5}
    assert store.get_destination_table_metadata(4) is None
    assert store.get_destination_table_metadata(5) is not None
    assert together.get_copy_plans(TABLES) == {2: PLAN}


def test_leases_that_were_taken_together_are_released_one_by_one(store: CoordinatingStore) -> None:
    names = [f"table:{t}" for t in TABLES]
    other = store.acquire_lease("table:3")
    leases = many(store).acquire_leases(names)

    assert other is not None
    assert set(leases) == {"table:1", "table:2", "table:4", "table:5"}
    assert set(many(store).leased(["apply", *names])) == set(names)

    leases["table:1"].release()
    leases["table:1"].release()
    other.release()

    assert not leases["table:1"].is_held
    assert leases["table:2"].is_held
    assert set(many(store).leased(names)) == {"table:2", "table:4", "table:5"}
    for lease in leases.values():
        lease.release()
    assert not many(store).leased(names)
    assert not many(store).acquire_leases([])


def test_many_leases_need_one_connection_and_end_with_it(newest_database: Database) -> None:
    with closing(PostgresStore(newest_database.dsn, "shop", max_connections=1)) as store:
        store.open()
        held = "select count(*) from pg_stat_activity where datname = current_database()"
        [(before,)] = newest_database.query(held)
        leases = store.acquire_leases([f"table:{t}" for t in range(300)])
        [(after,)] = newest_database.query(held)
        assert (len(leases), after - before) == (300, 1)

        newest_database.query(
            "select pg_terminate_backend(pid, 10000) from pg_locks where locktype = 'advisory'"
        )

        assert not any(lease.is_held for lease in leases.values())
        for lease in leases.values():
            lease.release()


def test_states_that_another_process_changes_are_read_whether_all_or_some_changed(
    newest_database: Database,
) -> None:
    """A store reads what is new since it last looked; that may be less than it knew."""
    with (
        closing(PostgresStore(newest_database.dsn, "shop")) as ours,
        closing(PostgresStore(newest_database.dsn, "shop")) as other,
    ):

        def states() -> dict[int, object]:
            return dict(ours.get_table_replication_states())

        assert states() == {}
        other.update_table_replication_states([(t, Init()) for t in (3, 1, 2)])
        assert list(states().items()) == [(1, Init()), (2, Init()), (3, Init())]
        other.transition_table_state(2, Init(), DataSync())
        other.update_table_replication_states([(2, FinishedCopy()), (3, DataSync())])
        assert states() == {1: Init(), 2: FinishedCopy(), 3: DataSync()}
        other.rollback_table_replication_state(2)
        assert states() == {1: Init(), 2: DataSync(), 3: DataSync()}
        other.delete_table_pipeline_state(1)
        assert states() == {2: DataSync(), 3: DataSync()}
        other.delete_table_pipeline_state(2)
        other.update_table_replication_states([(4, Init())])
        assert states() == {3: DataSync(), 4: Init()}
        newest_database.execute("truncate etl.table_states cascade")
        assert states() == {}


def test_finished_chunks_are_returned_only_for_the_current_copy_of_the_table(
    store: CoordinatingStore,
) -> None:
    done = FinishedChunk(1, 10, 500, Lsn(8), 0.25)
    for table_id in (1, 2):
        store.store_copy_plan(table_id, PLAN)
    store.finish_chunk(1, PLAN.copy_id, done)
    look = many(store).finished_chunks

    assert look(1, PLAN.copy_id, [0, 1, 99]) == {1: done}
    assert look(1, PLAN.copy_id, [0]) == look(1, PLAN.copy_id, []) == {}
    assert look(2, PLAN.copy_id, [0, 1]) == {}
    assert look(1, "another copy", [1]) is None
    assert look(3, PLAN.copy_id, [1]) is None
