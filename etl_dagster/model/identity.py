"""What distinguishes one source or destination from another, and how far each of them got.

Source, state store and destination of a pipeline can be exchanged one by one: a file is removed or
restored from a backup, a setting is changed, a server is restored to an earlier point. Then they no
longer fit together. So the destination keeps a mark of its own, the store remembers the newest mark
that it knows of, and both are compared (`etl_dagster.runtime.checking.belonging`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.events import NO_TRANSACTION, EventBatch, TransactionMark
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import WorkerType


@dataclass(frozen=True, slots=True)
class DestinationMark:
    """What a destination keeps of itself and of one pipeline, committed with the data."""

    #: Chosen at random when the destination was created; copies of it have the same. Empty if it
    #: was created before destinations had one.
    identity: str
    #: Counts the pipeline's committed batches, and never decreases. An older copy of the
    #: destination has a smaller one.
    revision: int = 0
    #: Newest `EventBatch.epoch` that was written. Epochs come from the store, so an epoch that the
    #: store doesn't know comes from another store.
    epoch: int = 0
    #: Newest `EventBatch.commit_end_lsn` that was written in this epoch.
    durable_lsn: Lsn = LSN_ZERO
    #: Newest `EventBatch.stored_lsn` of this epoch: the store had this progress once.
    stored_lsn: Lsn = LSN_ZERO
    #: Newest `EventBatch.last_begin` of this epoch. If the source sends that position again, it
    #: must be the same transaction.
    last_begin: TransactionMark = NO_TRANSACTION
    #: The other pipelines that have written to the destination, if it can hold the tables of one
    #: pipeline only: it knows tables by their OIDs, and two databases may use the same ones.
    others: tuple[str, ...] = ()

    def after(self, events: EventBatch) -> DestinationMark:
        """The mark once the batch is written; without an epoch, only the revision changes."""
        if not events.epoch:
            return replace(self, revision=self.revision + 1)
        # A new epoch begins with its own positions: after a reset, the source may be another one.
        is_new = events.epoch > self.epoch
        before = DestinationMark(self.identity) if is_new else self
        return DestinationMark(
            self.identity,
            self.revision + 1,
            max(self.epoch, events.epoch),
            max(before.durable_lsn, events.commit_end_lsn or LSN_ZERO),
            max(before.stored_lsn, events.stored_lsn),
            max(before.last_begin, events.last_begin or before.last_begin),
        )


@dataclass(frozen=True, slots=True)
class HeldCopy:
    """The current copy of a table at the destination."""

    copy_id: str
    #: Whether its end was written (`TableRows` without a chunk); it is the table then.
    is_complete: bool
    #: While it is not complete: the indexes of its chunks that are there.
    chunks: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class KnownDestination:
    """What a store remembers of the destination that its pipeline has written."""

    type: str
    #: For people; also compared if the destination has no mark.
    place: str
    #: As in `DestinationMark`; empty for a destination without a mark.
    identity: str = ""
    revision: int = 0
    epoch: int = 0

    def at(self, mark: DestinationMark) -> KnownDestination:
        """The same with another mark."""
        return replace(self, identity=mark.identity, revision=mark.revision, epoch=mark.epoch)


@dataclass(frozen=True, slots=True)
class KnownSource:
    """What a store remembers of the source whose changes its pipeline has applied."""

    #: Of the cluster, chosen when it was created; empty if the server doesn't report it.
    system_id: str
    #: The cluster's timeline: a restore to a point in time, or a promotion, begins a new one.
    timeline: int
    #: OID of the database.
    database_id: int
    #: Its name, for people.
    database: str


@runtime_checkable
class KeepsMark(Protocol):
    """A destination that can be distinguished from others, and from older copies of itself."""

    def read_mark(self, pipeline: str) -> DestinationMark | None:
        """Its mark of the pipeline, or None if there is none yet; creates and changes nothing.

        Also called before `startup`, and by `doctor`.

        Raises:
            DestinationError: it can't be read.
        """
        ...

    def held_copies(self, table_ids: Collection[TableId]) -> Mapping[TableId, HeldCopy]:
        """The current copies of these tables; those that have none are missing.

        An abandoned copy is no longer current, see `Destination.drop_table_for_copy`.
        """
        ...

    def written_revision(self, pipeline: str) -> int:
        """The newest revision that this object has committed, 0 before the first; from memory."""
        ...


@runtime_checkable
class RemembersDestination(Protocol):
    """A store that knows which destination its pipeline has written, and how far."""

    def get_known_destination(self) -> KnownDestination | None: ...

    def store_known_destination(self, known: KnownDestination | None) -> None:
        """Remember this destination instead of the last one; None forgets it."""
        ...

    def store_delivery(self, worker: WorkerType, flush_lsn: Lsn, revision: int) -> Lsn:
        """As `StateStore.upsert_replication_progress`, together with the destination's revision.

        Both only move forward. If no destination is known, the revision is not kept.
        """
        ...

    def get_copy_ids(self) -> Mapping[TableId, str]:
        """The newest copy of each table (`CopyPlan.copy_id`), finished or not."""
        ...


@runtime_checkable
class RemembersSource(Protocol):
    """A store that knows which source its pipeline has read."""

    def get_known_source(self) -> KnownSource | None: ...

    def store_known_source(self, known: KnownSource) -> None: ...
