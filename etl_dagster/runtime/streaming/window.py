"""The writes of one stream that have begun and aren't durable yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import cached_property

from etl_dagster.errors import Superseded
from etl_dagster.model.events import EventBatch, RelationEvent


@dataclass(frozen=True, eq=False)
class BegunWrite:
    """A batch that the destination was given."""

    events: EventBatch
    #: The changes of schema that are recorded as begun.
    changes: Sequence[RelationEvent] = ()
    #: Completes once the batch is durable; None where it is written only when it is the oldest.
    begun: Future[None] | None = None

    @cached_property
    def size(self) -> int:
        """Memory of its rows, in bytes."""
        return self.events.row_bytes

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens by itself: it is durable, has failed, or waits for us."""
        return self.begun is None or self.begun.done()

    @property
    def failure(self) -> BaseException | None:
        if self.begun is None or not self.begun.done() or self.begun.cancelled():
            return None
        return self.begun.exception()


class Window:
    """Some writes at a time, oldest first; only the oldest may leave.

    No two of them have a table in common. So a table's changes arrive in order however long each
    write takes, and where one fails, nothing of its tables that comes later is there already: a
    destination would take the changes between for old ones when they come again.

    Args:
        max_writes: so many at a time.
        max_bytes: memory of the rows of all of them; one is begun however large it is.
    """

    def __init__(self, max_writes: int, max_bytes: int) -> None:
        self._max_writes = max_writes
        self._max_bytes = max_bytes
        self._writes: deque[BegunWrite] = deque()

    def __bool__(self) -> bool:
        return bool(self._writes)

    @property
    def is_full(self) -> bool:
        return len(self._writes) >= self._max_writes

    @property
    def oldest(self) -> BegunWrite | None:
        return self._writes[0] if self._writes else None

    def has_room_for(self, events: EventBatch) -> bool:
        """Whether the batch can be written alongside what is under way."""
        if not self._writes:
            return True
        if self.is_full or any(write.failure is not None for write in self._writes):
            return False
        if sum(write.size for write in self._writes) + events.row_bytes > self._max_bytes:
            return False
        return all(write.events.tables.keys().isdisjoint(events.tables) for write in self._writes)

    def add(self, write: BegunWrite) -> None:
        self._writes.append(write)

    def remove_oldest(self) -> None:
        self._writes.popleft()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the oldest write is over; False when the time was over first.

        Raises:
            Superseded: what any of them failed with; the rest needn't be waited for.
        """
        for write in self._writes:
            if isinstance(failure := write.failure, Superseded):
                raise failure
        if not self._writes or self._writes[0].is_over:
            return True
        pending = [w.begun for w in self._writes if w.begun is not None and not w.begun.done()]
        wait(pending, timeout_s, FIRST_COMPLETED)
        return False

    def wait_over(self, timeout_s: float) -> bool:
        """Wait until every write is over, whatever came of it; False when the time was over."""
        return not wait([w.begun for w in self._writes if w.begun is not None], timeout_s).not_done
