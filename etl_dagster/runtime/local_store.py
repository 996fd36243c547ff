"""Makes a store of one's own, with the three small contracts, enough for a pipeline."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from etl_dagster.errors import EtlError
from etl_dagster.lsn import Lsn
from etl_dagster.model.change_signal import ChangeSignal
from etl_dagster.model.coordination import Coordination, CopyPlan, FinishedChunk, epoch_by_clock
from etl_dagster.model.destination import ChecksItself, offered
from etl_dagster.model.identity import KnownDestination, KnownSource
from etl_dagster.model.memory_lease import MemoryLease
from etl_dagster.model.remembering import RemembersInMemory
from etl_dagster.model.schema import (
    INITIAL_SNAPSHOT,
    SnapshotId,
    TableId,
    TableSchema,
    TableSchemaRetention,
)
from etl_dagster.model.states import Init, TableState
from etl_dagster.model.stores import (
    ApplyWorker,
    Closes,
    CoordinatingStore,
    DestinationTableMetadata,
    KnowsPipeline,
    PipelineStore,
    WorkerType,
)
from etl_dagster.runtime.status_notes import noting_in_statuses

_log = logging.getLogger(__name__)

_NO_TABLE = 0


def coordinating(store: PipelineStore) -> CoordinatingStore:
    """The store itself where it coordinates several processes, else one that does so for this one.

    Then only one process may run the pipeline, and an interrupted copy starts over. A store
    that coordinates and has no `Notes` keeps them as statuses.
    """
    if isinstance(store, CoordinatingStore):
        return store
    return noting_in_statuses(store) if isinstance(store, Coordination) else LocalStore(store)


class LocalStore(RemembersInMemory):
    """A store, and in memory what the workers of one process need to meet."""

    def __init__(self, store: PipelineStore) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._changes = ChangeSignal()
        self._plans: dict[TableId, CopyPlan] = {}
        self._leases: dict[str, MemoryLease] = {}
        self._status: dict[str, str] = {}
        self._epoch = 0
        self._is_forgetful = False
        self._known: KnownDestination | None = None
        self._known_source: KnownSource | None = None

    def close(self) -> None:
        """Close the store itself, where it can be closed."""
        if isinstance(self._store, Closes):
            self._store.close()

    def knows_pipeline(self) -> bool:
        """What the store itself says, where it can; else whether it has any state."""
        if isinstance(self._store, KnowsPipeline):
            return self._store.knows_pipeline()
        return bool(self._store.get_table_replication_states())

    def check(self) -> str:
        """What the store itself finds when it looks, where it can."""
        if (checking := offered(self._store, ChecksItself)) is not None:
            return checking.check()
        return f"{type(self._store).__name__}; it can't be checked before the start"

    # -- the store's own -----------------------------------------------------------------------

    def get_table_schema(self, table_id: TableId, snapshot_id: SnapshotId) -> TableSchema | None:
        return self._store.get_table_schema(table_id, snapshot_id)

    def get_table_schemas(self) -> Sequence[TableSchema]:
        return self._store.get_table_schemas()

    def load_table_schemas(self) -> int:
        return self._store.load_table_schemas()

    def store_table_schema(self, schema: TableSchema) -> TableSchema:
        return self._store.store_table_schema(schema)

    def prune_table_schemas(self, retentions: Mapping[TableId, TableSchemaRetention]) -> int:
        return self._store.prune_table_schemas(retentions)

    def get_table_replication_state(self, table_id: TableId) -> TableState | None:
        return self._store.get_table_replication_state(table_id)

    def get_table_replication_states(self) -> Mapping[TableId, TableState]:
        return self._store.get_table_replication_states()

    def load_table_replication_states(self) -> int:
        return self._store.load_table_replication_states()

    def update_table_replication_states(
        self, updates: Sequence[tuple[TableId, TableState]]
    ) -> None:
        with self._lock:
            self._store.update_table_replication_states(updates)
        self.wake()

    def rollback_table_replication_state(self, table_id: TableId) -> TableState:
        with self._lock:
            state = self._store.rollback_table_replication_state(table_id)
        self.wake()
        return state

    def get_replication_progress(self, worker: WorkerType) -> Lsn | None:
        return self._store.get_replication_progress(worker)

    def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
        return self._store.upsert_replication_progress(worker, flush_lsn)

    def delete_replication_progress(self, worker: WorkerType) -> None:
        self._store.delete_replication_progress(worker)

    def get_destination_table_metadata(self, table_id: TableId) -> DestinationTableMetadata | None:
        return self._store.get_destination_table_metadata(table_id)

    def get_applied_destination_table_metadata(
        self, table_id: TableId
    ) -> DestinationTableMetadata | None:
        return self._store.get_applied_destination_table_metadata(table_id)

    def load_destination_tables_metadata(self) -> int:
        return self._store.load_destination_tables_metadata()

    def store_destination_table_metadata(
        self, table_id: TableId, metadata: DestinationTableMetadata
    ) -> None:
        self._store.store_destination_table_metadata(table_id, metadata)

    def clear_table_copy_state(self, table_id: TableId) -> None:
        self._plans.pop(table_id, None)
        self._store.clear_table_copy_state(table_id)

    def delete_table_pipeline_state(self, table_id: TableId) -> None:
        self._plans.pop(table_id, None)
        self._store.delete_table_pipeline_state(table_id)
        self.wake()

    # -- kept in memory ------------------------------------------------------------------------

    def transition_table_state(
        self, table_id: TableId, expected: TableState, new: TableState
    ) -> bool:
        with self._lock:
            if self._store.get_table_replication_state(table_id) != expected:
                return False
            self._store.update_table_replication_states([(table_id, new)])
        self.wake()
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
        return self._plans.get(table_id)

    def store_copy_plan(self, table_id: TableId, plan: CopyPlan) -> None:
        self._plans[table_id] = replace(plan, finished={})
        self.wake()

    def finish_chunk(self, table_id: TableId, copy_id: str, chunk: FinishedChunk) -> None:
        with self._lock:
            plan = self._plans.get(table_id)
            if (
                plan is not None
                and plan.copy_id == copy_id
                and chunk.index in {planned.index for planned in plan.chunks}
            ):
                finished = {chunk.index: chunk, **plan.finished}
                self._plans[table_id] = replace(plan, finished=finished)
        self.wake()

    def request_copy(self, table_id: TableId) -> None:
        self._plans.pop(table_id, None)
        self.update_table_replication_states([(table_id, Init())])

    def reset_for_resync(self) -> int:
        with self._lock:
            self._plans.clear()
            self._known = None
            table_ids = list(self._store.get_table_replication_states())
            # In this order: tables that are copied again need no progress, ready ones do.
            self._store.update_table_replication_states([(t, Init()) for t in table_ids])
            self._store.delete_replication_progress(ApplyWorker())
        self.wake()
        return len(table_ids)

    def publish_status(self, key: str, payload: Mapping[str, Any]) -> None:
        self._status[key] = json.dumps(payload)

    def get_status(self, key: str) -> Mapping[str, Any] | None:
        payload = self._status.get(key)
        return None if payload is None else json.loads(payload)

    # -- kept in a place that each store has ---------------------------------------------------

    def get_note(self, key: str) -> Mapping[str, Any] | None:
        # Earlier versions kept most statuses here, under the same keys.
        note = self._status.get(key, self._kept().get(key))
        return None if note is None else json.loads(note)

    def put_note(self, key: str, note: Mapping[str, Any]) -> None:
        text = json.dumps(note)
        with self._lock:
            kept = self._kept()
            if kept.get(key) != text:
                kept[key] = text
                self._keep(json.dumps(kept))
            self._status.pop(key, None)

    def _keep(self, text: str) -> None:
        """The destination metadata of no table (no table has the OID 0) holds what must last."""
        note = DestinationTableMetadata(text, INITIAL_SNAPSHOT, "applied", ())
        try:
            self._store.store_destination_table_metadata(_NO_TABLE, note)
        except Exception as error:
            # Only a store that never takes it is done without; one that is away is waited for.
            if isinstance(error, EtlError) and error.retryable:
                raise
            self._say_forgetful(error)

    def _say_forgetful(self, error: Exception) -> None:
        if not self._is_forgetful:
            _log.warning(
                "the store can't keep what was read from the catalog (%s): a table that leaves the "
                "publication and returns while the pipeline is stopped is not detected",
                type(error).__name__,
            )
        self._is_forgetful = True

    def _kept(self) -> dict[str, str]:
        note = self._store.get_destination_table_metadata(_NO_TABLE)
        try:
            kept: dict[str, str] = {} if note is None else json.loads(note.destination_table_id)
        except ValueError as error:  # for example cut off by a column that is too short
            self._say_forgetful(error)
            return {}
        return kept
