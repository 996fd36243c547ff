"""Counts what a pipeline does, for its status."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from etl_dagster.lsn import Lsn
from etl_dagster.model.events import DELETE, INSERT, UPDATE, EventBatch, TableChanges, TruncateEvent
from etl_dagster.model.schema import TableId

#: The rate is taken over this many seconds.
_RATE_WINDOW_S = 10.0


@dataclass
class TableCounts:
    """What was made durable of one table since the process started."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    truncates: int = 0
    replaced: int = 0
    last_commit_lsn: Lsn | None = None
    last_commit_time_us: int | None = None
    #: Rows at the destination, and whether they changed since they were counted.
    row_count: int | None = None
    is_row_count_stale: bool = True

    @property
    def last_commit_time(self) -> str | None:
        if self.last_commit_time_us is None:
            return None
        return datetime.fromtimestamp(self.last_commit_time_us / 1e6, UTC).isoformat()


@dataclass
class Metrics:
    """Safe for several threads."""

    tables: dict[TableId, TableCounts] = field(default_factory=dict)
    rows: int = 0
    batches: int = 0
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def table(self, table_id: TableId) -> TableCounts:
        with self._lock:
            return self.tables.setdefault(table_id, TableCounts())

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
                        counts.last_commit_time_us = step.commit_time_us

    def _add_changes(self, counts: TableCounts, changes: TableChanges) -> None:
        if not len(changes):
            return
        by_op = np.bincount(changes.ops, minlength=256)
        counts.inserted += int(by_op[INSERT])
        counts.updated += int(by_op[UPDATE])
        counts.deleted += int(by_op[DELETE])
        counts.replaced += sum(map(len, changes.odd.values()))
        counts.last_commit_lsn = changes.last_position.commit_lsn
        counts.last_commit_time_us = int(changes.commit_times_us[-1])
        counts.is_row_count_stale = True

    @property
    def rows_per_second(self) -> float:
        with self._lock:
            now = time.monotonic()
            while self._recent and now - self._recent[0][0] > _RATE_WINDOW_S:
                self._recent.popleft()
            return sum(rows for _, rows in self._recent) / _RATE_WINDOW_S
