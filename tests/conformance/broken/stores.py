"""Stores with one defect each. `promise` is the check that must fail; the first classes have none.

Not collected with the other tests: `test_broken.py` runs this file on its own.
"""

from __future__ import annotations

import functools
import json
import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from etl_dagster.errors import StateRollbackError
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyPlan, FinishedChunk
from etl_dagster.model.memory_lease import MemoryLease
from etl_dagster.model.schema import SnapshotId, TableId, TableSchema, TableSchemaRetention
from etl_dagster.model.states import Errored, TableState, TimedRetry
from etl_dagster.model.stores import ApplyWorker, DestinationTableMetadata, WorkerType
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing import CoordinationSuite, StoreSuite


def _saving(write: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(write)
    def write_and_save(self: FileStore, *arguments: Any) -> Any:
        with self._lock:
            result = write(self, *arguments)
            self.save()
        return result

    return write_and_save


class FileStore(MemoryStore):
    """Everything in one file, which is written again after each change."""

    kept: ClassVar[tuple[str, ...]] = ("_states", "_schemas", "_progress", "_metadata")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if path.exists():
            vars(self).update(pickle.loads(path.read_bytes()))

    def save(self) -> None:
        self._path.write_bytes(pickle.dumps({name: getattr(self, name) for name in self.kept}))

    store_table_schema = _saving(MemoryStore.store_table_schema)
    prune_table_schemas = _saving(MemoryStore.prune_table_schemas)
    update_table_replication_states = _saving(MemoryStore.update_table_replication_states)
    rollback_table_replication_state = _saving(MemoryStore.rollback_table_replication_state)
    upsert_replication_progress = _saving(MemoryStore.upsert_replication_progress)
    delete_replication_progress = _saving(MemoryStore.delete_replication_progress)
    store_destination_table_metadata = _saving(MemoryStore.store_destination_table_metadata)
    clear_table_copy_state = _saving(MemoryStore.clear_table_copy_state)
    delete_table_pipeline_state = _saving(MemoryStore.delete_table_pipeline_state)


# -- without a defect --------------------------------------------------------------------------


class TestFileStore(StoreSuite):
    promise: ClassVar[str | None] = None
    store_class: ClassVar[type[FileStore]] = FileStore

    def make_store(self, folder: Path) -> FileStore:
        return self.store_class(folder / "store.pickle")


class TestSharedStore(CoordinationSuite):
    promise: ClassVar[str | None] = None
    store_class: ClassVar[type[MemoryStore]] = MemoryStore
    durable = False

    def make_store(self, folder: Path) -> MemoryStore:
        return self.store_class()


# -- progress ----------------------------------------------------------------------------------


class TestProgressMovesBack(TestFileStore):
    promise = "test_progress_never_moves_back"

    class store_class(FileStore):
        def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
            self._progress[worker] = flush_lsn
            self.save()
            return flush_lsn


class TestProgressReturnsWhatItWasGiven(TestFileStore):
    promise = "test_progress_never_moves_back"

    class store_class(FileStore):
        def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
            super().upsert_replication_progress(worker, flush_lsn)
            return flush_lsn


class TestAllWorkersShareOneProgress(TestFileStore):
    promise = "test_each_worker_has_its_own_progress"

    class store_class(FileStore):
        def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
            stored: Lsn = super().upsert_replication_progress(ApplyWorker(), flush_lsn)
            return stored

        def get_replication_progress(self, worker: WorkerType) -> Lsn | None:
            return super().get_replication_progress(ApplyWorker())


class TestProgressIsComparedOutsideTheLock(TestFileStore):
    promise = "test_of_progress_reported_by_several_threads_the_furthest_stays"

    class store_class(FileStore):
        def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
            stored = max(flush_lsn, self._progress.get(worker, flush_lsn))
            time.sleep(0.001)  # another thread's turn
            self._progress[worker] = stored
            self.save()
            return stored


# -- states ------------------------------------------------------------------------------------


class TestHistoryIsLost(TestFileStore):
    promise = "test_a_rollback_goes_back_one_durable_state"

    class store_class(FileStore):
        def _set_state(self, table_id: TableId, state: TableState) -> None:
            self._states[table_id] = [state]


class TestRollbackForgetsToRemoveTheCurrentState(TestFileStore):
    promise = "test_a_rollback_goes_back_one_durable_state"

    class store_class(FileStore):
        def rollback_table_replication_state(self, table_id: TableId) -> TableState:
            kept = list(self._states.get(table_id, []))
            state: TableState = super().rollback_table_replication_state(table_id)
            self._states[table_id] = kept
            return state


class TestRollbackGoesBackToATalkOfTwoWorkers(TestFileStore):
    promise = "test_a_rollback_goes_back_one_durable_state"

    class store_class(FileStore):
        def rollback_table_replication_state(self, table_id: TableId) -> TableState:
            history = self._states.get(table_id, [])
            if len(history) < 2:
                raise StateRollbackError(f"table {table_id} has no earlier state to go back to")
            history.pop()
            return history[-1]


class TestRollbackInventsAFirstState(TestFileStore):
    promise = "test_a_rollback_without_an_earlier_state_is_refused"

    class store_class(FileStore):
        def rollback_table_replication_state(self, table_id: TableId) -> TableState:
            try:
                state: TableState = super().rollback_table_replication_state(table_id)
            except StateRollbackError:
                return self._states[table_id][-1]
            return state


class TestManyTablesAreUpdatedOneByOne(TestFileStore):
    promise = "test_no_reader_sees_half_of_an_update_of_many_tables"

    class store_class(FileStore):
        def update_table_replication_states(
            self, updates: Sequence[tuple[TableId, TableState]]
        ) -> None:
            for update in updates:
                super().update_table_replication_states([update])
                time.sleep(0.0001)  # another thread's turn


class TestStatesThatWereReadChangeLater(TestFileStore):
    promise = "test_what_was_read_stays_as_it_was_when_read"

    class store_class(FileStore):
        class _View(Mapping[TableId, TableState]):
            def __init__(self, states: dict[TableId, list[TableState]]) -> None:
                self._states = states

            def __getitem__(self, table_id: TableId) -> TableState:
                return self._states[table_id][-1]

            def __iter__(self) -> Any:
                return iter(list(self._states))

            def __len__(self) -> int:
                return len(self._states)

        def get_table_replication_states(self) -> Mapping[TableId, TableState]:
            return self._View(self._states)


class TestARetryIsRoundedToAWholeSecond(TestFileStore):
    promise = "test_each_state_is_read_as_it_was_written"

    class store_class(FileStore):
        def update_table_replication_states(
            self, updates: Sequence[tuple[TableId, TableState]]
        ) -> None:
            super().update_table_replication_states([(t, _to_second(s)) for t, s in updates])


def _to_second(state: TableState) -> TableState:
    match state:
        case Errored(retry=TimedRetry() as retry):
            whole = retry.next_retry.replace(microsecond=0)
            return replace(state, retry=replace(retry, next_retry=whole))
    return state


class TestReasonsAreCutToAColumnsWidth(TestFileStore):
    promise = "test_each_state_is_read_as_it_was_written"

    class store_class(FileStore):
        def update_table_replication_states(
            self, updates: Sequence[tuple[TableId, TableState]]
        ) -> None:
            super().update_table_replication_states(
                [
                    (t, replace(s, reason=s.reason[:255]) if isinstance(s, Errored) else s)
                    for t, s in updates
                ]
            )


class TestTablesAreNumberedBySignedIntegers(TestFileStore):
    promise = "test_a_table_may_have_any_oid"

    class store_class(FileStore):
        def get_table_replication_state(self, table_id: TableId) -> TableState | None:
            return super().get_table_replication_state(table_id) if table_id < 2**31 else None


class TestAnUpdateOfNothingIsRefused(TestFileStore):
    promise = "test_no_states_may_change_at_once"

    class store_class(FileStore):
        def update_table_replication_states(
            self, updates: Sequence[tuple[TableId, TableState]]
        ) -> None:
            if not updates:
                pytest.fail("a statement without values")
            super().update_table_replication_states(updates)


class TestARetryForgetsItsAttempts(TestFileStore):
    promise = "test_each_state_is_read_as_it_was_written"

    class store_class(FileStore):
        def _set_state(self, table_id: TableId, state: TableState) -> None:
            if isinstance(state, Errored) and isinstance(state.retry, TimedRetry):
                state = replace(state, retry=TimedRetry(state.retry.next_retry))
            super()._set_state(table_id, state)


# -- schemas -----------------------------------------------------------------------------------


class TestSchemaIsFoundAtItsOwnSnapshotOnly(TestFileStore):
    promise = "test_the_version_in_force_at_a_snapshot_is_the_newest_before_it"

    class store_class(FileStore):
        def get_table_schema(
            self, table_id: TableId, snapshot_id: SnapshotId
        ) -> TableSchema | None:
            return self._schemas.get(table_id, {}).get(snapshot_id)


class TestSchemaLosesTheModeOfItsTable(TestFileStore):
    promise = "test_a_schema_is_read_with_the_mode_of_its_table"

    class store_class(FileStore):
        def store_table_schema(self, schema: TableSchema) -> TableSchema:
            super().store_table_schema(replace(schema, mode="mirror"))
            return schema


class TestSchemaLosesWhatDiffersAtTheDestination(TestFileStore):
    promise = "test_what_differs_at_the_destination_is_kept_with_the_schema"

    class store_class(FileStore):
        def store_table_schema(self, schema: TableSchema) -> TableSchema:
            super().store_table_schema(replace(schema, shape=None))
            return schema


class TestSchemaIsTheNewestWhateverTheSnapshot(TestFileStore):
    promise = "test_before_its_first_version_a_table_has_no_schema"

    class store_class(FileStore):
        def get_table_schema(
            self, table_id: TableId, snapshot_id: SnapshotId
        ) -> TableSchema | None:
            return super().get_table_schema(table_id, Lsn(2**64 - 1))


class TestPruningRemovesTheVersionInForce(TestFileStore):
    promise = "test_pruning_keeps_the_version_in_force"

    class store_class(FileStore):
        def prune_table_schemas(self, retentions: Mapping[TableId, TableSchemaRetention]) -> int:
            removed = 0
            for table_id, retention in retentions.items():
                versions = self._schemas.get(table_id, {})
                for version in [version for version in versions if version < retention.lsn]:
                    del versions[version]
                    removed += 1
            return removed


# -- metadata and life cycle -------------------------------------------------------------------


class TestApplyingIsReturnedAsApplied(TestFileStore):
    promise = "test_metadata_that_is_being_applied_is_not_given_as_applied"

    class store_class(FileStore):
        def get_applied_destination_table_metadata(
            self, table_id: TableId
        ) -> DestinationTableMetadata | None:
            return self.get_destination_table_metadata(table_id)


class TestMetadataIsLostOnReopening(TestFileStore):
    promise = "test_metadata_outlives_the_process"

    class store_class(FileStore):
        kept = ("_states", "_schemas", "_progress")


class TestEverythingIsSavedOnlyAtTheEnd(TestFileStore):
    promise = "test_progress_outlives_the_process_and_does_not_move_back_then"

    class store_class(FileStore):
        def save(self) -> None:
            """Later."""

        def close(self) -> None:
            super().save()


class TestClearingForACopyRemovesTheState(TestFileStore):
    promise = "test_before_a_copy_everything_but_the_state_goes"

    class store_class(FileStore):
        def clear_table_copy_state(self, table_id: TableId) -> None:
            super().clear_table_copy_state(table_id)
            self._states.pop(table_id, None)


class TestClearingForACopyConcernsAllTables(TestFileStore):
    promise = "test_before_a_copy_everything_but_the_state_goes"

    class store_class(FileStore):
        def clear_table_copy_state(self, table_id: TableId) -> None:
            super().clear_table_copy_state(table_id)
            self._schemas.clear()


class TestADeletedTableKeepsItsHistory(TestFileStore):
    promise = "test_a_table_that_left_the_publication_leaves_nothing"

    class store_class(FileStore):
        def delete_table_pipeline_state(self, table_id: TableId) -> None:
            history = self._states.get(table_id)
            super().delete_table_pipeline_state(table_id)
            if history is not None:
                self._hidden = {table_id: history}

        def rollback_table_replication_state(self, table_id: TableId) -> TableState:
            for hidden in getattr(self, "_hidden", {}).values():
                return hidden[-1]  # type: ignore[no-any-return]
            state: TableState = super().rollback_table_replication_state(table_id)
            return state


# -- coordination ------------------------------------------------------------------------------


class TestALeaseIsGivenTwice(TestSharedStore):
    promise = "test_a_lease_has_one_holder"

    class store_class(MemoryStore):
        def acquire_lease(self, name: str) -> MemoryLease | None:
            self._leases.pop(name, None)
            return super().acquire_lease(name)


class TestALeaseIsReleasedByItsFormerHolder(TestSharedStore):
    promise = "test_a_lease_has_one_holder"

    class store_class(MemoryStore):
        class _Lease(MemoryLease):
            def release(self) -> None:
                self._holders.pop(self._name, None)

        def acquire_lease(self, name: str) -> MemoryLease | None:
            if name in self._leases:
                return None
            lease = self._leases[name] = self._Lease(self._leases, name, self._lock)
            return lease


class TestAnEpochIsRepeated(TestSharedStore):
    promise = "test_each_epoch_is_larger_than_all_before"

    class store_class(MemoryStore):
        def take_epoch(self) -> int:
            return max(super().take_epoch() - 1, 1)


class TestEpochsStartOver(TestSharedStore):
    promise = "test_an_epoch_is_larger_than_those_of_a_store_that_was_lost"

    class store_class(MemoryStore):
        def take_epoch(self) -> int:
            with self._lock:
                self._epoch += 1
                return self._epoch


class TestEpochsAreTakenOutsideTheLock(TestSharedStore):
    promise = "test_epochs_taken_at_once_differ"

    class store_class(MemoryStore):
        def take_epoch(self) -> int:
            epoch = self._epoch + 1
            time.sleep(0.005)  # another thread's turn
            self._epoch = epoch
            return epoch


class TestATransitionDoesNotCompare(TestSharedStore):
    promise = "test_a_transition_happens_only_from_the_expected_state"

    class store_class(MemoryStore):
        def transition_table_state(
            self, table_id: TableId, expected: TableState, new: TableState
        ) -> bool:
            self.update_table_replication_states([(table_id, new)])
            return True


class TestATransitionIsComparedOutsideTheLock(TestSharedStore):
    promise = "test_of_many_transitions_from_one_state_one_happens"

    class store_class(MemoryStore):
        def transition_table_state(
            self, table_id: TableId, expected: TableState, new: TableState
        ) -> bool:
            if self.get_table_replication_state(table_id) != expected:
                return False
            time.sleep(0.005)  # another thread's turn
            self.update_table_replication_states([(table_id, new)])
            return True


class TestAWaitMissesEarlierChanges(TestSharedStore):
    promise = "test_a_wait_ends_when_another_process_changes_something"
    patience_s = 0.2

    class store_class(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self._next = threading.Event()

        def wait_for_change(self, timeout_s: float) -> None:
            self._next = threading.Event()
            self._next.wait(timeout_s)

        def wake(self) -> None:
            self._next.set()


class TestATransitionWakesNoOne(TestSharedStore):
    promise = "test_two_workers_talk_through_the_store_and_miss_no_word"
    patience_s = 0.2

    class store_class(MemoryStore):
        def transition_table_state(
            self, table_id: TableId, expected: TableState, new: TableState
        ) -> bool:
            with self._lock:
                if self.get_table_replication_state(table_id) != expected:
                    return False
                self._set_state(table_id, new)
                return True


class TestAFinishedChunkWakesNoOne(TestSharedStore):
    promise = "test_a_wait_ends_when_another_process_changes_something"
    patience_s = 0.2

    class store_class(MemoryStore):
        def finish_chunk(self, table_id: TableId, copy_id: str, chunk: FinishedChunk) -> None:
            plan = self._plans.get(table_id)
            planned = {part.index for part in plan.chunks} if plan else set()
            if plan and plan.copy_id == copy_id and chunk.index in planned - set(plan.finished):
                finished = {**plan.finished, chunk.index: chunk}
                self._plans[table_id] = replace(plan, finished=finished)


class TestAWorkerCannotBeWoken(TestSharedStore):
    promise = "test_a_worker_can_be_woken"
    patience_s = 0.2

    class store_class(MemoryStore):
        def wake(self) -> None:
            """Wake no one."""


class TestAChunkFinishedTwiceCountsTheSecond(TestSharedStore):
    promise = "test_finished_chunks_are_remembered"

    class store_class(MemoryStore):
        def finish_chunk(self, table_id: TableId, copy_id: str, chunk: FinishedChunk) -> None:
            if (plan := self._plans.get(table_id)) and plan.copy_id == copy_id:
                finished = {
                    number: c for number, c in plan.finished.items() if number != chunk.index
                }
                self._plans[table_id] = replace(plan, finished=finished)
            super().finish_chunk(table_id, copy_id, chunk)


class TestANewPlanKeepsWhatIsFinished(TestSharedStore):
    promise = "test_a_new_plan_has_nothing_finished"

    class store_class(MemoryStore):
        def store_copy_plan(self, table_id: TableId, plan: CopyPlan) -> None:
            super().store_copy_plan(table_id, plan)
            self._plans[table_id] = plan


class TestAResetForgetsWhereTheTablesAre(TestSharedStore):
    promise = "test_a_reset_starts_every_table_over_and_keeps_where_it_is"

    class store_class(MemoryStore):
        def reset_for_resync(self) -> int:
            self._metadata.clear()
            return super().reset_for_resync()


class TestARequestedCopyKeepsItsPlan(TestSharedStore):
    promise = "test_a_requested_copy_starts_over"

    class store_class(MemoryStore):
        def request_copy(self, table_id: TableId) -> None:
            plan = self._plans.get(table_id)
            super().request_copy(table_id)
            if plan:
                self._plans[table_id] = plan


class TestNotesForgetWhatWasAStatus(TestSharedStore):
    promise = "test_what_was_a_status_before_there_were_notes_is_the_note"

    class store_class(MemoryStore):
        def get_note(self, key: str) -> Mapping[str, Any] | None:
            return json.loads(self._notes[key]) if key in self._notes else None


class TestANoteDiesWithItsProcess(CoordinationSuite):
    """Everything else that is written is in the file at once."""

    promise: ClassVar[str | None] = "test_a_note_outlives_a_process_that_is_killed_right_after"
    # Two objects don't notify each other.
    test_a_wait_ends_when_another_process_changes_something = None  # type: ignore[assignment]
    test_two_workers_talk_through_the_store_and_miss_no_word = None  # type: ignore[assignment]

    def make_store(self, folder: Path) -> FileStore:
        return FileStore(folder / "store.pickle")


class TestAnotherProcessReadsItsOwnCache(CoordinationSuite):
    """Two objects over one store, each of which remembers the states that it has read."""

    promise: ClassVar[str | None] = "test_another_process_reads_what_was_written_last"

    class store_class:
        def __init__(self, store: MemoryStore) -> None:
            self._store = store
            self._cached: dict[TableId, TableState | None] = {}

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def get_table_replication_state(self, table_id: TableId) -> TableState | None:
            if table_id not in self._cached:
                self._cached[table_id] = self._store.get_table_replication_state(table_id)
            return self._cached[table_id]

        def update_table_replication_states(
            self, updates: Sequence[tuple[TableId, TableState]]
        ) -> None:
            self._cached.clear()
            self._store.update_table_replication_states(updates)

    def make_store(self, folder: Path) -> Any:
        if not hasattr(self, "shared"):
            self.shared = MemoryStore()
        return self.store_class(self.shared)
