"""What every store promises: one suite, run against each of them."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from etl_dagster.demo.server import ServerBinaries, find_servers
from etl_dagster.errors import DestinationMetadataApplying, StateRollbackError
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.schema import TableSchemaRetention
from etl_dagster.model.states import (
    Catchup,
    DataSync,
    Errored,
    FinishedCopy,
    Init,
    ManualRetry,
    NoRetry,
    Ready,
    SyncDone,
    SyncWait,
    TableState,
    TimedRetry,
)
from etl_dagster.model.stores import (
    ApplyWorker,
    CoordinatingStore,
    CopyChunk,
    CopyPlan,
    DestinationTableMetadata,
    FinishedChunk,
    Lease,
    TableSyncWorker,
)
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.stores.postgres import PostgresStore
from tests.conftest import _running as running
from tests.support.changes import INT4, ORDERS, PRICES, column
from tests.support.database import Database

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
STATES: list[TableState] = [
    Init(),
    DataSync(),
    FinishedCopy(),
    SyncWait(Lsn(5)),
    Catchup(Lsn(6)),
    SyncDone(Lsn(7)),
    Ready(Lsn(2**40)),
    Errored("it's broken", "mend it", NoRetry()),
    Errored("reason", "solution", ManualRetry()),
    Errored("reason", "solution", TimedRetry(NOON, attempt=3)),
]
PLAN = CopyPlan(
    "copy-1",
    (CopyChunk(0, 16384, 0, 100, 5000), CopyChunk(1, 16385, 100, None)),
    {},
    Lsn(77),
    NOON,
)
_FOUND: dict[str, ServerBinaries] = {f"postgres-pg{found.major}": found for found in find_servers()}


@pytest.fixture(scope="module", params=["memory", *_FOUND])
def store_database(request: pytest.FixtureRequest) -> Iterator[Database | None]:
    """Where the stores are, None for memory; each test has a pipeline of its own in it."""
    if request.param == "memory":
        yield None
        return
    with Database.create(running(_FOUND[request.param])) as database:
        yield database


@pytest.fixture
def make_store(store_database: Database | None) -> Iterator[Callable[[], CoordinatingStore]]:
    """Gives further stores of the same pipeline, as other processes have them."""
    if store_database is None:
        only = MemoryStore()
        yield lambda: only
        return
    opened: list[PostgresStore] = []
    dsn, pipeline = store_database.dsn, f"shop_{secrets.token_hex(6)}"

    def make() -> PostgresStore:
        opened.append(PostgresStore(dsn, pipeline))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(make_store: Callable[[], CoordinatingStore]) -> CoordinatingStore:
    return make_store()


@pytest.fixture
def other(make_store: Callable[[], CoordinatingStore]) -> CoordinatingStore:
    """The same pipeline's store in another process."""
    return make_store()


# -- states ------------------------------------------------------------------------------------


def test_a_table_never_heard_of_has_no_state(store: CoordinatingStore) -> None:
    assert store.get_table_replication_state(1) is None
    assert store.get_table_replication_states() == {}
    assert store.load_table_replication_states() == 0


@pytest.mark.parametrize("state", STATES, ids=repr)
def test_each_state_is_read_as_it_was_written(
    store: CoordinatingStore, other: CoordinatingStore, state: TableState
) -> None:
    store.update_table_replication_states([(16384, state)])

    assert store.get_table_replication_state(16384) == state
    assert other.get_table_replication_states() == {16384: state}


def test_many_states_change_at_once(store: CoordinatingStore) -> None:
    store.update_table_replication_states([(3, Init()), (1, DataSync()), (2, Ready(Lsn(9)))])

    assert store.get_table_replication_states() == {1: DataSync(), 2: Ready(Lsn(9)), 3: Init()}
    assert store.load_table_replication_states() == 3


def test_a_rollback_goes_back_one_durable_state(store: CoordinatingStore) -> None:
    for state in (Init(), DataSync(), FinishedCopy(), SyncWait(Lsn(1)), Catchup(Lsn(2))):
        store.update_table_replication_states([(1, state)])

    assert store.rollback_table_replication_state(1) == FinishedCopy()
    assert store.rollback_table_replication_state(1) == DataSync()
    assert store.get_table_replication_state(1) == DataSync()


def test_the_same_state_again_is_no_step_to_go_back_to(store: CoordinatingStore) -> None:
    for state in (Init(), DataSync(), DataSync()):
        store.update_table_replication_states([(1, state)])

    assert store.rollback_table_replication_state(1) == Init()


def test_a_rollback_without_an_earlier_state_is_refused(store: CoordinatingStore) -> None:
    store.update_table_replication_states([(1, Init())])

    with pytest.raises(StateRollbackError, match="no earlier state"):
        store.rollback_table_replication_state(1)
    assert store.get_table_replication_state(1) == Init()


def test_a_transition_happens_only_from_the_expected_state(
    store: CoordinatingStore, other: CoordinatingStore
) -> None:
    store.update_table_replication_states([(1, SyncWait(Lsn(5)))])

    assert not store.transition_table_state(1, SyncWait(Lsn(4)), Catchup(Lsn(9)))
    assert other.transition_table_state(1, SyncWait(Lsn(5)), Catchup(Lsn(9)))
    assert not store.transition_table_state(1, SyncWait(Lsn(5)), FinishedCopy())
    assert store.load_table_replication_states() == 1
    assert store.get_table_replication_state(1) == Catchup(Lsn(9))


def test_of_many_transitions_from_one_state_one_happens(
    make_store: Callable[[], CoordinatingStore],
) -> None:
    stores = [make_store() for _ in range(4)]
    stores[0].update_table_replication_states([(1, Init())])
    results: list[bool] = []
    barrier = threading.Barrier(4)

    def race(number: int) -> None:
        barrier.wait()
        results.append(stores[number].transition_table_state(1, Init(), Ready(Lsn(number))))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results) == [False, False, False, True]


# -- schemas -----------------------------------------------------------------------------------


def test_a_schema_is_read_as_it_was_written(
    store: CoordinatingStore, other: CoordinatingStore
) -> None:
    domain = column("kind", 99999, 9, base_type_oid=25, type_name="mood", is_identity=True)
    schema = replace(ORDERS, columns=(*ORDERS.columns, domain), replica_identity="i")
    store.store_table_schema(schema)

    assert other.load_table_schemas() == 1
    assert other.get_table_schema(schema.id, Lsn(0)) == schema


def test_the_version_in_force_at_a_snapshot_is_the_newest_before_it(
    store: CoordinatingStore,
) -> None:
    wider = replace(ORDERS, columns=(*ORDERS.columns, column("extra", INT4, 9))).at(Lsn(100))
    for schema in (wider, ORDERS, PRICES):
        store.store_table_schema(schema)

    assert store.get_table_schema(ORDERS.id, Lsn(99)) == ORDERS
    assert store.get_table_schema(ORDERS.id, Lsn(100)) == wider
    assert store.get_table_schema(ORDERS.id, Lsn(2**64 - 1)) == wider
    assert store.get_table_schema(99, Lsn(100)) is None
    assert list(store.get_table_schemas()) == [ORDERS, wider, PRICES]


def test_pruning_keeps_the_version_in_force(store: CoordinatingStore) -> None:
    for offset in (0, 100, 200, 300):
        store.store_table_schema(ORDERS.at(Lsn(offset)))
    store.store_table_schema(PRICES)
    retentions = {
        ORDERS.id: TableSchemaRetention(Lsn(250)),
        PRICES.id: TableSchemaRetention(Lsn(250)),
    }

    assert store.prune_table_schemas(retentions) == 2
    assert [s.snapshot_id.offset for s in store.get_table_schemas()] == [200, 300, 0]
    assert store.prune_table_schemas(retentions) == 0


# -- progress and metadata ---------------------------------------------------------------------


def test_progress_never_moves_back(store: CoordinatingStore, other: CoordinatingStore) -> None:
    """A late report of an earlier batch must not have Postgres resend what is already durable."""
    assert store.get_replication_progress(ApplyWorker()) is None
    assert store.upsert_replication_progress(ApplyWorker(), Lsn(200)) == Lsn(200)
    assert other.upsert_replication_progress(ApplyWorker(), Lsn(100)) == Lsn(200)
    assert store.upsert_replication_progress(TableSyncWorker(7), Lsn(50)) == Lsn(50)

    assert other.get_replication_progress(ApplyWorker()) == Lsn(200)
    assert other.get_replication_progress(TableSyncWorker(7)) == Lsn(50)
    assert other.get_replication_progress(TableSyncWorker(8)) is None


def test_progress_can_be_forgotten(store: CoordinatingStore) -> None:
    store.upsert_replication_progress(ApplyWorker(), Lsn(200))
    store.delete_replication_progress(ApplyWorker())

    assert store.upsert_replication_progress(ApplyWorker(), Lsn(100)) == Lsn(100)


def test_metadata_that_is_being_applied_is_not_given_as_applied(
    store: CoordinatingStore, other: CoordinatingStore
) -> None:
    applying = DestinationTableMetadata(
        "public.orders", Lsn(100), "applying", (True, False), previous_snapshot_id=LSN_ZERO
    )
    assert store.get_applied_destination_table_metadata(1) is None
    store.store_destination_table_metadata(1, applying)

    assert other.get_destination_table_metadata(1) == applying
    with pytest.raises(DestinationMetadataApplying, match=r"public\.orders"):
        other.get_applied_destination_table_metadata(1)
    store.store_destination_table_metadata(1, applying.to_applied())
    assert store.get_applied_destination_table_metadata(1) == applying.to_applied()
    assert store.load_destination_tables_metadata() == 1


# -- life cycle --------------------------------------------------------------------------------


def _fill(store: CoordinatingStore, table_id: int) -> None:
    store.update_table_replication_states([(table_id, Ready(Lsn(9)))])
    store.store_table_schema(replace(ORDERS, id=table_id))
    metadata = DestinationTableMetadata("public.orders", LSN_ZERO, "applied", (True,) * 4)
    store.store_destination_table_metadata(table_id, metadata)
    store.upsert_replication_progress(TableSyncWorker(table_id), Lsn(8))
    store.store_copy_plan(table_id, PLAN)


def test_before_a_copy_everything_but_the_state_goes(store: CoordinatingStore) -> None:
    _fill(store, 1)
    _fill(store, 2)
    store.clear_table_copy_state(1)

    assert store.get_table_replication_state(1) == Ready(Lsn(9))
    assert store.get_table_schema(1, Lsn(99)) is None
    assert store.get_destination_table_metadata(1) is None
    assert store.get_replication_progress(TableSyncWorker(1)) is None
    assert store.get_copy_plan(1) is None
    assert store.get_copy_plan(2) == PLAN
    assert store.get_replication_progress(TableSyncWorker(2)) == Lsn(8)


def test_a_table_that_left_the_publication_leaves_nothing(store: CoordinatingStore) -> None:
    _fill(store, 1)
    store.delete_table_pipeline_state(1)

    assert store.get_table_replication_states() == {}
    assert list(store.get_table_schemas()) == []
    assert store.get_copy_plan(1) is None
    with pytest.raises(StateRollbackError):
        store.rollback_table_replication_state(1)


def test_a_reset_starts_every_table_over_and_keeps_where_it_is(store: CoordinatingStore) -> None:
    _fill(store, 1)
    _fill(store, 2)
    store.upsert_replication_progress(ApplyWorker(), Lsn(500))

    assert store.reset_for_resync() == 2
    assert store.get_table_replication_states() == {1: Init(), 2: Init()}
    assert store.get_replication_progress(ApplyWorker()) is None
    assert store.get_copy_plan(1) is None
    assert store.get_destination_table_metadata(1) is not None


def test_a_requested_copy_begins_anew(store: CoordinatingStore) -> None:
    _fill(store, 1)
    store.request_copy(1)

    assert store.get_table_replication_state(1) == Init()
    assert store.get_copy_plan(1) is None


# -- coordination ------------------------------------------------------------------------------


def test_finished_chunks_are_remembered(store: CoordinatingStore, other: CoordinatingStore) -> None:
    done = FinishedChunk(1, 1000, 50_000, Lsn(88), 0.25)
    store.store_copy_plan(1, PLAN)
    other.finish_chunk(1, "copy-1", done)
    other.finish_chunk(1, "copy-1", replace(done, row_count=7))
    other.finish_chunk(1, "another copy", replace(done, index=0))
    other.finish_chunk(1, "copy-1", replace(done, index=99))

    plan = store.get_copy_plan(1)
    assert plan is not None
    assert plan.finished == {1: done}
    assert plan.remaining == PLAN.chunks[:1]
    assert plan == replace(PLAN, finished={1: done})


def test_a_new_plan_has_nothing_finished(store: CoordinatingStore) -> None:
    done = FinishedChunk(1, 1000, 50_000, Lsn(88))
    store.store_copy_plan(1, PLAN)
    store.finish_chunk(1, "copy-1", done)
    store.store_copy_plan(1, replace(PLAN, copy_id="copy-2", finished={1: done}))

    plan = store.get_copy_plan(1)
    assert plan is not None
    assert (plan.copy_id, dict(plan.finished)) == ("copy-2", {})


def test_a_lease_has_one_holder(store: CoordinatingStore, other: CoordinatingStore) -> None:
    assert not other.is_leased("apply")
    lease = store.acquire_lease("apply")
    assert lease is not None
    assert other.is_leased("apply")
    assert other.acquire_lease("apply") is None
    assert store.acquire_lease("apply") is None
    second = other.acquire_lease("table:1")
    assert second is not None

    assert _is_held(lease)
    lease.release()
    lease.release()
    assert not _is_held(lease)
    third = other.acquire_lease("apply")
    assert third is not None
    second.release()
    third.release()


def _is_held(lease: Lease) -> bool:
    return lease.is_held


def test_each_epoch_is_larger_than_all_before(
    store: CoordinatingStore, other: CoordinatingStore
) -> None:
    assert store.current_epoch() == 0
    assert [store.take_epoch(), other.take_epoch(), store.take_epoch()] == [1, 2, 3]
    assert other.current_epoch() == 3


def test_a_wait_ends_when_another_process_changes_something(
    store: CoordinatingStore, other: CoordinatingStore
) -> None:
    changes: list[Callable[[], object]] = [
        lambda: other.update_table_replication_states([(1, Init())]),
        lambda: other.transition_table_state(1, Init(), DataSync()),
        lambda: other.store_copy_plan(1, PLAN),
        lambda: other.finish_chunk(1, "copy-1", FinishedChunk(0, 1, 1, Lsn(1))),
        lambda: other.request_copy(1),
        lambda: other.reset_for_resync(),
        lambda: other.delete_table_pipeline_state(1),
    ]
    for change in changes:
        _settle(store)
        change()
        store.wait_for_change(600)
    assert store.get_table_replication_states() == {}


def _settle(store: CoordinatingStore) -> None:
    """Have this thread's waits answered for all that was, so that the next one waits."""
    store.wait_for_change(0.01)


def test_what_changed_while_a_thread_looked_ends_its_next_wait_at_once(
    store: CoordinatingStore, other: CoordinatingStore
) -> None:
    store.wait_for_change(0)
    other.update_table_replication_states([(1, Init())])

    while store.get_table_replication_state(1) is None:
        store.wait_for_change(600)


def test_a_worker_can_be_woken(store: CoordinatingStore) -> None:
    store.wait_for_change(0)
    ended = threading.Event()

    def wait() -> None:
        store.wait_for_change(600)
        store.wait_for_change(600)
        store.wait_for_change(600)
        ended.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    while not ended.wait(0.01):
        store.wake()
    waiter.join()


def test_the_last_status_is_shown_to_others(
    store: CoordinatingStore, other: CoordinatingStore
) -> None:
    assert other.get_status("apply") is None
    store.publish_status("apply", {"lag_bytes": 5, "nested": {"list": [1, None, "ü"]}})
    store.publish_status("apply", {"lag_bytes": 0})

    assert other.get_status("apply") == {"lag_bytes": 0}
