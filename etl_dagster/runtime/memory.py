"""One budget of memory for all that a process reads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from etl_dagster.config import PipelineConfig
from etl_dagster.runtime.clock import SYSTEM_CLOCK, Clock
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.machine_memory import give_back, memory_limit, resident_bytes
from etl_dagster.words import human_bytes

_log = logging.getLogger(__name__)

#: The default, of what the container or the machine has: the rest is for what isn't ours.
_SHARE: Final = 0.75
#: Where not even that is known.
_UNKNOWN_LIMIT: Final = 1024**3
#: Reading pauses above this part of the budget, and continues below the other: what was read takes
#: more once it is decoded.
_PAUSE_AT: Final = 0.8
_RESUME_AT: Final = 0.7
#: A batch is in memory some times over: as received, decoded, collapsed, and at the destination;
#: and more than one is under way.
_BATCHES: Final = 32
#: The same for a chunk that is copied, of which the driver's batch and the destination's share are
#: in memory. Half of the budget is for these.
_CHUNK_BYTES: Final = 64 * 1024**2
#: How long a measured value holds, how often the allocators are asked to give back, and how often
#: the same is logged, seconds.
_FRESH_S: Final = 0.01
_GIVE_BACK_S: Final = 1.0
_LOG_S: Final = 60.0
#: A reader that doesn't ask any more for this long has lost its place, seconds.
_PLACE_S: Final = 0.5
#: How often one that has to wait asks again, seconds.
PAUSE_S: Final = 0.02


class MemoryBudget:
    """Decides who may read, for all streams and copies of a process; for any thread.

    What there may be (capacity) bounds batches and chunks, once and for all; and a chunk begins
    only where there is room for it and for what the chunks under way haven't taken yet. What there
    is (use) only pauses reading: from a part of the budget on, a reader waits until what was read
    is written, by itself and by the others. Memory that is free again may still count, since
    allocators and databases keep some. So where nothing is left to be written, one reader continues
    after the other, each with one piece: that is slow, but it never stops.

    Args:
        max_bytes: the budget.
        measure: how much the process has now, bytes; None where that can't be told: then nothing
            pauses.
        relieve: has allocators give back what they keep.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        measure: Callable[[], int | None] = resident_bytes,
        relieve: Callable[[], None] = give_back,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.max_bytes = max_bytes
        self._measure = measure
        self._relieve = relieve
        self._clock = clock
        self._lock = threading.Lock()
        self._readers: list[BudgetedReader] = []
        #: Those that were refused, in this order, and when each asked last.
        self._waiting: dict[BudgetedReader, float] = {}
        self._is_paused = False
        self._used = 0
        self._measured_at = self._relieved_at = self._logged_at = float("-inf")
        #: Chunks that are being copied, in the order in which they began.
        self._chunks: list[BudgetedReader] = []
        self._is_alone = False

    @classmethod
    def of(cls, config: PipelineConfig) -> MemoryBudget:
        """The budget of a process that runs this pipeline."""
        given = config.memory.max_bytes
        return cls(int((memory_limit() or _UNKNOWN_LIMIT) * _SHARE) if given is None else given)

    # -- capacity ----------------------------------------------------------------------------------

    def batch_bytes(self, wanted: int) -> int:
        """How large a batch may become, of those that want so much."""
        return max(min(wanted, self.max_bytes // _BATCHES), 1)

    @property
    def most_chunks(self) -> int:
        """How many chunks of tables may be copied at a time."""
        return max(self.max_bytes // 2 // _CHUNK_BYTES, 1)

    # -- use ---------------------------------------------------------------------------------------

    def reader(self, is_busy: Callable[[], bool]) -> BudgetedReader:
        """A new reader.

        Args:
            is_busy: whether it has read what isn't written yet; that becomes false by itself, even
                if nothing is read meanwhile.
        """
        made = BudgetedReader(self, is_busy)
        with self._lock:
            self._readers.append(made)
        return made

    @contextmanager
    def chunk(self, stop: threading.Event) -> Iterator[None]:
        """While a chunk of a table is copied; waits for its turn.

        Raises:
            Stopped: told to stop.
        """
        reader = self.reader(lambda: False)
        try:
            while not self._begin_chunk(reader):
                if self._clock.wait(stop, PAUSE_S):
                    raise Stopped
            yield
        finally:
            with self._lock:
                if reader.is_chunk:
                    self._chunks.remove(reader)
            reader.close()

    def _begin_chunk(self, reader: BudgetedReader) -> bool:
        with self._lock:
            if not self._has_room() or not self._may_read(reader):
                return False
            reader.is_chunk, reader.used_before = True, self._used
            self._chunks.append(reader)
            return True

    def _has_room(self) -> bool:
        """Whether one chunk more may begin. With the lock."""
        if not self._chunks:
            return True
        self._look()
        taken = max(self._used - self._chunks[0].used_before, 0)
        coming = max(len(self._chunks) * _CHUNK_BYTES - taken, 0)
        return (
            len(self._chunks) < self.most_chunks
            and self._used + coming + _CHUNK_BYTES <= self.max_bytes * _PAUSE_AT
        )

    @property
    def note(self) -> str | None:
        """Why less is read than could be; None while memory holds nothing back."""
        with self._lock:
            self._look()
            if not self._is_paused:
                return None
            how = (
                "one batch or chunk at a time is read"
                if self._is_alone
                else "reading pauses until what was read is written"
            )
            return f"{how}: {self._why()}"

    def _why(self) -> str:
        return (
            f"the process has {human_bytes(self._used)} of memory, of memory.max_bytes "
            f"({human_bytes(self.max_bytes)})"
        )

    def _may_read(self, reader: BudgetedReader, *, alone: bool = True) -> bool:
        """With the lock."""
        self._look()
        now = self._clock.now_s()
        if not self._is_paused:
            self._waiting.pop(reader, None)
            return True
        if not alone:
            return False
        self._waiting[reader] = now
        if any(each.is_chunk or each.is_busy() for each in self._readers):
            self._is_alone = False
            return False
        first = next(each for each, at in self._waiting.items() if now - at < _PLACE_S)
        if first is not reader:
            return False
        del self._waiting[reader]
        self._is_alone = True
        self._log(
            "%s and nothing is left to be written: one batch or chunk at a time is read",
            self._why(),
        )
        return True

    def _look(self) -> None:
        now = self._clock.now_s()
        if now - self._measured_at < _FRESH_S:
            return
        self._measured_at = now
        used = self._measure()
        if used is not None and self._is_over(used) and now - self._relieved_at >= _GIVE_BACK_S:
            self._relieved_at = now
            self._relieve()
            used = self._measure()
        self._used = used or 0
        was_paused, self._is_paused = self._is_paused, self._is_over(self._used)
        if self._is_paused and not was_paused:
            self._log("%s: reading pauses until what was read is written", self._why())
        elif not self._is_paused:
            self._is_alone = False

    def _is_over(self, used: int) -> bool:
        return used >= self.max_bytes * (_RESUME_AT if self._is_paused else _PAUSE_AT)

    def _log(self, text: str, why: str) -> None:
        now = self._clock.now_s()
        if now - self._logged_at >= _LOG_S:
            self._logged_at = now
            _log.warning(text, why)


class BudgetedReader:
    """Something that reads: a stream, or a chunk of a table."""

    def __init__(self, budget: MemoryBudget, is_busy: Callable[[], bool]) -> None:
        self._budget = budget
        self.is_busy = is_busy
        #: Whether it is a chunk, which is busy to its end.
        self.is_chunk = False
        #: What the process had when the chunk began, bytes.
        self.used_before = 0

    def may_read(self, *, alone: bool = True) -> bool:
        """Whether to read now. Where not, write what was read, and ask again after `PAUSE_S`.

        Args:
            alone: whether to continue where memory is short and nothing is left to be
                written.
        """
        with self._budget._lock:
            return self._budget._may_read(self, alone=alone)

    def close(self) -> None:
        """Nothing more is read."""
        with self._budget._lock:
            if self in self._budget._readers:
                self._budget._readers.remove(self)
            self._budget._waiting.pop(self, None)
