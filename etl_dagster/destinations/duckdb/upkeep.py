"""When DuckDB writes again what it has written: checkpoints, and the merging of row groups.

A checkpoint moves rows from the WAL into row groups of the file, a new one for each table. With it
DuckDB merges row groups that hold few rows, or many that were deleted, into full ones
(``max_vacuum_tasks``), which decompresses and writes all their rows again: with long texts a
gigabyte at a time, and while the stream goes on, the same rows several times.
"""

from __future__ import annotations

from typing import Any, Final

import duckdb

#: DuckDB's own 16 MB is two batches.
_CHECKPOINT_THRESHOLD: Final = "128MB"
#: With this one every transaction ends in a checkpoint, and its rows never go through the WAL.
_ALWAYS: Final = "1KB"
#: A batch with at least so many bytes for each of its tables, and at most so many rows, is worth a
#: row group of its own.
_MIN_BYTES, _MAX_ROWS = 2 * 1024**2, 30_000
#: A full row group. Where as many rows were deleted or replaced, one may be worth writing again.
_ROW_GROUP: Final = 122_880
#: Without that, row groups are merged each so many times that the file is closed.
_CLOSES_BEFORE_MERGE: Final = 16

#: How the file is opened.
CONFIG: Final[dict[str, Any]] = {
    "checkpoint_threshold": _CHECKPOINT_THRESHOLD,
    "max_vacuum_tasks": 0,
}


class Upkeep:
    """The settings of one open file; they change with what is written."""

    def __init__(self) -> None:
        self._threshold = _CHECKPOINT_THRESHOLD
        self._is_catching_up = False
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
        self,
        connection: duckdb.DuckDBPyConnection,
        *,
        rows: int,
        dead_rows: int,
        bytes_per_table: float,
        more_follows: bool,
    ) -> None:
        """Decide whether the transaction that is open ends in a checkpoint.

        Args:
            rows: how many it adds.
            dead_rows: how many rows of the file it deletes or replaces.
            bytes_per_table: what it adds to each table, on average.
            more_follows: as `EventBatch.more_follows`.
        """
        self._is_catching_up = more_follows
        self._dead_rows += dead_rows
        is_worthwhile = (
            more_follows and not dead_rows and rows <= _MAX_ROWS and bytes_per_table >= _MIN_BYTES
        )
        threshold = _ALWAYS if is_worthwhile else _CHECKPOINT_THRESHOLD
        if threshold != self._threshold:
            connection.execute(f"SET GLOBAL checkpoint_threshold = '{threshold}'")
            self._threshold = threshold

    def before_close(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Decide how many row groups of each table are merged when the file is closed."""
        tasks, self._dead_rows = divmod(self._dead_rows, _ROW_GROUP)
        self._closes += 1
        if self._closes >= _CLOSES_BEFORE_MERGE and not self._is_catching_up:
            tasks = max(tasks, 1)
        if tasks:
            self._closes = 0
        connection.execute(f"SET GLOBAL max_vacuum_tasks = {min(tasks, 100)}")
