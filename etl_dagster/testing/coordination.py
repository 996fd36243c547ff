"""What a store promises that several processes share."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from etl_dagster.errors import DestinationMetadataApplying
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyChunk, CopyPlan, FinishedChunk, Lease, epoch_by_clock
from etl_dagster.model.destination import lacking
from etl_dagster.model.identity import (
    KnownDestination,
    KnownSource,
    RemembersDestination,
    RemembersSource,
)
from etl_dagster.model.states import Catchup, DataSync, FinishedCopy, Init, Ready, SyncWait
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore, TableSyncWorker
from etl_dagster.testing.changes import ORDERS
from etl_dagster.testing.killing import note_and_die
from etl_dagster.testing.stores import (
    APPLIED,
    APPLYING,
    NOON,
    STATES,
    StoreSuite,
    assert_filled,
    fill,
)
from etl_dagster.testing.waiting import all_within, within

PLAN = CopyPlan(
    "copy-1",
    (CopyChunk(0, 16384, 0, 100, 5000), CopyChunk(1, 16385, 100, None)),
    {},
    Lsn(77),
    NOON,
)
Another: TypeAlias = Callable[[], CoordinatingStore]


class CoordinationSuite(StoreSuite):
    """Checks `Coordination` too, with several store objects, as several processes have them.

    If the store isn't durable, all of them are one object, and the checks show that threads can
    share it.
    """

    def make_store(self, folder: Path) -> CoordinatingStore:
        """A store of one pipeline, as for `StoreSuite`; two objects of it are in use at once."""
        raise NotImplementedError("define make_store(self, folder): it returns the store to check")

    @pytest.fixture
    def other(self, store: CoordinatingStore, another_store: Another) -> CoordinatingStore:
        """The same pipeline's store in another process."""
        return another_store()

    def test_it_has_the_operations_of_coordination(self, store: CoordinatingStore) -> None:
        missing = lacking(store, CoordinatingStore)
        assert not missing, f"define {', '.join(missing)} in {type(store).__name__}"

    # -- two store objects ---------------------------------------------------------------------

    def test_another_process_reads_what_was_written_last(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        """Also if the other one keeps states in a cache."""
        for state in STATES:
            store.update_table_replication_states([(1, state)])
            assert other.get_table_replication_state(1) == state
            assert dict(other.get_table_replication_states()) == {1: state}
        for schema in (ORDERS, ORDERS.at(Lsn(100))):
            store.store_table_schema(schema)
            assert other.get_table_schema(ORDERS.id, Lsn(100)) == schema
        for metadata in (APPLIED, APPLYING):
            store.store_destination_table_metadata(1, metadata)
            assert other.get_destination_table_metadata(1) == metadata
        with pytest.raises(DestinationMetadataApplying, match=r"public\.orders"):
            other.get_applied_destination_table_metadata(1)

    def test_progress_of_another_process_does_not_move_back_either(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        store.upsert_replication_progress(ApplyWorker(), Lsn(200))

        assert other.upsert_replication_progress(ApplyWorker(), Lsn(100)) == Lsn(200)
        assert other.upsert_replication_progress(ApplyWorker(), Lsn(300)) == Lsn(300)
        assert store.upsert_replication_progress(ApplyWorker(), Lsn(250)) == Lsn(300)
        assert store.get_replication_progress(ApplyWorker()) == Lsn(300)

    # -- source and destination ----------------------------------------------------------------

    def test_a_destination_is_remembered_with_its_revision(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        """Optional, see `RemembersDestination`: without it an older copy may go unnoticed."""
        first, second = _remembering(store), _remembering(other)
        assert first.get_known_destination() is None
        # Nothing is known yet, so only the progress is kept.
        assert first.store_delivery(ApplyWorker(), Lsn(100), 5) == Lsn(100)
        assert second.get_known_destination() is None
        known = KnownDestination("duckdb", "/data/shop.duckdb", "4711", 7, 12)
        first.store_known_destination(known)
        assert second.get_known_destination() == known

        assert second.store_delivery(ApplyWorker(), Lsn(200), 9) == Lsn(200)
        assert first.store_delivery(ApplyWorker(), Lsn(150), 8) == Lsn(200)
        assert first.get_known_destination() == replace(known, revision=9)
        assert store.get_replication_progress(ApplyWorker()) == Lsn(200)

        second.store_known_destination(None)
        assert first.get_known_destination() is None

    def test_a_reset_of_everything_forgets_the_destination(self, store: CoordinatingStore) -> None:
        remembering = _remembering(store)
        remembering.store_known_destination(KnownDestination("duckdb", "/data/shop.duckdb"))
        store.update_table_replication_states([(1, Ready(Lsn(5)))])

        store.reset_for_resync()

        assert remembering.get_known_destination() is None

    def test_the_newest_copy_of_each_table_is_known(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        store.store_copy_plan(1, PLAN)
        store.store_copy_plan(2, replace(PLAN, copy_id="copy-2"))
        store.store_copy_plan(1, replace(PLAN, copy_id="copy-3"))

        assert dict(_remembering(other).get_copy_ids()) == {1: "copy-3", 2: "copy-2"}

    def test_a_source_is_remembered(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        if not (isinstance(store, RemembersSource) and isinstance(other, RemembersSource)):
            pytest.skip(f"{type(store).__name__} has no get_known_source()")
        assert store.get_known_source() is None
        for timeline in (1, 2):
            known = KnownSource("7301112233445566778", timeline, 16384, "shop")
            store.store_known_source(known)
            assert other.get_known_source() == known

    # -- states --------------------------------------------------------------------------------

    def test_a_transition_happens_only_from_the_expected_state(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        store.update_table_replication_states([(1, SyncWait(Lsn(5)))])

        changed = "the state was changed, though it was not the expected one"
        assert not store.transition_table_state(1, SyncWait(Lsn(4)), Catchup(Lsn(9))), changed
        assert other.transition_table_state(1, SyncWait(Lsn(5)), Catchup(Lsn(9)))
        assert not store.transition_table_state(1, SyncWait(Lsn(5)), FinishedCopy()), changed
        assert not store.transition_table_state(99, Init(), DataSync()), changed
        assert store.load_table_replication_states() == 1
        assert store.get_table_replication_state(1) == Catchup(Lsn(9))

    def test_of_many_transitions_from_one_state_one_happens(self, another_store: Another) -> None:
        stores = [another_store() for _ in range(4)]
        stores[0].update_table_replication_states([(1, Init())])
        together = threading.Barrier(4)

        def race(number: int) -> Callable[[], bool]:
            def work() -> bool:
                together.wait(self.patience_s)
                return stores[number].transition_table_state(1, Init(), Ready(Lsn(number)))

            return work

        races = [race(number) for number in range(4)]
        results = all_within(self.patience_s, "transitions from four stores", races)

        assert sorted(results) == [False, False, False, True], (
            "one of the four must return True, the others False: compare and set in one step"
        )
        winner = results.index(True)
        assert stores[0].get_table_replication_state(1) == Ready(Lsn(winner))

    def test_a_requested_copy_starts_over(self, store: CoordinatingStore) -> None:
        fill(store, 1)
        store.store_copy_plan(1, PLAN)
        store.request_copy(1)

        assert store.get_table_replication_state(1) == Init()
        assert store.get_copy_plan(1) is None

    def test_a_reset_starts_every_table_over_and_keeps_where_it_is(
        self, store: CoordinatingStore
    ) -> None:
        """The next copy must find the old table at the destination in order to replace it."""
        for table_id in (1, 2):
            fill(store, table_id)
            store.store_copy_plan(table_id, PLAN)
        store.upsert_replication_progress(ApplyWorker(), Lsn(500))

        assert store.reset_for_resync() == 2
        assert dict(store.get_table_replication_states()) == {1: Init(), 2: Init()}
        assert store.get_replication_progress(ApplyWorker()) is None
        assert store.get_copy_plan(1) is None
        assert store.get_destination_table_metadata(1) == APPLIED
        assert store.get_table_schema(2, Lsn(0)) == replace(ORDERS, id=2)

    # -- plans ---------------------------------------------------------------------------------

    def test_finished_chunks_are_remembered(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
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

    def test_a_new_plan_has_nothing_finished(self, store: CoordinatingStore) -> None:
        done = FinishedChunk(1, 1000, 50_000, Lsn(88))
        store.store_copy_plan(1, PLAN)
        store.finish_chunk(1, "copy-1", done)
        store.store_copy_plan(1, replace(PLAN, copy_id="copy-2", finished={1: done}))

        plan = store.get_copy_plan(1)
        assert plan is not None
        assert (plan.copy_id, dict(plan.finished)) == ("copy-2", {})

    def test_a_plan_goes_with_what_else_is_kept_of_its_copy(self, store: CoordinatingStore) -> None:
        for table_id in (1, 2, 3):
            fill(store, table_id)
            store.store_copy_plan(table_id, PLAN)
        store.clear_table_copy_state(1)
        store.delete_table_pipeline_state(2)

        assert [store.get_copy_plan(table_id) for table_id in (1, 2, 3)] == [None, None, PLAN]
        assert_filled(store, 3)

    # -- leases and epochs ---------------------------------------------------------------------

    def test_a_lease_has_one_holder(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        assert not other.is_leased("apply"), "a lease that was never taken is held"
        lease = store.acquire_lease("apply")
        assert lease is not None, "a free lease was refused"
        assert other.is_leased("apply"), "another process doesn't see that the lease is held"
        assert other.acquire_lease("apply") is None, "two processes have the lease"
        assert store.acquire_lease("apply") is None, "one process has the lease twice"
        second = other.acquire_lease("table:1")
        assert second is not None, "a lease was refused while one of another name is held"

        assert _is_held(lease), "a lease was lost without a release"
        lease.release()
        lease.release()
        assert not _is_held(lease), "a released lease is still held"
        third = other.acquire_lease("apply")
        assert third is not None, "a released lease is still refused"
        lease.release()
        assert _is_held(third), "a lease was released by an earlier holder"
        second.release()
        third.release()
        assert not store.is_leased("apply"), "a released lease is still held"

    def test_each_epoch_is_larger_than_all_before(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        assert store.current_epoch() == 0
        taken = [store.take_epoch(), other.take_epoch(), store.take_epoch()]

        assert taken == sorted(set(taken))
        assert taken[0] > 0
        assert other.current_epoch() == taken[-1]

    def test_an_epoch_is_larger_than_those_of_a_store_that_was_lost(
        self, store: CoordinatingStore
    ) -> None:
        """The destination remembers its epochs, and refuses every smaller one."""
        lost = epoch_by_clock()

        assert store.take_epoch() >= lost, "an epoch must be at least epoch_by_clock()"

    def test_epochs_taken_at_once_differ(self, another_store: Another) -> None:
        stores = [another_store() for _ in range(4)]
        together = threading.Barrier(4)

        def race(store: CoordinatingStore) -> Callable[[], int]:
            def work() -> int:
                together.wait(self.patience_s)
                return store.take_epoch()

            return work

        races = [race(store) for store in stores]
        epochs = all_within(self.patience_s, "epochs for four stores", races)

        assert len(set(epochs)) == 4, f"two processes got the same epoch: {epochs}"

    # -- waiting -------------------------------------------------------------------------------

    def test_a_wait_ends_when_another_process_changes_something(
        self, store: CoordinatingStore, other: CoordinatingStore
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

        def wait_for_each() -> None:
            for change in changes:
                # This wait ends for all changes so far, so the next one has to wait.
                store.wait_for_change(0.01)
                change()
                store.wait_for_change(600)

        within(self.patience_s, "a wait ends when something changes", wait_for_each)
        assert dict(store.get_table_replication_states()) == {}

    def test_two_workers_talk_through_the_store_and_miss_no_word(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        """A change that comes while a worker reads and decides must end its next wait at once."""
        tables = range(1, 11)

        def ask() -> None:
            for table_id in tables:
                store.update_table_replication_states([(table_id, SyncWait(Lsn(5)))])
                while store.get_table_replication_state(table_id) != Catchup(Lsn(9)):
                    store.wait_for_change(600)

        def answer() -> None:
            for table_id in tables:
                asked, answered = SyncWait(Lsn(5)), Catchup(Lsn(9))
                while not other.transition_table_state(table_id, asked, answered):
                    other.wait_for_change(600)

        all_within(
            self.patience_s, "two workers are notified of each other's changes", [ask, answer]
        )

    def test_a_worker_can_be_woken(self, store: CoordinatingStore) -> None:
        ended = threading.Event()

        def wait() -> None:
            for _ in range(4):
                store.wait_for_change(600)
            ended.set()

        def wake() -> None:
            while not ended.wait(0.01):
                store.wake()

        try:
            all_within(self.patience_s, "a waiting worker is woken", [wait, wake])
        finally:
            ended.set()

    def test_a_wait_ends_in_time_when_nothing_changes(self, store: CoordinatingStore) -> None:
        def wait() -> None:
            for _ in range(3):
                store.wait_for_change(0.01)

        within(self.patience_s, "a wait ends when its time is over", wait)

    # -- status --------------------------------------------------------------------------------

    def test_the_last_status_is_shown_to_others(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        assert other.get_status("apply") is None
        store.publish_status("apply", {"lag_bytes": 5, "nested": {"list": [1, None, "ü"]}})
        assert other.get_status("apply") == {"lag_bytes": 5, "nested": {"list": [1, None, "ü"]}}
        store.publish_status("apply", {"lag_bytes": 0})

        assert other.get_status("apply") == {"lag_bytes": 0}
        assert other.get_status("table:1") is None

    # -- notes ---------------------------------------------------------------------------------

    def test_the_last_note_is_read_by_others(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        assert other.get_note("members") is None
        note = {"left": {"16384": "0/10"}, "kept": [[1, "pärt"], None, 2**53], "empty": {}}
        store.put_note("members", note)
        assert other.get_note("members") == note
        other.put_note("members", {})

        assert store.get_note("members") == {}
        assert store.get_note("paused") is None
        assert store.get_status("members") is None

    def test_what_was_a_status_before_there_were_notes_is_the_note(
        self, store: CoordinatingStore, other: CoordinatingStore
    ) -> None:
        """If an upgrade forgot it, the engine would conclude that nothing had happened before."""
        store.publish_status("members", {"left": ["before"]})
        assert other.get_note("members") == {"left": ["before"]}
        other.put_note("members", {"left": []})

        assert store.get_note("members") == {"left": []}
        # A process of the earlier version still runs.
        store.publish_status("members", {"left": ["late"]})
        assert other.get_note("members") == {"left": ["late"]}

    def test_a_note_outlives_a_process_that_is_killed_right_after(
        self, tmp_path: Path, store: CoordinatingStore, reopened: Another
    ) -> None:
        """With SIGKILL: the process can't write it later."""
        store.put_note("members", {"number": 1})
        died = note_and_die(self, tmp_path, "members", {"number": 2})
        assert died == -signal.SIGKILL, (
            f"the process that writes the note ended with exit code {died} instead: its error is "
            "in the captured output"
        )

        assert reopened().get_note("members") == {"number": 2}

    # -- opened again --------------------------------------------------------------------------

    def test_the_plan_of_a_copy_outlives_the_process(
        self, store: CoordinatingStore, reopened: Another
    ) -> None:
        done = FinishedChunk(0, 1000, 50_000, Lsn(88), 0.25)
        store.store_copy_plan(1, PLAN)
        store.finish_chunk(1, "copy-1", done)
        store.upsert_replication_progress(TableSyncWorker(1), Lsn(8))

        assert reopened().get_copy_plan(1) == replace(PLAN, finished={0: done})

    def test_epochs_outlive_the_process(self, store: CoordinatingStore, reopened: Another) -> None:
        first = store.take_epoch()
        again = reopened()

        assert again.current_epoch() == first
        assert again.take_epoch() > first


def _remembering(store: CoordinatingStore) -> RemembersDestination:
    if not isinstance(store, RemembersDestination):
        pytest.skip(f"{type(store).__name__} has no get_known_destination()")
    return store


def _is_held(lease: Lease) -> bool:
    return lease.is_held
