"""Replaces the rows of one table that differ from the source's, while nothing else writes them.

The source is read under the snapshot of a slot, as of its consistent point C; the destination
leaves out every change of the table meanwhile (`RepairsTables`), so its rows don't change. First,
each side is a number and a sum of hashes for each of 2**18 ranges of the keys' hashes. Of the
ranges that differ, the destination's rows are kept as two hashes each, and the source's are read
again: a row that isn't there as it should be is written. What is left at the destination then is
deleted.

After that the destination has the source's rows as of C, whatever it had before. Nothing has to be
known of what happened to either side: not which changes were lost, nor up to where it was written.

**Memory** doesn't grow with the table: some million rows at once, 16 bytes each, and some MiB of
rows to be written. The ranges that differ are divided accordingly, and the source is read again
for each part; where that would be often, the table is better copied (`NotByRange`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.errors import EtlError, TableRewritten
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import DELETE, UPDATE, CopiedRows, TableChanges
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.comparing.sides import Hashed, Sides
from etl_dagster.runtime.comparing.sums import BUCKETS, Buckets, RangeCounts, bucket_of, slices
from etl_dagster.runtime.durable import Stopped
from etl_dagster.shaping.changes import taken_odd
from etl_dagster.values.digest import Hashes, RowHashes
from etl_dagster.values.parsed import Odd

_Read = TypeVar("_Read")

_ROWS_AT_ONCE: Final = 8_000_000
_MOST_PARTS: Final = 4
_WRITE_ROWS: Final = 50_000
_WRITE_BYTES: Final = 8 * 1024**2


class NotByRange(Exception):
    """The table can't be repaired in place, or not at less cost than a copy of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RangeRepair:
    """One table's; `begin_repair` came before.

    Args:
        lsn: what the source's snapshot shows.
        write: `RepairsTables.write_repair` of this repair; returns when all is durable.
    """

    def __init__(
        self,
        sides: Sides,
        *,
        lsn: Lsn,
        write: Callable[[TableChanges], None],
        rows_at_once: int = _ROWS_AT_ONCE,
        most_parts: int = _MOST_PARTS,
    ) -> None:
        self._sides = sides
        self._write = write
        self._lsn = lsn
        self._rows_at_once = rows_at_once
        self._most_parts = most_parts
        self.source_rows = self.destination_rows = 0
        #: What was replaced.
        self.counts = RangeCounts()

    def run(self, snapshot_name: str) -> None:
        """Replace what differs.

        Raises:
            NotByRange: the table is better copied.
            Stopped: told to stop.
            EtlError: source or destination failed.
        """
        ours, theirs = Buckets(), Buckets()
        with contextlib.closing(self._sides.source(snapshot_name)) as batches:  # type: ignore[type-var]
            for each in batches:
                ours.add(each.keys, each.hashes)
        for there in self._read(self._sides.destination_hashes()):
            theirs.add(there.keys, there.rows)
        self.source_rows, self.destination_rows = ours.row_count, theirs.row_count
        parts = slices(ours.differing(theirs), ours, theirs, self._rows_at_once)
        if len(parts) > self._most_parts:
            raise NotByRange("its rows differ in so many places that a copy takes less time")
        for buckets in parts:
            self._repair(buckets, snapshot_name)

    def _repair(self, buckets: npt.NDArray[np.int64], snapshot_name: str) -> None:
        there = _There(buckets)
        for some in self._read(self._sides.destination_hashes()):
            there.add(some)
        there.complete()
        writer = _Writer(self._sides.target, UPDATE, self._lsn, self._write)
        with contextlib.closing(self._sides.source(snapshot_name)) as batches:  # type: ignore[type-var]
            for each in batches:
                missing, changed = there.compare(each)
                self.counts.add(missing=each.keys[missing], changed=each.keys[changed])
                writer.add(each.rows, np.sort(np.concatenate([missing, changed])))
        writer.flush()
        extra = there.unseen()
        if len(extra):
            self._delete(extra)

    def _delete(self, extra: Hashes) -> None:
        target = self._sides.target
        writer = _Writer(target, DELETE, self._lsn, self._write)
        kept: list[pa.RecordBatch] = []
        count = 0
        # Not written while it is read: the destination may be one that can't.
        for each in self._read(self._sides.destination()):
            which = np.flatnonzero(np.isin(each.keys, extra))
            if not len(which):
                continue
            self.counts.add(extra=each.keys[which])
            keys = _given(target, each.rows.rows.take(which))
            if not np.array_equal(self._sides.hash_keys(keys), each.keys[which]):
                raise NotByRange("keys of rows that it has too many can't be named exactly")
            kept.append(keys)
            count += len(which)
            if count > self._rows_at_once // 8:
                raise NotByRange("it has so many rows too many that a copy takes less time")
        for batch in kept:
            writer.add(CopiedRows(batch), np.arange(batch.num_rows))
        writer.flush()

    def _read(self, found: Iterator[_Read]) -> Iterator[_Read]:
        """What is read of the destination; one that can't give it is copied to."""
        try:
            with contextlib.closing(found) as batches:  # type: ignore[type-var]
                yield from batches
        except Stopped:
            raise
        except EtlError as error:
            if error.retryable and not isinstance(error, TableRewritten):
                raise
            raise NotByRange(error.reason) from error


class _There:
    """The destination's rows in some ranges, as hashes, and which of them the source has."""

    def __init__(self, buckets: npt.NDArray[np.int64]) -> None:
        self._is_wanted = np.zeros(BUCKETS, bool)
        self._is_wanted[buckets] = True
        self._gathered: list[tuple[Hashes, Hashes]] = []

    def add(self, there: RowHashes) -> None:
        wanted = self._is_wanted[bucket_of(there.keys)]
        if wanted.any():
            self._gathered.append((there.keys[wanted], there.rows[wanted]))

    def complete(self) -> None:
        """All of them were added."""
        none = np.empty(0, np.uint64)
        keys = np.concatenate([none, *(keys for keys, _ in self._gathered)])
        hashes = np.concatenate([none, *(hashes for _, hashes in self._gathered)])
        self._gathered = []
        self._keys, first, counts = np.unique(keys, return_index=True, return_counts=True)
        self._hashes = hashes[first]
        self._is_one = counts == 1
        self._is_seen = np.zeros(len(self._keys), bool)

    def compare(self, rows: Hashed) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Of the source's rows, those that are missing, and those that are there otherwise."""
        wanted = np.flatnonzero(self._is_wanted[bucket_of(rows.keys)])
        keys, hashes = rows.keys[wanted], rows.hashes[wanted]
        if not len(self._keys):
            return wanted, wanted[:0]
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        is_there = self._keys[places] == keys
        self._is_seen[places[is_there]] = True
        is_same = is_there & self._is_one[places] & (self._hashes[places] == hashes)
        return wanted[~is_there], wanted[is_there & ~is_same]

    def unseen(self) -> Hashes:
        """The keys that the source doesn't have."""
        return self._keys[~self._is_seen]


class _Writer:
    """Gathers rows of one operation, and writes them some MiB at a time."""

    def __init__(
        self, target: TableSchema, op: int, lsn: Lsn, write: Callable[[TableChanges], None]
    ) -> None:
        self._target = target
        self._op = op
        self._lsn = lsn
        self._write = write
        self._rows: list[CopiedRows] = []

    def add(self, rows: CopiedRows, which: npt.NDArray[np.int64]) -> None:
        if not len(which):
            return
        odd = {n: some for n, each in rows.odd.items() if (some := taken_odd(each, which))}
        self._rows.append(CopiedRows(rows.rows.take(which), odd))
        count = sum(each.num_rows for each in self._rows)
        if count >= _WRITE_ROWS or sum(each.nbytes for each in self._rows) >= _WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        table = pa.Table.from_batches([each.rows for each in self._rows])
        [rows] = table.combine_chunks().to_batches()
        count, lsn = rows.num_rows, self._lsn.offset - 1
        odd, self._rows = _joined(self._rows), []
        self._write(
            TableChanges(
                schema=self._target,
                ops=np.full(count, self._op, np.uint8),
                commit_lsns=np.full(count, lsn, np.uint64),
                ordinals=np.arange(1, count + 1, dtype=np.int64),
                commit_times_us=np.full(count, time.time_ns() // 1000, np.int64),
                sequence=np.arange(count, dtype=np.int64),
                rows=rows,
                odd=odd,
            )
        )


def _joined(pieces: Sequence[CopiedRows]) -> dict[str, Odd]:
    """The odd values of pieces that become one."""
    found: dict[str, list[Odd]] = {}
    start = 0
    for piece in pieces:
        for name, each in piece.odd.items():
            found.setdefault(name, []).append(each.shifted(start))
        start += piece.num_rows
    return {
        name: Odd(
            np.concatenate([each.places for each in parts]),
            pa.chunked_array([each.texts for each in parts]).combine_chunks(),
        )
        for name, parts in found.items()
    }


def _given(target: TableSchema, read: pa.RecordBatch) -> pa.RecordBatch:
    """The keys of rows that were read, in the types in which rows are given.

    Raises:
        NotByRange: there is no way back.
    """
    arrays: list[pa.Array[Any]] = []
    try:
        for field in target.arrow_schema:
            if field.name in target.key_columns:
                array = read.column(field.name)
                arrays.append(array if array.type == field.type else array.cast(field.type))
            else:
                arrays.append(pa.nulls(read.num_rows, field.type))
    except pa.ArrowException:
        raise NotByRange("keys of rows that it has too many can't be named") from None
    return pa.RecordBatch.from_arrays(arrays, schema=_nullable(target))


def _nullable(target: TableSchema) -> pa.Schema:
    return pa.schema([pa.field(field.name, field.type) for field in target.arrow_schema])
