"""A store in the memory of one process: for tests, and for trying a pipeline out."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from etl_dagster.config import PipelineConfig, StoreConfig
from etl_dagster.errors import StateRollbackError
from etl_dagster.lsn import Lsn
from etl_dagster.model.change_signal import ChangeSignal
from etl_dagster.model.coordination import CopyPlan, FinishedChunk, epoch_by_clock
from etl_dagster.model.identity import KnownDestination, KnownSource
from etl_dagster.model.memory_lease import MemoryLease
from etl_dagster.model.remembering import RemembersInMemory
from etl_dagster.model.schema import SnapshotId, TableId, TableSchema, TableSchemaRetention
from etl_dagster.model.states import Init, TableState, is_durable
from etl_dagster.model.stores import (
    ApplyWorker,
    DestinationTableMetadata,
    TableSyncWorker,
    WorkerType,
)


class MemoryStoreConfig(StoreConfig):
    """Forgets everything at the end of the process; for trying things out."""

    type: Literal["memory"]


class MemoryStore(RemembersInMemory):
    """Behaves as a store of several processes does, and forgets everything with its own."""

    config_model = MemoryStoreConfig
    in_process_only = True

    @classmethod
    def from_config(cls, config: MemoryStoreConfig, pipeline: PipelineConfig) -> MemoryStore:
        """A store that holds nothing."""
        return cls()

    def __init__(self) -> None:
        # One lock over everything makes each operation atomic.
        self._lock = threading.RLock()
        self._changes = ChangeSignal()
        #: Per table, oldest first; the last one is the current state.
        self._states: dict[TableId, list[TableState]] = {}
        self._schemas: dict[TableId, dict[SnapshotId, TableSchema]] = {}
        self._progress: dict[WorkerType, Lsn] = {}
        self._metadata: dict[TableId, DestinationTableMetadata] = {}
        self._plans: dict[TableId, CopyPlan] = {}
        self._leases: dict[str, MemoryLease] = {}
        self._status: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._epoch = 0
        self._known: KnownDestination | None = None
        self._known_source: KnownSource | None = None

    def open(self) -> None:
        """Nothing to do; other stores connect here."""

    def close(self) -> None:
        """Nothing to do; other stores disconnect here."""

    # -- schemas -------------------------------------------------------------------------------

    def get_table_schema(self, table_id: TableId, snapshot_id: SnapshotId) -> TableSchema | None:
        with self._lock:
            versions = self._schemas.get(table_id, {})
            newest = max((version for version in versions if version <= snapshot_id), default=None)
            return None if newest is None else versions[newest]

    def get_table_schemas(self) -> Sequence[TableSchema]:
        with self._lock:
            return [
                versions[snapshot_id]
                for _, versions in sorted(self._schemas.items())
                for snapshot_id in sorted(versions)
            ]

    def load_table_schemas(self) -> int:
        return len(self.get_table_schemas())

    def store_table_schema(self, schema: TableSchema) -> TableSchema:
        with self._lock:
            self._schemas.setdefault(schema.id, {})[schema.snapshot_id] = schema
        self._changes.bump()
        return schema

    def prune_table_schemas(self, retentions: Mapping[TableId, TableSchemaRetention]) -> int:
        removed = 0
        with self._lock:
            for table_id, retention in retentions.items():
                versions = self._schemas.get(table_id, {})
                in_force = max((v for v in versions if v <= retention.lsn), default=None)
                if in_force is None:
                    continue
                for version in [v for v in versions if v < in_force]:
                    del versions[version]
                    removed += 1
        return removed

    # -- states --------------------------------------------------------------------------------

    def get_table_replication_state(self, table_id: TableId) -> TableState | None:
        with self._lock:
            history = self._states.get(table_id)
            return history[-1] if history else None

    def get_table_replication_states(self) -> Mapping[TableId, TableState]:
        with self._lock:
            return {table_id: history[-1] for table_id, history in sorted(self._states.items())}

    def load_table_replication_states(self) -> int:
        return len(self._states)

    def update_table_replication_states(
        self, updates: Sequence[tuple[TableId, TableState]]
    ) -> None:
        with self._lock:
            for table_id, state in updates:
                self._set_state(table_id, state)
        self._changes.bump()

    def rollback_table_replication_state(self, table_id: TableId) -> TableState:
        with self._lock:
            history = self._states.get(table_id, [])
            previous = [index for index, state in enumerate(history[:-1]) if is_durable(state)]
            if not previous:
                raise StateRollbackError(f"table {table_id} has no earlier state to go back to")
            del history[previous[-1] + 1 :]
            state = history[-1]
        self._changes.bump()
        return state

    def _set_state(self, table_id: TableId, state: TableState) -> None:
        history = self._states.setdefault(table_id, [])
        # The same state again is not a change; it would only make a rollback go nowhere.
        if not history or history[-1] != state:
            history.append(state)

    # -- progress ------------------------------------------------------------------------------

    def get_replication_progress(self, worker: WorkerType) -> Lsn | None:
        with self._lock:
            return self._progress.get(worker)

    def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
        with self._lock:
            stored = max(flush_lsn, self._progress.get(worker, flush_lsn))
            self._progress[worker] = stored
            return stored

    def delete_replication_progress(self, worker: WorkerType) -> None:
        with self._lock:
            self._progress.pop(worker, None)

    # -- destination metadata ------------------------------------------------------------------

    def get_destination_table_metadata(self, table_id: TableId) -> DestinationTableMetadata | None:
        with self._lock:
            return self._metadata.get(table_id)

    def get_applied_destination_table_metadata(
        self, table_id: TableId
    ) -> DestinationTableMetadata | None:
        metadata = self.get_destination_table_metadata(table_id)
        return None if metadata is None else metadata.require_applied()

    def load_destination_tables_metadata(self) -> int:
        return len(self._metadata)

    def store_destination_table_metadata(
        self, table_id: TableId, metadata: DestinationTableMetadata
    ) -> None:
        with self._lock:
            self._metadata[table_id] = metadata

    # -- lifecycle -----------------------------------------------------------------------------

    def clear_table_copy_state(self, table_id: TableId) -> None:
        with self._lock:
            self._schemas.pop(table_id, None)
            self._metadata.pop(table_id, None)
            self._progress.pop(TableSyncWorker(table_id), None)
            self._plans.pop(table_id, None)
        self._changes.bump()

    def delete_table_pipeline_state(self, table_id: TableId) -> None:
        with self._lock:
            self.clear_table_copy_state(table_id)
            self._states.pop(table_id, None)
        self._changes.bump()

    def reset_for_resync(self) -> int:
        with self._lock:
            for table_id in self._states:
                self._set_state(table_id, Init())
            self._progress.pop(ApplyWorker(), None)
            self._plans.clear()
            self._known = None
            count = len(self._states)
        self._changes.bump()
        return count

    def remove_pipeline(self) -> None:
        with self._lock:
            for kept in (self._schemas, self._metadata, self._progress, self._plans, self._states):
                kept.clear()
            self._status.clear()
            self._notes.clear()
            self._known, self._known_source = None, None
        self._changes.bump()

    # -- coordination --------------------------------------------------------------------------

    def transition_table_state(
        self, table_id: TableId, expected: TableState, new: TableState
    ) -> bool:
        with self._lock:
            if self.get_table_replication_state(table_id) != expected:
                return False
            self._set_state(table_id, new)
        self._changes.bump()
        return True

    def wait_for_change(self, timeout_s: float) -> None:
        self._changes.wait(timeout_s)

    def wake(self) -> None:
        self._changes.bump()

    def acquire_lease(self, name: str) -> MemoryLease | None:
        with self._lock:
            if name in self._leases:
                return None
            lease = self._leases[name] = MemoryLease(self._leases, name, self._lock)
            return lease

    def is_leased(self, name: str) -> bool:
        return name in self._leases

    def take_epoch(self) -> int:
        with self._lock:
            self._epoch = max(self._epoch + 1, epoch_by_clock())
            return self._epoch

    def current_epoch(self) -> int:
        return self._epoch

    def get_copy_plan(self, table_id: TableId) -> CopyPlan | None:
        with self._lock:
            plan = self._plans.get(table_id)
            return None if plan is None else replace(plan, finished=dict(plan.finished))

    def store_copy_plan(self, table_id: TableId, plan: CopyPlan) -> None:
        with self._lock:
            self._plans[table_id] = replace(plan, finished={})
        self._changes.bump()

    def finish_chunk(self, table_id: TableId, copy_id: str, chunk: FinishedChunk) -> None:
        with self._lock:
            plan = self._plans.get(table_id)
            if plan is None or plan.copy_id != copy_id or chunk.index in plan.finished:
                return
            if chunk.index not in {planned.index for planned in plan.chunks}:
                return
            self._plans[table_id] = replace(plan, finished={**plan.finished, chunk.index: chunk})
        self._changes.bump()

    def request_copy(self, table_id: TableId) -> None:
        with self._lock:
            self._plans.pop(table_id, None)
            self._set_state(table_id, Init())
        self._changes.bump()

    def publish_status(self, key: str, payload: Mapping[str, Any]) -> None:
        # Through JSON, so that what a store of several processes can't hold fails here as well.
        with self._lock:
            self._status[key] = json.dumps(payload)

    def get_status(self, key: str) -> Mapping[str, Any] | None:
        with self._lock:
            payload = self._status.get(key)
        return None if payload is None else json.loads(payload)

    def put_note(self, key: str, note: Mapping[str, Any]) -> None:
        with self._lock:
            self._notes[key] = json.dumps(note)
            self._status.pop(key, None)

    def get_note(self, key: str) -> Mapping[str, Any] | None:
        with self._lock:
            note = self._status.get(key, self._notes.get(key))
        return None if note is None else json.loads(note)
