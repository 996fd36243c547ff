"""The contracts of a state store: three small ones, and what many tables at once need.

A store of one's own implements `SchemaStore`, `StateStore` and `TableLifecycleStore`. A store that
also implements the contracts of `etl_dagster.model.coordination` lets the two workers of a table
live in different processes and lets copies resume; without them, the engine keeps that part in
memory. Making a store object must touch nothing: its first call does. `close`, `knows_pipeline` and
`check` (see `etl_dagster.model.destination.ChecksItself`) are used where a store has them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from etl_dagster.errors import DestinationMetadataApplying
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import (
    Coordination,
    CopyChunk,
    CopyPlan,
    FinishedChunk,
    Lease,
    Notes,
    epoch_by_clock,
)
from etl_dagster.model.schema import SnapshotId, TableId, TableSchema, TableSchemaRetention
from etl_dagster.model.states import TableState

# `Coordination`, `CopyChunk`, `CopyPlan`, `FinishedChunk`, `Lease` and `epoch_by_clock` were here
# before `etl_dagster.model.coordination`; to import them from here is deprecated.
__all__ = [
    "ApplyWorker",
    "Closes",
    "CoordinatingStore",
    "Coordination",
    "CopyChunk",
    "CopyPlan",
    "DestinationStore",
    "DestinationTableMetadata",
    "FinishedChunk",
    "KnowsPipeline",
    "Lease",
    "ManyTables",
    "PipelineStore",
    "SchemaStore",
    "SeesOtherPipelines",
    "SharedStateStore",
    "StateStore",
    "TableLifecycleStore",
    "TableSyncWorker",
    "WorkerType",
    "epoch_by_clock",
]


@dataclass(frozen=True, slots=True)
class ApplyWorker:
    """The one worker that streams all ready tables of a pipeline."""


@dataclass(frozen=True, slots=True)
class TableSyncWorker:
    """The worker that copies one table and catches up with the stream."""

    table_id: TableId


WorkerType: TypeAlias = ApplyWorker | TableSyncWorker


@dataclass(frozen=True, slots=True)
class DestinationTableMetadata:
    """What a table looks like at the destination, and whether it is just being changed."""

    #: The table's name there, as the destination writes it.
    destination_table_id: str
    #: The schema version that the destination table has, or is being given.
    snapshot_id: SnapshotId
    status: Literal["applying", "applied"]
    #: One flag for each column of the schema version: is it replicated?
    replication_mask: tuple[bool, ...]
    #: The version before the change that is under way; None for a new table.
    previous_snapshot_id: SnapshotId | None = None

    def to_applied(self) -> DestinationTableMetadata:
        return replace(self, status="applied", previous_snapshot_id=None)

    def require_applied(self) -> DestinationTableMetadata:
        """The metadata itself.

        Raises:
            DestinationMetadataApplying: a change was begun but not finished.
        """
        if self.status != "applied":
            raise DestinationMetadataApplying(
                f"the change of {self.destination_table_id} to schema version "
                f"{self.snapshot_id} was begun and not finished"
            )
        return self


@runtime_checkable
class SchemaStore(Protocol):
    """Keeps the versions of every table's schema. Safe for several threads."""

    def get_table_schema(self, table_id: TableId, snapshot_id: SnapshotId) -> TableSchema | None:
        """The newest version at or before the snapshot, or None."""
        ...

    def get_table_schemas(self) -> Sequence[TableSchema]:
        """Every version of every table, in any order; no `load_...` has to be called before."""
        ...

    def load_table_schemas(self) -> int:
        """Read all versions from where they are kept into the cache; returns how many."""
        ...

    def store_table_schema(self, schema: TableSchema) -> TableSchema:
        """Keep a version; the same table and snapshot again replaces it. Returns what is kept."""
        ...

    def prune_table_schemas(self, retentions: Mapping[TableId, TableSchemaRetention]) -> int:
        """Remove versions no longer needed; never the one in force. Returns how many."""
        ...


@runtime_checkable
class StateStore(Protocol):
    """Keeps table states, progress and destination metadata. Safe for several threads."""

    def get_table_replication_state(self, table_id: TableId) -> TableState | None: ...

    def get_table_replication_states(self) -> Mapping[TableId, TableState]: ...

    def load_table_replication_states(self) -> int:
        """Read the current states from where they are kept; returns how many."""
        ...

    def update_table_replication_states(
        self, updates: Sequence[tuple[TableId, TableState]]
    ) -> None:
        """Make these the current states, all or none; the ones before are kept as history.

        No reader sees some of them changed and others not. A state equal to the stored one
        is not a change, and not a step in its history.
        """
        ...

    def rollback_table_replication_state(self, table_id: TableId) -> TableState:
        """Go back to the previous durable state (`states.is_durable`), which is returned.

        The current one is removed from the history, with those passed over on the way.

        Raises:
            StateRollbackError: there is no such state.
        """
        ...

    def get_replication_progress(self, worker: WorkerType) -> Lsn | None: ...

    def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
        """Move the worker's progress forward and return what is now stored.

        A smaller LSN changes nothing.
        """
        ...

    def delete_replication_progress(self, worker: WorkerType) -> None: ...

    def get_destination_table_metadata(
        self, table_id: TableId
    ) -> DestinationTableMetadata | None: ...

    def get_applied_destination_table_metadata(
        self, table_id: TableId
    ) -> DestinationTableMetadata | None:
        """The metadata, or None when there is none.

        Raises:
            DestinationMetadataApplying: a change was begun and not finished.
        """
        ...

    def load_destination_tables_metadata(self) -> int: ...

    def store_destination_table_metadata(
        self, table_id: TableId, metadata: DestinationTableMetadata
    ) -> None:
        """Keep the metadata in place of what was there.

        For a store without `Coordination`, the engine keeps notes of its own under table ID 0,
        which no table has; their `destination_table_id` is a long text.
        """
        ...


@runtime_checkable
class TableLifecycleStore(Protocol):
    """Operations over everything that is kept of a table; each is atomic."""

    def clear_table_copy_state(self, table_id: TableId) -> None:
        """Before a copy: remove schemas, destination metadata and sync progress; keep the state."""
        ...

    def delete_table_pipeline_state(self, table_id: TableId) -> None:
        """The table left the publication: remove everything kept of it."""
        ...


class SharedStateStore(StateStore, TableLifecycleStore, Protocol):
    """What workers share."""


class DestinationStore(SchemaStore, StateStore, Protocol):
    """What a destination may see."""


@runtime_checkable
class PipelineStore(SchemaStore, StateStore, TableLifecycleStore, Protocol):
    """All that a pipeline needs of a store."""


# -- optional: what commands use of a store that has it ------------------------------------------


@runtime_checkable
class KnowsPipeline(Protocol):
    """A store that can be read without being created; `status` and `reset` ask it first."""

    def knows_pipeline(self) -> bool:
        """Whether the pipeline ever ran on this store; creates nothing."""
        ...


@runtime_checkable
class RemovesPipeline(Protocol):
    """A store that can forget a pipeline for good; used by `etl-dagster remove`."""

    def remove_pipeline(self) -> None:
        """Delete all that is kept of the pipeline; idempotent. Afterwards it is only closed."""
        ...


@runtime_checkable
class SeesOtherPipelines(Protocol):
    """A store that keeps several pipelines; the shards of a pipeline need it."""

    def states_of(self, pipeline: str) -> Mapping[TableId, TableState]:
        """The states that another pipeline's tables have now; none if it never ran."""
        ...


@runtime_checkable
class Closes(Protocol):
    """A store that keeps something open, such as connections."""

    def close(self) -> None:
        """Close it; a later call opens it again. Leases are held until they are released."""
        ...


# -- several processes -------------------------------------------------------------------------


@runtime_checkable
class ManyTables(Protocol):
    """What a coordinating store may add, so that a thousand tables don't need a thousand questions.

    Each method does for many tables what the method with the similar name does for one. Only
    `finished_chunks` is different: with it, a copy of a thousand chunks need not read all of them
    again for each chunk. A store without these methods is asked table by table.
    """

    def transition_table_states(
        self, changes: Sequence[tuple[TableId, TableState, TableState]]
    ) -> Collection[TableId]:
        """Change each table's state if it is still the expected one: (table, expected, new).

        Returns the tables that were changed; those whose state differs don't hold up the others.
        """
        ...

    def clear_table_copy_states(self, table_ids: Collection[TableId]) -> None: ...

    def store_table_schemas(self, schemas: Sequence[TableSchema]) -> None: ...

    def store_destination_tables_metadata(
        self, metadata: Mapping[TableId, DestinationTableMetadata]
    ) -> None: ...

    def get_copy_plans(self, table_ids: Collection[TableId]) -> Mapping[TableId, CopyPlan]:
        """The plans of those tables that have one."""
        ...

    def store_copy_plans(self, plans: Mapping[TableId, CopyPlan]) -> None: ...

    def finish_chunks(self, chunks: Sequence[tuple[TableId, str, FinishedChunk]]) -> None:
        """Record chunks as durable: (table, copy, chunk)."""
        ...

    def finished_chunks(
        self, table_id: TableId, copy_id: str, indexes: Collection[int]
    ) -> Mapping[int, FinishedChunk] | None:
        """Those of the chunks that are finished; None if the table has no plan, or one of another
        copy."""
        ...

    def acquire_leases(self, names: Collection[str]) -> Mapping[str, Lease]:
        """Take each lease that is free; the names of the others are missing. All of them may be
        lost together."""
        ...

    def leased(self, names: Collection[str]) -> Collection[str]:
        """The names whose lease some process holds now."""
        ...


@runtime_checkable
class CoordinatingStore(PipelineStore, Coordination, Notes, Protocol):
    """A store for several processes, such as `PostgresStore`."""
