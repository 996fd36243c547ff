"""Where the workers of one pipeline meet, in one process or in many: what a store adds for that.

Each contract is about one thing; `Coordination` is all that are asked of a store for several
processes, but for `Notes`, which a store of an earlier version doesn't have.
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
    """Changes of states that several processes may want at once."""

    def transition_table_state(
        self, table_id: TableId, expected: TableState, new: TableState
    ) -> bool:
        """Change the state if it still is the expected one; whether it was."""
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
    """Proof that no other process does this work; ends with the process that holds it."""

    @property
    def is_held(self) -> bool:
        """False once the connection behind the lease is lost."""
        ...

    def release(self) -> None:
        """Let others have it; changes nothing when it was released before."""
        ...


@runtime_checkable
class Leases(Protocol):
    """Who does what now, and who is the replicator."""

    def acquire_lease(self, name: str) -> Lease | None:
        """Take a lease by name, such as ``apply`` or ``table:16384``; None when another has it."""
        ...

    def is_leased(self, name: str) -> bool:
        """Whether any process holds the lease now."""
        ...

    def take_epoch(self) -> int:
        """Begin a new epoch, larger than all before: the caller is the replicator from now on.

        Larger also than those of a store that was lost: the destination still remembers them. So
        it is at least `epoch_by_clock`.
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


# -- hearing of each other -------------------------------------------------------------------------


@runtime_checkable
class WakeUps(Protocol):
    """Waiting for what other workers change."""

    def wait_for_change(self, timeout_s: float) -> None:
        """Return when some state, plan or request of the pipeline may have changed, or in time.

        What changed since this thread's last wait ends the next one at once: nothing is missed by
        a worker that looked and decided in between.
        """
        ...

    def wake(self) -> None:
        """Have all `wait_for_change` of this store object return now (to stop a worker)."""
        ...


@runtime_checkable
class Board(Protocol):
    """What processes show each other. A status may be lost, and nothing but a display suffers."""

    def publish_status(self, key: str, payload: Mapping[str, Any]) -> None:
        """Show JSON to other processes, such as the lag under ``apply``; the last one stays."""
        ...

    def get_status(self, key: str) -> Mapping[str, Any] | None: ...


# -- remembering -----------------------------------------------------------------------------------


@runtime_checkable
class Notes(Protocol):
    """What correctness rests on besides states and plans, such as the publication as last seen.

    JSON by key. A note is kept once `put_note` returns, whatever is killed then. It is written on
    its own: the engine writes a note after what it speaks of is done, and comes to the same
    conclusion again where it was killed in between.
    """

    def get_note(self, key: str) -> Mapping[str, Any] | None:
        """The note, or None.

        Stores without notes kept them as statuses. So a status under the key is what was noted
        last, until `put_note`; keys of notes and of statuses differ otherwise.
        """
        ...

    def put_note(self, key: str, note: Mapping[str, Any]) -> None:
        """Keep the note in place of the one before, and of a status under the key."""
        ...


@runtime_checkable
class Coordination(SharedStates, Leases, CopyPlans, WakeUps, Board, Protocol):
    """Where the workers of one pipeline meet; a store has `Notes` as well.

    One without them is asked to keep notes as statuses, which must be durable then. That is
    deprecated.
    """
