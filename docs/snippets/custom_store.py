"""A store in memory: what a pipeline must remember, and nothing else."""

import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from etl_dagster.errors import StateRollbackError
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import SnapshotId, TableId, TableSchema, TableSchemaRetention
from etl_dagster.model.states import TableState, is_durable, state_name
from etl_dagster.model.stores import (
    DestinationTableMetadata,
    SchemaStore,
    StateStore,
    TableLifecycleStore,
    TableSyncWorker,
    WorkerType,
)

log = logging.getLogger(__name__)


@dataclass
class TableEntry:
    """What is remembered of one table."""

    schemas: dict[SnapshotId, TableSchema] = field(default_factory=dict)
    #: Oldest first; the last one is the current state.
    states: list[TableState] = field(default_factory=list)
    metadata: DestinationTableMetadata | None = None


class CustomStore(SchemaStore, StateStore, TableLifecycleStore):
    def __init__(self) -> None:
        # Several threads call a store. One lock around each method makes it atomic.
        self._lock = threading.Lock()
        self._tables: defaultdict[TableId, TableEntry] = defaultdict(TableEntry)
        self._progress: dict[WorkerType, Lsn] = {}

    # -- SchemaStore: the versions of every table's schema

    def get_table_schema(self, table_id: TableId, snapshot_id: SnapshotId) -> TableSchema | None:
        with self._lock:
            schemas = self._tables[table_id].schemas
            newest = max((version for version in schemas if version <= snapshot_id), default=None)
            return None if newest is None else schemas[newest]

    def get_table_schemas(self) -> Sequence[TableSchema]:
        with self._lock:
            return [s for entry in self._tables.values() for s in entry.schemas.values()]

    def load_table_schemas(self) -> int:
        return len(self.get_table_schemas())  # nothing to load: memory is all there is

    def store_table_schema(self, schema: TableSchema) -> TableSchema:
        with self._lock:
            self._tables[schema.id].schemas[schema.snapshot_id] = schema
            return schema

    def prune_table_schemas(self, retentions: Mapping[TableId, TableSchemaRetention]) -> int:
        removed = 0
        with self._lock:
            for table_id, retention in retentions.items():
                schemas = self._tables[table_id].schemas
                in_force = max((v for v in schemas if v <= retention.lsn), default=None)
                outdated = [v for v in schemas if in_force is not None and v < in_force]
                for version in outdated:
                    del schemas[version]
                removed += len(outdated)
        return removed

    # -- StateStore: table states, with their history

    def get_table_replication_state(self, table_id: TableId) -> TableState | None:
        return self.get_table_replication_states().get(table_id)

    def get_table_replication_states(self) -> Mapping[TableId, TableState]:
        with self._lock:
            return {table_id: e.states[-1] for table_id, e in self._tables.items() if e.states}

    def load_table_replication_states(self) -> int:
        return len(self.get_table_replication_states())

    def update_table_replication_states(
        self, updates: Sequence[tuple[TableId, TableState]]
    ) -> None:
        with self._lock:
            for table_id, state in updates:
                states = self._tables[table_id].states
                if not states or states[-1] != state:  # the same again is not a change
                    log.info("table %s is %s", table_id, state_name(state))
                    states.append(state)

    def rollback_table_replication_state(self, table_id: TableId) -> TableState:
        with self._lock:
            states = self._tables[table_id].states
            earlier = [n for n, state in enumerate(states[:-1]) if is_durable(state)]
            if not earlier:
                raise StateRollbackError(f"table {table_id} has no earlier state")
            del states[earlier[-1] + 1 :]
            return states[-1]

    # -- StateStore: how far each worker got

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

    # -- StateStore: what the tables look like at the destination

    def get_destination_table_metadata(self, table_id: TableId) -> DestinationTableMetadata | None:
        with self._lock:
            return self._tables[table_id].metadata

    def get_applied_destination_table_metadata(
        self, table_id: TableId
    ) -> DestinationTableMetadata | None:
        metadata = self.get_destination_table_metadata(table_id)
        return None if metadata is None else metadata.require_applied()

    def load_destination_tables_metadata(self) -> int:
        with self._lock:
            return sum(entry.metadata is not None for entry in self._tables.values())

    def store_destination_table_metadata(
        self, table_id: TableId, metadata: DestinationTableMetadata
    ) -> None:
        with self._lock:
            self._tables[table_id].metadata = metadata

    # -- TableLifecycleStore: everything of one table at once

    def clear_table_copy_state(self, table_id: TableId) -> None:
        with self._lock:
            self._tables[table_id].schemas.clear()
            self._tables[table_id].metadata = None
            self._progress.pop(TableSyncWorker(table_id), None)

    def delete_table_pipeline_state(self, table_id: TableId) -> None:
        with self._lock:
            self._tables.pop(table_id, None)
            self._progress.pop(TableSyncWorker(table_id), None)
