"""What a store adds so that the workers of one pipeline can work together, also in many processes.

Each contract is about one thing. `Coordination` is all that a store for several processes needs,
except for `Notes`, which stores for earlier versions don't have.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import TableState

# -- states ----------------------------------------------------------------------------------------


@runtime_checkable
class SharedStates(Protocol):
    """Changes of states that several processes may want to make at once."""

    def transition_table_state(
        self, table_id: TableId, expected: TableState, new: TableState
    ) -> bool:
        """Change the state if it is still the expected one, and return whether it was."""
        ...

    def request_copy(self, table_id: TableId) -> None:
        """Ask for the table to be copied (again) from the beginning: state back to `Init`."""
        ...

    def reset_for_resync(self) -> int:
        """Every table back to `Init`, without apply progress; schemas and metadata stay, so that
        the old destination tables can be found. Returns how many tables."""
        ...


# -- leases ----------------------------------------------------------------------------------------


@runtime_checkable
class Lease(Protocol):
    """Proof that no other process does this work; it ends with the process that holds it."""

    @property
    def is_held(self) -> bool:
        """False once the connection behind the lease is lost."""
        ...

    def release(self) -> None:
        """Let others take it; if it was released before, this changes nothing."""
        ...


@runtime_checkable
class Leases(Protocol):
    """Which process does what now, and which one is the replicator."""

    def acquire_lease(self, name: str) -> Lease | None:
        """Take a lease by name, such as ``apply`` or ``table:16384``; None if another holds it."""
        ...

    def is_leased(self, name: str) -> bool:
        """Whether any process holds the lease now."""
        ...

    def take_epoch(self) -> int:
        """Begin a new epoch, larger than all before: the caller is the replicator from now on.

        It must also be larger than those of a store that was lost, since the destination remembers
        them. So it is at least `epoch_by_clock`.
        """
        ...

    def current_epoch(self) -> int:
        """The newest epoch; 0 before the first."""
        ...


def epoch_by_clock() -> int:
    """Milliseconds since 1970-01-01 UTC: past every epoch of any store that was in use before."""
    return time.time_ns() // 1_000_000


# -- copies ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CopyChunk:
    """A part of a table that is copied in one short transaction.

    `first_block` and `end_block` bound it by heap block, the end excluded and None for "to the
    end, also of what is added later"; `relation_id` is the leaf partition or the table itself.
    """

    index: int
    relation_id: int
    first_block: int = 0
    end_block: int | None = None
    #: From the planner's statistics; for progress bars only.
    estimated_rows: int = 0
    #: pg_class.relfilenode when the plan was made. Another one means that the rows were written
    #: again (VACUUM FULL, CLUSTER, some ALTER TABLE) and are in other blocks.
    file_node: int = 0


@dataclass(frozen=True, slots=True)
class FinishedChunk:
    """What was written of a finished chunk. `read_lsn` is at or past its snapshot."""

    index: int
    row_count: int
    byte_count: int
    read_lsn: Lsn
    duration_s: float = 0.0


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class CopyPlan:
    """A copy under way: its chunks, and which of them are durable at the destination."""

    copy_id: str
    chunks: tuple[CopyChunk, ...]
    finished: Mapping[int, FinishedChunk]
    #: Consistent point of the table sync slot: the changes from here on are replayed.
    slot_lsn: Lsn
    #: By the source's clock, before the slot was made: no change that is replayed was committed
    #: earlier.
    started_at: datetime

    @property
    def started_at_us(self) -> int:
        """Microseconds since 1970-01-01 UTC."""
        return (self.started_at - _EPOCH) // timedelta(microseconds=1)

    @property
    def remaining(self) -> tuple[CopyChunk, ...]:
        return tuple(chunk for chunk in self.chunks if chunk.index not in self.finished)


@runtime_checkable
class CopyPlans(Protocol):
    """The plans of copies, and which of their chunks are durable."""

    def get_copy_plan(self, table_id: TableId) -> CopyPlan | None: ...

    def store_copy_plan(self, table_id: TableId, plan: CopyPlan) -> None:
        """Keep a new plan in place of the table's earlier one, with nothing finished."""
        ...

    def finish_chunk(self, table_id: TableId, copy_id: str, chunk: FinishedChunk) -> None:
        """Record a chunk as durable.

        A second time, for another copy, or for a chunk that isn't in the plan, it changes nothing.
        """
        ...


# -- noticing each other ---------------------------------------------------------------------------


@runtime_checkable
class WakeUps(Protocol):
    """Waiting for changes by other workers."""

    def wait_for_change(self, timeout_s: float) -> None:
        """Return when a state, plan or request of the pipeline may have changed, or at the timeout.

        A change since this thread's last wait ends the next one at once, so a worker that reads and
        decides in between misses nothing.
        """
        ...

    def wake(self) -> None:
        """Have all `wait_for_change` of this store object return now (to stop a worker)."""
        ...


@runtime_checkable
class Board(Protocol):
    """What processes show each other. Statuses may be lost: they are only for display."""

    def publish_status(self, key: str, payload: Mapping[str, Any]) -> None:
        """Show JSON to other processes, such as the lag under ``apply``; the last one is kept."""
        ...

    def get_status(self, key: str) -> Mapping[str, Any] | None: ...


# -- remembering -----------------------------------------------------------------------------------


@runtime_checkable
class Notes(Protocol):
    """What correctness depends on besides states and plans, such as the last known publication.

    JSON by key. Once `put_note` has returned, the note is kept, whatever is killed then. A note is
    not written together with anything else: the engine writes it after the work that it is about,
    and if it was killed in between, it comes to the same conclusion again.
    """

    def get_note(self, key: str) -> Mapping[str, Any] | None:
        """The note, or None.

        Stores without notes kept them as statuses. So a status under the key is the last note,
        until `put_note`; apart from that, notes and statuses have different keys.
        """
        ...

    def put_note(self, key: str, note: Mapping[str, Any]) -> None:
        """Replace the note, and a status under the key."""
        ...


@runtime_checkable
class Coordination(SharedStates, Leases, CopyPlans, WakeUps, Board, Protocol):
    """What several processes of one pipeline need of a store; it should have `Notes`, too.

    A store without them keeps notes as statuses, which must be durable then. That is deprecated.
    """
