"""What a store promises that has the three contracts of `PipelineStore`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, TypeAlias

import pytest

from etl_dagster.errors import DestinationMetadataApplying, StateRollbackError
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.destination import lacking
from etl_dagster.model.schema import TableSchema, TableSchemaRetention
from etl_dagster.model.shape import AddedColumn, TableShape
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
    DestinationTableMetadata,
    PipelineStore,
    TableSyncWorker,
    WorkerType,
)
from etl_dagster.testing.changes import INT4, ORDERS, PRICES, column
from etl_dagster.testing.waiting import all_within
from etl_dagster.values.shapes import CastTo, ColumnShape, Mask
from etl_dagster.values.types import Array, Attribute, Composite, Scalar

#: Not a whole second: a store must keep every digit of a time, because states are compared.
NOON = datetime(2026, 11, 21, 12, 0, 0, 250_001, tzinfo=UTC)
#: OIDs are unsigned 32-bit numbers: for the upper half of them, an int4 is too small.
LARGEST_OID = 2**32 - 1
#: States of each kind; each must be read as it was written.
STATES: tuple[TableState, ...] = (
    Init(),
    DataSync(),
    FinishedCopy(),
    SyncWait(Lsn(5)),
    Catchup(Lsn(6)),
    SyncDone(Lsn(7)),
    Ready(Lsn(2**40)),
    Errored("it's broken", "fix it", NoRetry()),
    Errored(" said the server: " + "'\"\\ %s é🐘\n" * 100, "read on\n", ManualRetry()),
    Errored("reason", "solution", ManualRetry()),
    Errored("reason", "solution", TimedRetry(NOON, attempt=3)),
    Errored("reason", "solution", ManualRetry(), since=NOON, lsn=Lsn(7), is_kept=True),
)
APPLIED = DestinationTableMetadata("public.orders", LSN_ZERO, "applied", (True,) * 4)
APPLYING = DestinationTableMetadata(
    "public.orders", Lsn(100), "applying", (True, False), previous_snapshot_id=LSN_ZERO
)
Reopen: TypeAlias = Callable[[], PipelineStore]


class StoreSuite:
    """Checks `SchemaStore`, `StateStore` and `TableLifecycleStore`: derive, and make your store.

    >>> class TestMine(StoreSuite):
    ...     def make_store(self, folder: Path) -> PipelineStore:
    ...         return SqliteStore(folder / "state.db")

    Every check has an empty store of its own. Fixtures of a derived class work as usual, for
    example an autouse one that starts a server and keeps its address in `self`. Leave out a check
    that can't apply by its name: ``test_... = None``, with the reason next to it.
    """

    #: Whether what is stored outlives the store object. Without it `make_store` is called once in
    #: each check, and nothing is reopened.
    durable: ClassVar[bool] = True
    #: How long threads may take before a check fails, in seconds. A store that keeps its promises
    #: never makes a check wait this long.
    patience_s: ClassVar[float] = 30.0

    # -- hooks ---------------------------------------------------------------------------------

    def make_store(self, folder: Path) -> PipelineStore:
        """A store of one pipeline, the same for the same folder.

        A second call with the same folder in one check returns another object for the same
        pipeline: as after a restart, or as another process has it. A store that isn't kept in
        files takes the pipeline's name from the folder's.
        """
        raise NotImplementedError("define make_store(self, folder): it returns the store to check")

    def close_store(self, store: PipelineStore) -> None:
        """Close a store object; by default its `close()` is called if it has one."""
        close = getattr(store, "close", None)
        if callable(close):
            close()

    def reopen(self, store: PipelineStore, folder: Path) -> PipelineStore:
        """The object of a new process, after the process with `store` was killed.

        By default the first object is left alone, never closed, and `make_store` is called. If the
        first one still holds a lock that the end of its process would have released, release it
        here, without writing anything.
        """
        return self.make_store(folder)

    # -- fixtures ------------------------------------------------------------------------------

    @pytest.fixture
    def open_stores(self) -> Iterator[list[PipelineStore]]:
        """The store objects to be closed at the end."""
        stores: list[PipelineStore] = []
        yield stores
        for store in stores:
            self.close_store(store)

    @pytest.fixture
    def another_store(self, tmp_path: Path, open_stores: list[PipelineStore]) -> Reopen:
        """Makes further objects of the same store; if it isn't durable, returns the only one."""

        def make() -> PipelineStore:
            if self.durable or not open_stores:
                open_stores.append(self.make_store(tmp_path))
            return open_stores[-1]

        return make

    @pytest.fixture
    def store(self, another_store: Reopen) -> PipelineStore:
        return another_store()

    @pytest.fixture
    def reopened(
        self, store: PipelineStore, tmp_path: Path, open_stores: list[PipelineStore]
    ) -> Reopen:
        """Opens the store again, as after a crash."""
        if not self.durable:
            pytest.skip(f"{type(self).__name__} says that its store isn't durable")

        def reopen() -> PipelineStore:
            open_stores.append(self.reopen(store, tmp_path))
            return open_stores[-1]

        return reopen

    # -- the contracts -------------------------------------------------------------------------

    def test_it_has_the_operations_of_all_three_contracts(self, store: PipelineStore) -> None:
        missing = lacking(store, PipelineStore)
        assert not missing, f"define {', '.join(missing)} in {type(store).__name__}"

    # -- states --------------------------------------------------------------------------------

    def test_a_table_never_heard_of_has_no_state(self, store: PipelineStore) -> None:
        assert store.get_table_replication_state(1) is None
        assert dict(store.get_table_replication_states()) == {}
        assert store.load_table_replication_states() == 0

    @pytest.mark.parametrize("state", STATES, ids=lambda state: repr(state)[:60])
    def test_each_state_is_read_as_it_was_written(
        self, store: PipelineStore, state: TableState
    ) -> None:
        store.update_table_replication_states([(16384, state)])

        assert store.get_table_replication_state(16384) == state
        assert dict(store.get_table_replication_states()) == {16384: state}

    def test_a_table_may_have_any_oid(self, store: PipelineStore) -> None:
        fill(store, LARGEST_OID)

        assert_filled(store, LARGEST_OID)
        assert [schema.id for schema in store.get_table_schemas()] == [LARGEST_OID]

    def test_no_states_may_change_at_once(self, store: PipelineStore) -> None:
        """This is the reset of a pipeline without tables."""
        store.update_table_replication_states([])

        assert dict(store.get_table_replication_states()) == {}

    def test_many_states_change_at_once(self, store: PipelineStore) -> None:
        store.update_table_replication_states([(3, Init()), (1, DataSync()), (2, Ready(Lsn(9)))])

        expected = {1: DataSync(), 2: Ready(Lsn(9)), 3: Init()}
        assert dict(store.get_table_replication_states()) == expected
        assert store.load_table_replication_states() == 3

    def test_no_reader_sees_half_of_an_update_of_many_tables(self, store: PipelineStore) -> None:
        """A reader alongside the writer finds all tables in the old states, or all in the new."""
        tables, done, torn = range(1, 21), threading.Event(), threading.Event()
        store.update_table_replication_states([(table, Ready(Lsn(0))) for table in tables])

        def write() -> None:
            try:
                for turn in range(1, 26):
                    if torn.is_set():
                        break
                    states = [(table, Ready(Lsn(turn))) for table in tables]
                    store.update_table_replication_states(states)
            finally:
                done.set()

        def read() -> None:
            while not done.is_set():
                if len(set(store.get_table_replication_states().values())) > 1:
                    torn.set()

        all_within(self.patience_s, "reading while another thread writes", [write, read])
        assert not torn.is_set(), (
            "a reader saw some states of an update next to older ones: make the update in one step"
        )

    def test_what_was_read_stays_as_it_was_when_read(self, store: PipelineStore) -> None:
        store.update_table_replication_states([(1, Init())])
        read = store.get_table_replication_states()
        store.update_table_replication_states([(1, DataSync()), (2, Init())])

        assert dict(read) == {1: Init()}

    def test_a_rollback_goes_back_one_durable_state(self, store: PipelineStore) -> None:
        """`SyncWait` and `Catchup` are between living workers: a restart can't resume from them."""
        for state in (Init(), DataSync(), FinishedCopy(), SyncWait(Lsn(1)), Catchup(Lsn(2))):
            store.update_table_replication_states([(1, state)])

        assert store.rollback_table_replication_state(1) == FinishedCopy()
        assert store.get_table_replication_state(1) == FinishedCopy()
        assert store.rollback_table_replication_state(1) == DataSync()
        assert store.get_table_replication_state(1) == DataSync()

    def test_a_rollback_concerns_its_table_only(self, store: PipelineStore) -> None:
        for state in (Init(), DataSync()):
            store.update_table_replication_states([(1, state), (2, state)])
        store.rollback_table_replication_state(1)

        assert dict(store.get_table_replication_states()) == {1: Init(), 2: DataSync()}

    def test_storing_the_same_state_again_adds_no_step_to_undo(self, store: PipelineStore) -> None:
        for state in (Init(), DataSync(), DataSync()):
            store.update_table_replication_states([(1, state)])

        assert store.rollback_table_replication_state(1) == Init()

    def test_a_rollback_without_an_earlier_state_is_refused(self, store: PipelineStore) -> None:
        store.update_table_replication_states([(1, Init())])

        with pytest.raises(StateRollbackError):
            store.rollback_table_replication_state(1)
        assert store.get_table_replication_state(1) == Init()
        with pytest.raises(StateRollbackError):
            store.rollback_table_replication_state(99)

    # -- schemas -------------------------------------------------------------------------------

    def test_a_schema_is_read_as_it_was_written(self, store: PipelineStore) -> None:
        domain = column("kind", 99999, 9, base_type_oid=25, type_name="mood", is_identity=True)
        pair = Composite(99998, "public.pair", (Attribute("a", Scalar(23, "integer")),))
        pairs = column("pairs", 99997, 10, type=Array(99997, "public.pair[]", pair, 2))
        schema = replace(ORDERS, columns=(*ORDERS.columns, domain, pairs), replica_identity="i")

        assert store.store_table_schema(schema) == schema
        assert store.load_table_schemas() == 1
        assert store.get_table_schema(schema.id, Lsn(0)) == schema

    def test_a_schema_is_read_with_the_mode_of_its_table(self, store: PipelineStore) -> None:
        """If the table were taken for a mirror, the rows that it keeps would be lost."""
        schema = replace(ORDERS, mode="scd2")
        store.store_table_schema(schema)

        assert store.get_table_schema(schema.id, Lsn(0)) == schema

    def test_what_differs_at_the_destination_is_kept_with_the_schema(
        self, store: PipelineStore
    ) -> None:
        """The shape says which values the destination must not get."""
        hidden = ColumnShape("note", left_out=True, is_read=False)
        named = ColumnShape("note", name="remark", cast=CastTo(INT4), mask=Mask("partial", "*", 1))
        columns = (replace(ORDERS.columns[0], shape=hidden), *ORDERS.columns[1:])
        columns = (*columns[:-1], replace(columns[-1], shape=named))
        added = (AddedColumn("tenant", INT4, type_name="integer", value="1"),)
        shape = TableShape("public.orders", "raw_{schema}", where="id > 1", added=added, hook="a:b")
        schema = replace(ORDERS, columns=columns, shape=shape)

        store.store_table_schema(schema)

        store.load_table_schemas()
        assert store.get_table_schema(schema.id, Lsn(0)) == schema

    def test_the_version_in_force_at_a_snapshot_is_the_newest_before_it(
        self, store: PipelineStore
    ) -> None:
        wider = replace(ORDERS, columns=(*ORDERS.columns, column("extra", INT4, 9))).at(Lsn(100))
        for schema in (wider, ORDERS, PRICES):
            store.store_table_schema(schema)

        assert store.get_table_schema(ORDERS.id, Lsn(99)) == ORDERS
        assert store.get_table_schema(ORDERS.id, Lsn(100)) == wider
        assert store.get_table_schema(ORDERS.id, Lsn(2**64 - 1)) == wider
        assert store.get_table_schema(99, Lsn(100)) is None
        assert versions(store) == [ORDERS, wider, PRICES]

    def test_before_its_first_version_a_table_has_no_schema(self, store: PipelineStore) -> None:
        store.store_table_schema(ORDERS.at(Lsn(100)))

        assert store.get_table_schema(ORDERS.id, Lsn(99)) is None

    def test_a_version_stored_again_replaces_the_one_before(self, store: PipelineStore) -> None:
        store.store_table_schema(ORDERS)
        narrower = replace(ORDERS, columns=ORDERS.columns[:2])
        store.store_table_schema(narrower)

        assert list(store.get_table_schemas()) == [narrower]

    def test_pruning_keeps_the_version_in_force(self, store: PipelineStore) -> None:
        for offset in (0, 100, 200, 300):
            store.store_table_schema(ORDERS.at(Lsn(offset)))
        store.store_table_schema(PRICES)
        retentions = {
            ORDERS.id: TableSchemaRetention(Lsn(250)),
            PRICES.id: TableSchemaRetention(Lsn(250)),
        }

        assert store.prune_table_schemas(retentions) == 2
        assert versions(store) == [ORDERS.at(Lsn(200)), ORDERS.at(Lsn(300)), PRICES]
        assert store.get_table_schema(ORDERS.id, Lsn(250)) == ORDERS.at(Lsn(200))
        assert store.prune_table_schemas(retentions) == 0

    def test_pruning_leaves_tables_and_times_alone_that_it_was_not_told_of(
        self, store: PipelineStore
    ) -> None:
        for schema in (ORDERS.at(Lsn(100)), ORDERS.at(Lsn(200)), PRICES, PRICES.at(Lsn(100))):
            store.store_table_schema(schema)

        assert store.prune_table_schemas({ORDERS.id: TableSchemaRetention(Lsn(50))}) == 0
        assert store.prune_table_schemas({}) == 0
        assert len(store.get_table_schemas()) == 4

    # -- progress ------------------------------------------------------------------------------

    def test_progress_never_moves_back(self, store: PipelineStore) -> None:
        """A late report of an earlier batch must not have Postgres resend what is durable."""
        assert store.get_replication_progress(ApplyWorker()) is None
        assert store.upsert_replication_progress(ApplyWorker(), Lsn(200)) == Lsn(200)
        assert store.upsert_replication_progress(ApplyWorker(), Lsn(100)) == Lsn(200)
        assert store.get_replication_progress(ApplyWorker()) == Lsn(200)
        assert store.upsert_replication_progress(ApplyWorker(), Lsn(2**63 + 5)) == Lsn(2**63 + 5)
        assert store.get_replication_progress(ApplyWorker()) == Lsn(2**63 + 5)

    def test_each_worker_has_its_own_progress(self, store: PipelineStore) -> None:
        workers: list[WorkerType] = [ApplyWorker(), TableSyncWorker(7), TableSyncWorker(8)]
        for place, worker in enumerate(workers[:2]):
            store.upsert_replication_progress(worker, Lsn(200 - 150 * place))

        assert [store.get_replication_progress(w) for w in workers] == [Lsn(200), Lsn(50), None]

    def test_progress_can_be_forgotten(self, store: PipelineStore) -> None:
        store.upsert_replication_progress(ApplyWorker(), Lsn(200))
        store.upsert_replication_progress(TableSyncWorker(7), Lsn(50))
        store.delete_replication_progress(ApplyWorker())
        store.delete_replication_progress(TableSyncWorker(99))

        assert store.get_replication_progress(ApplyWorker()) is None
        assert store.get_replication_progress(TableSyncWorker(7)) == Lsn(50)
        assert store.upsert_replication_progress(ApplyWorker(), Lsn(100)) == Lsn(100)

    def test_of_progress_reported_by_several_threads_the_furthest_stays(
        self, store: PipelineStore
    ) -> None:
        def report(start: int) -> Callable[[], bool]:
            def work() -> bool:
                for number in range(start, 200, 8):
                    stored = store.upsert_replication_progress(ApplyWorker(), Lsn(number))
                    kept = store.get_replication_progress(ApplyWorker())
                    if stored < Lsn(number) or kept is None or kept < stored:
                        return False
                return True

            return work

        reports = [report(start) for start in range(1, 9)]
        kept = all_within(self.patience_s, "reports of progress from eight threads", reports)
        assert kept == [True] * 8, "the stored progress was less than a thread had reported"
        assert store.get_replication_progress(ApplyWorker()) == Lsn(199)

    # -- destination metadata ------------------------------------------------------------------

    def test_metadata_is_read_as_it_was_written(self, store: PipelineStore) -> None:
        assert store.get_destination_table_metadata(1) is None
        assert store.get_applied_destination_table_metadata(1) is None
        store.store_destination_table_metadata(1, APPLYING)
        store.store_destination_table_metadata(2, APPLIED)

        assert store.get_destination_table_metadata(1) == APPLYING
        assert store.get_destination_table_metadata(2) == APPLIED
        assert store.load_destination_tables_metadata() == 2

    def test_metadata_that_is_being_applied_is_not_given_as_applied(
        self, store: PipelineStore
    ) -> None:
        store.store_destination_table_metadata(1, APPLYING)

        with pytest.raises(DestinationMetadataApplying, match=r"public\.orders"):
            store.get_applied_destination_table_metadata(1)
        store.store_destination_table_metadata(1, APPLYING.to_applied())
        assert store.get_applied_destination_table_metadata(1) == APPLYING.to_applied()
        assert store.load_destination_tables_metadata() == 1

    # -- life cycle ----------------------------------------------------------------------------

    def test_before_a_copy_everything_but_the_state_goes(self, store: PipelineStore) -> None:
        fill(store, 1)
        fill(store, 2)
        store.upsert_replication_progress(ApplyWorker(), Lsn(500))
        store.clear_table_copy_state(1)

        assert store.get_table_replication_state(1) == Ready(Lsn(9))
        assert store.get_table_schema(1, Lsn(99)) is None
        assert store.get_destination_table_metadata(1) is None
        assert store.get_replication_progress(TableSyncWorker(1)) is None
        assert store.get_replication_progress(ApplyWorker()) == Lsn(500)
        assert_filled(store, 2)

    def test_a_table_that_left_the_publication_leaves_nothing(self, store: PipelineStore) -> None:
        fill(store, 1)
        fill(store, 2)
        store.delete_table_pipeline_state(1)

        assert dict(store.get_table_replication_states()) == {2: Ready(Lsn(9))}
        assert [schema.id for schema in store.get_table_schemas()] == [2]
        assert store.get_destination_table_metadata(1) is None
        assert store.get_replication_progress(TableSyncWorker(1)) is None
        with pytest.raises(StateRollbackError):
            store.rollback_table_replication_state(1)
        assert_filled(store, 2)

    def test_a_table_of_which_nothing_is_kept_can_be_cleared_and_deleted(
        self, store: PipelineStore
    ) -> None:
        store.clear_table_copy_state(1)
        store.delete_table_pipeline_state(1)

        assert dict(store.get_table_replication_states()) == {}

    # -- several threads -----------------------------------------------------------------------

    def test_what_several_threads_write_is_all_there(self, store: PipelineStore) -> None:
        def write(table_id: int) -> Callable[[], None]:
            return lambda: fill(store, table_id)

        all_within(self.patience_s, "writing from eight threads", [write(n) for n in range(1, 9)])

        for table_id in range(1, 9):
            assert_filled(store, table_id)
        assert len(store.get_table_replication_states()) == 8

    # -- opened again --------------------------------------------------------------------------

    def test_states_and_their_history_outlive_the_process(
        self, store: PipelineStore, reopened: Reopen
    ) -> None:
        for state in (Init(), DataSync(), FinishedCopy()):
            store.update_table_replication_states([(1, state), (2, Ready(Lsn(5)))])

        again = reopened()
        assert dict(again.get_table_replication_states()) == {1: FinishedCopy(), 2: Ready(Lsn(5))}
        assert again.load_table_replication_states() == 2
        assert again.rollback_table_replication_state(1) == DataSync()
        assert again.rollback_table_replication_state(1) == Init()

    def test_schemas_outlive_the_process(self, store: PipelineStore, reopened: Reopen) -> None:
        for schema in (ORDERS, ORDERS.at(Lsn(100)), PRICES):
            store.store_table_schema(schema)

        again = reopened()
        assert again.get_table_schema(ORDERS.id, Lsn(50)) == ORDERS
        assert versions(again) == [ORDERS, ORDERS.at(Lsn(100)), PRICES]
        assert again.load_table_schemas() == 3

    def test_progress_outlives_the_process_and_does_not_move_back_then(
        self, store: PipelineStore, reopened: Reopen
    ) -> None:
        store.upsert_replication_progress(ApplyWorker(), Lsn(200))
        store.upsert_replication_progress(TableSyncWorker(7), Lsn(50))

        again = reopened()
        assert again.get_replication_progress(TableSyncWorker(7)) == Lsn(50)
        assert again.upsert_replication_progress(ApplyWorker(), Lsn(100)) == Lsn(200)

    def test_metadata_outlives_the_process(self, store: PipelineStore, reopened: Reopen) -> None:
        """A change of schema that a crash interrupted is known to be unfinished afterwards."""
        store.store_destination_table_metadata(1, APPLYING)
        store.store_destination_table_metadata(2, APPLIED)

        again = reopened()
        assert again.get_destination_table_metadata(1) == APPLYING
        with pytest.raises(DestinationMetadataApplying):
            again.get_applied_destination_table_metadata(1)
        assert again.get_applied_destination_table_metadata(2) == APPLIED
        assert again.load_destination_tables_metadata() == 2


def versions(store: PipelineStore) -> list[TableSchema]:
    """All schemas of all tables, sorted by table and version: a store has no order of its own."""
    return sorted(store.get_table_schemas(), key=lambda schema: (schema.id, schema.snapshot_id))


def fill(store: PipelineStore, table_id: int) -> None:
    """Store something of each kind for the table."""
    store.update_table_replication_states([(table_id, Ready(Lsn(9)))])
    store.store_table_schema(replace(ORDERS, id=table_id))
    store.store_destination_table_metadata(table_id, APPLIED)
    store.upsert_replication_progress(TableSyncWorker(table_id), Lsn(8))


def assert_filled(store: PipelineStore, table_id: int) -> None:
    """Require what `fill` stored."""
    assert store.get_table_replication_state(table_id) == Ready(Lsn(9))
    assert store.get_table_schema(table_id, Lsn(0)) == replace(ORDERS, id=table_id)
    assert store.get_destination_table_metadata(table_id) == APPLIED
    assert store.get_replication_progress(TableSyncWorker(table_id)) == Lsn(8)
