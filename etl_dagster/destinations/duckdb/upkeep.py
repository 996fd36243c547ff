"""When DuckDB writes again what it has written: checkpoints, and the merging of row groups.

A checkpoint moves rows from the WAL into row groups of the file, a new one for each table. With it
DuckDB merges row groups that hold few rows, or many that were deleted, into full ones
(``max_vacuum_tasks``), which decompresses and writes all their rows again: with long texts a
gigabyte at a time, and while the stream continues, the same rows several times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import duckdb

from etl_dagster.model.events import EventBatch, TableChanges

#: What was replaced or deleted is written again with its row group, so it is left to gather.
_CHECKPOINT_THRESHOLD: Final = "128MB"
#: Rows that are only added take memory until they get their place, and stay where they are put.
_ADDING_THRESHOLD: Final = "32MB"
#: With this one every transaction ends in a checkpoint, and its rows never go through the WAL.
_ALWAYS: Final = "1KB"
#: How the file is opened.
CONFIG: Final[dict[str, Any]] = {
    "checkpoint_threshold": _CHECKPOINT_THRESHOLD,
    "max_vacuum_tasks": 0,
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """From where on something is worth its cost."""

    #: A full batch with at least so many bytes for each of its tables is worth a row group of its
    #: own where its values are large. Small ones take less room and time together with more of
    #: their kind.
    min_bytes: int = 2 * 1024**2
    min_bytes_per_value: int = 100
    #: A full row group. Where as many rows were deleted or replaced, one may be worth writing
    #: again.
    row_group: int = 122_880
    #: Without that, row groups are merged each so many times that the file is closed.
    closes_before_merge: int = 16
    #: What DuckDB may use while it merges. A row group of texts of 2 kB takes four times as much,
    #: for which there is the temporary folder.
    merge_memory_bytes: int = 64_000_000


BOUNDS = Bounds()


class Upkeep:
    """The settings of one open file; they change with what is written.

    Args:
        memory_bytes: what DuckDB may use at all.
    """

    def __init__(self, memory_bytes: int, bounds: Bounds = BOUNDS) -> None:
        self.bounds = bounds
        self._memory_bytes = memory_bytes
        self._merge_memory_bytes = min(memory_bytes, bounds.merge_memory_bytes)
        self._threshold = _CHECKPOINT_THRESHOLD
        self._is_catching_up = False
        self._is_merging = False
        self._closes = 0
        #: Rows that were deleted or replaced and are still in the file, as far as this process
        #: wrote them.
        self._dead_rows = 0

    @property
    def is_written_at_once(self) -> bool:
        """Whether the last transaction ended in a checkpoint, so that closing has little to do."""
        return self._threshold == _ALWAYS

    def opened(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._threshold = _CHECKPOINT_THRESHOLD
        try:
            # Else a transaction is written to the WAL, too, before its checkpoint.
            connection.execute("SET GLOBAL auto_checkpoint_skip_wal_threshold = 0")
        except duckdb.CatalogException:
            pass  # a version that never does that

    def before_commit(
        self, connection: duckdb.DuckDBPyConnection, events: EventBatch, *, dead_rows: int
    ) -> None:
        """Decide whether the transaction that is open ends in a checkpoint.

        Args:
            events: what it writes.
            dead_rows: how many rows of the file it deletes or replaces.
        """
        self._is_catching_up = events.more_follows
        self._dead_rows += dead_rows
        if not events.more_follows or dead_rows:
            threshold = _CHECKPOINT_THRESHOLD
        else:
            threshold = _ALWAYS if self._is_worth_a_row_group(events) else _ADDING_THRESHOLD
        if threshold != self._threshold:
            connection.execute(f"SET GLOBAL checkpoint_threshold = '{threshold}'")
            self._threshold = threshold

    def _is_worth_a_row_group(self, events: EventBatch) -> bool:
        byte_count = events.row_bytes
        values = sum(
            len(step) * len(step.schema.columns)
            for steps in events.tables.values()
            for step in steps
            if isinstance(step, TableChanges)
        )
        return (
            byte_count >= self.bounds.min_bytes * len(events.tables)
            and byte_count >= self.bounds.min_bytes_per_value * values > 0
        )

    def before_close(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Decide how many row groups of each table are merged when the file is closed."""
        tasks, self._dead_rows = divmod(self._dead_rows, self.bounds.row_group)
        self._closes += 1
        if self._closes >= self.bounds.closes_before_merge and not self._is_catching_up:
            tasks = max(tasks, 1)
        self._is_merging = bool(tasks) and self._limit_memory(connection)
        if self._is_merging:
            self._closes = 0
        else:
            tasks = 0
        connection.execute(f"SET GLOBAL max_vacuum_tasks = {min(tasks, 100)}")

    def _limit_memory(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """Leave DuckDB what a merge may use, and say whether it can do with that."""
        try:
            connection.execute(f"SET GLOBAL memory_limit = '{self._merge_memory_bytes}B'")
        except duckdb.OutOfMemoryException:
            self._merge_memory_bytes = self._memory_bytes
            return False
        return True

    def closed(self, *, is_wal_left: bool) -> None:
        """The file is closed.

        Args:
            is_wal_left: whether DuckDB gave up its last checkpoint, which loses nothing: it does
                so where memory is too little for a merge, without an error.
        """
        if self._is_merging and is_wal_left:
            self._merge_memory_bytes = self._memory_bytes
