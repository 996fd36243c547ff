"""Counts what a pipeline does, for its status."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import EstimatedCount
from etl_dagster.model.events import DELETE, INSERT, UPDATE, EventBatch, TableChanges, TruncateEvent
from etl_dagster.model.schema import TableId
from etl_dagster.runtime.tables.odd_counts import brought

#: The rate is taken over this many seconds.
_RATE_WINDOW_S = 10.0
#: A copy's over this many: rows may become known a chunk at a time.
_COPY_WINDOW_S = 30.0


@dataclass
class TableCounts:
    """What was made durable of one table since the process started."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    truncates: int = 0
    replaced: Counter[str] = field(default_factory=Counter)
    #: By column, what the types can't hold, as the destination counts it; None: it has not.
    odd_values: Mapping[str, int] | None = None
    #: The same where the destination doesn't count it: what came with the table's last copy, up to
    #: its hand-over (None: that is not known), and what the stream brought since.
    odd_copied: Mapping[str, int] | None = None
    odd_streamed: Counter[str] = field(default_factory=Counter)
    last_odd_lsn: Lsn | None = None
    #: Rows that the destination keeps apart from the table.
    quarantined: int = 0
    last_commit_lsn: Lsn | None = None
    #: ISO 8601, UTC.
    last_commit_time: str | None = None
    #: Rows at the destination, and whether they changed since they were counted.
    row_count: int | None = None
    is_row_count_estimated: bool = False
    is_row_count_stale: bool = True
    #: Another number after each change of the rest.
    revision: int = 0


@dataclass
class Metrics:
    """Safe for several threads."""

    tables: dict[TableId, TableCounts] = field(default_factory=dict)
    rows: int = 0
    batches: int = 0
    #: Another number after each change of a table's counts.
    revision: int = 0
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def table(self, table_id: TableId) -> TableCounts:
        found = self.tables.get(table_id)
        if found is not None:
            return found
        with self._lock:
            return self.tables.setdefault(table_id, TableCounts())

    def recall(self, table_id: TableId, lsn: Lsn, time: str | None) -> None:
        """The table's last change, as an earlier process reported it."""
        counts = self.table(table_id)
        counts.last_commit_lsn, counts.last_commit_time = lsn, time
        with self._lock:
            counts.revision += 1
            self.revision += 1

    def counted(
        self,
        table_id: TableId,
        rows: int | None,
        odd_values: Mapping[str, int] | None = None,
        quarantined: int = 0,
    ) -> None:
        """So many rows of the table are at the destination; None where it doesn't say.

        Args:
            odd_values: what the types can't hold, by column; None where it doesn't count them.
            quarantined: rows that are kept apart from the table, besides `rows`.
        """
        counts = self.table(table_id)
        with self._lock:
            counts.row_count = None if rows is None else int(rows)
            counts.is_row_count_estimated = isinstance(rows, EstimatedCount)
            counts.odd_values = odd_values
            counts.quarantined = quarantined
            counts.revision += 1
            self.revision += 1

    def copied(self, table_id: TableId, odd: Mapping[str, int], handed_over: Lsn) -> None:
        """So many values that the types can't hold came with the table's last copy.

        Args:
            handed_over: what the stream brought before is part of the copy before.
        """
        counts = self.table(table_id)
        with self._lock:
            counts.odd_copied = dict(odd)
            if counts.last_odd_lsn is not None and counts.last_odd_lsn < handed_over:
                counts.odd_streamed.clear()
            counts.revision += 1
            self.revision += 1

    def streamed_before(self, table_id: TableId, odd: Mapping[str, int]) -> None:
        """So many more came with the stream, as an earlier process counted them."""
        if not odd:
            return
        counts = self.table(table_id)
        with self._lock:
            counts.odd_streamed.update(odd)
            counts.revision += 1
            self.revision += 1

    def copied_again(self, table_id: TableId) -> None:
        """Another copy of the table has begun: what was counted belongs to the one before."""
        counts = self.table(table_id)
        if counts.odd_copied is None:
            return
        with self._lock:
            counts.odd_copied = None
            counts.odd_streamed.clear()
            counts.revision += 1
            self.revision += 1

    def add(self, events: EventBatch) -> None:
        """Count a batch that is durable."""
        with self._lock:
            self.batches += 1
            self.rows += events.row_count
            self._recent.append((time.monotonic(), events.row_count))
            for table_id, steps in events.tables.items():
                counts = self.tables.setdefault(table_id, TableCounts())
                for step in steps:
                    if isinstance(step, TableChanges):
                        self._add_changes(counts, step)
                    elif isinstance(step, TruncateEvent):
                        counts.truncates += 1
                        counts.is_row_count_stale = True
                        counts.last_commit_lsn = step.position.commit_lsn
                        counts.last_commit_time = _iso(step.commit_time_us)
                counts.revision += 1
            self.revision += 1

    def _add_changes(self, counts: TableCounts, changes: TableChanges) -> None:
        if not len(changes):
            return
        by_op = np.bincount(changes.ops, minlength=256)
        counts.inserted += int(by_op[INSERT])
        counts.updated += int(by_op[UPDATE])
        counts.deleted += int(by_op[DELETE])
        counts.replaced.update({name: len(odd) for name, odd in changes.odd.items()})
        if changes.odd and (odd := brought(changes)):
            counts.odd_streamed.update(odd)
            counts.last_odd_lsn = changes.last_position.commit_lsn
        counts.last_commit_lsn = changes.last_position.commit_lsn
        counts.last_commit_time = _iso(int(changes.commit_times_us[-1]))
        counts.is_row_count_stale = True

    @property
    def rows_per_second(self) -> float:
        with self._lock:
            now = time.monotonic()
            while self._recent and now - self._recent[0][0] > _RATE_WINDOW_S:
                self._recent.popleft()
            return sum(rows for _, rows in self._recent) / _RATE_WINDOW_S


def _iso(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat()


class CopyMeter:
    """Rows of copies under way, also of chunks that are not finished; safe for several threads.

    Args:
        clock: seconds, ascending.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: Rows read so far, by table and index of the chunk.
        self._read: dict[TableId, dict[int, int]] = {}
        #: When a table's copy had how many rows, oldest first.
        self._samples: dict[TableId, deque[tuple[float, int]]] = {}
        self._lock = threading.Lock()

    def begin(self, table_id: TableId) -> None:
        """A copy of the table begins, or is resumed."""
        with self._lock:
            self._read.pop(table_id, None)
            self._samples.pop(table_id, None)

    def read(self, table_id: TableId, chunk_index: int, rows: int) -> None:
        """So many rows of the chunk were read by now; 0 when it is read again."""
        with self._lock:
            self._read.setdefault(table_id, {})[chunk_index] = rows

    def unfinished(self, table_id: TableId, finished: Collection[int]) -> int:
        """Rows read of the table's chunks that are not among the finished ones."""
        with self._lock:
            chunks = self._read.get(table_id, {})
            return sum(rows for index, rows in chunks.items() if index not in finished)

    def sample(self, table_id: TableId, rows: int) -> None:
        """The table's copy has this many rows now; fewer than before is another copy."""
        with self._lock:
            now, samples = self._clock(), self._samples.setdefault(table_id, deque())
            if samples and rows < samples[-1][1]:
                samples.clear()
            samples.append((now, rows))
            while now - samples[0][0] > _COPY_WINDOW_S and len(samples) > 2:
                samples.popleft()

    def rows_per_second(self, table_id: TableId) -> float | None:
        """The copy's speed over the last half minute; None until rows have arrived."""
        with self._lock:
            samples = self._samples.get(table_id)
            if not samples or samples[-1][1] == samples[0][1]:
                return None
            (began, first), (ended, last) = samples[0], samples[-1]
            return (last - first) / (ended - began)

    def keep(self, table_ids: Collection[TableId]) -> None:
        """Forget all tables but these."""
        with self._lock:
            for known in (self._read, self._samples):
                for table_id in known.keys() - set(table_ids):
                    del known[table_id]
