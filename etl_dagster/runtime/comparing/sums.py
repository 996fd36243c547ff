"""What is kept of two sides' rows while they are compared: sums of hashes, of bounded size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from etl_dagster.runtime.repair_requests import RangeDifference
from etl_dagster.values.digest import Hashes

_BUCKET_BITS: Final = 18
BUCKETS: Final = 2**_BUCKET_BITS
_RANGE_BITS: Final = 8
#: Into which the hashes of keys are divided for a report. A key's range follows from its hash, not
#: from its order: that one differs between databases and collations.
RANGES: Final = 2**_RANGE_BITS
_NONE: Final[Hashes] = np.empty(0, np.uint64)


def bucket_of(keys: Hashes) -> npt.NDArray[np.int64]:
    """The bucket that a row with this hash of its key is in."""
    return (keys >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)


class Buckets:
    """How many rows of one side are in each bucket, and the sum of their hashes.

    Rows may come in any order. Two sides have the same rows in a bucket if count and sum are the
    same, but for one case in 2**64.
    """

    def __init__(self) -> None:
        self.sums = np.zeros(BUCKETS, np.uint64)
        self.counts = np.zeros(BUCKETS, np.int64)

    def add(self, keys: Hashes, rows: Hashes) -> None:
        """Count rows in, by the hash of each one's key and that of the whole."""
        buckets = bucket_of(keys)
        np.add.at(self.sums, buckets, rows)
        self.counts += np.bincount(buckets, minlength=BUCKETS)

    @property
    def row_count(self) -> int:
        return int(self.counts.sum())

    def differing(self, other: Buckets) -> npt.NDArray[np.int64]:
        """The buckets in which the sides don't have the same rows."""
        return np.flatnonzero((self.sums != other.sums) | (self.counts != other.counts))


class RangeCounts:
    """Counts rows that differ, by the range that their key is in."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, RANGES), np.int64)

    def add(
        self,
        missing: Hashes = _NONE,
        extra: Hashes = _NONE,
        changed: Hashes = _NONE,
    ) -> None:
        """Count rows in, by the hashes of their keys."""
        for counts, keys in zip(self._counts, (missing, extra, changed), strict=True):
            places = (keys >> np.uint64(64 - _RANGE_BITS)).astype(np.int64)
            counts += np.bincount(places, minlength=RANGES)

    @property
    def totals(self) -> tuple[int, int, int]:
        """Rows that are missing, too many, and changed."""
        missing, extra, changed = self._counts.sum(axis=1).tolist()
        return missing, extra, changed

    def differing(self) -> tuple[RangeDifference, ...]:
        """The ranges in which rows differ."""
        numbers = np.flatnonzero(self._counts.any(axis=0)).tolist()
        return tuple(RangeDifference(n, *self._counts[:, n].tolist()) for n in numbers)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the rows of some buckets differ."""

    #: Rows of the source that the destination lacks, rows that it has beyond those, and rows with
    #: the same key and other values.
    missing: int
    extra: int
    changed: int
    #: Hashes of the keys that differ and were changed while they were compared: nothing is known
    #: of them.
    unjudged: Hashes
    ranges: tuple[RangeDifference, ...] = ()
    #: Hashes of the keys that differ.
    different: Hashes = field(default_factory=lambda: _NONE)


class Details:
    """Every row of some buckets, of one side."""

    def __init__(self, buckets: npt.NDArray[np.int64]) -> None:
        self._is_wanted = np.zeros(BUCKETS, bool)
        self._is_wanted[buckets] = True
        self._keys: list[Hashes] = []
        self._rows: list[Hashes] = []

    def add(self, keys: Hashes, rows: Hashes) -> None:
        """Keep those that are in the buckets."""
        wanted = self._is_wanted[bucket_of(keys)]
        if wanted.any():
            self._keys.append(keys[wanted])
            self._rows.append(rows[wanted])

    def _by_key(self, keys: Hashes) -> tuple[Hashes, npt.NDArray[np.int64]]:
        """Sum and count of the rows with each of these keys, which are sorted."""
        sums, counts = np.zeros(len(keys), np.uint64), np.zeros(len(keys), np.int64)
        if self._keys:
            places = np.searchsorted(keys, np.concatenate(self._keys))
            np.add.at(sums, places, np.concatenate(self._rows))
            counts += np.bincount(places, minlength=len(keys))
        return sums, counts

    def compare(self, other: Details, changing: Hashes, only: Hashes | None = None) -> Verdict:
        """What this side, the source, and the other one don't have in common.

        Args:
            changing: hashes of the keys that were changed while either side was read.
            only: hashes of the keys that are asked about; None: all.
        """
        both = [*self._keys, *other._keys]
        keys = np.unique(np.concatenate(both)) if both else np.empty(0, np.uint64)
        ours, our_counts = self._by_key(keys)
        theirs, their_counts = other._by_key(keys)
        differs = (ours != theirs) | (our_counts != their_counts)
        if only is not None:
            differs &= np.isin(keys, only)
        is_changing = np.isin(keys, changing)
        judged = differs & ~is_changing
        more = (our_counts - their_counts)[judged]
        which, counts = keys[judged], RangeCounts()
        same = np.where(more == 0, our_counts[judged], 0)
        counts.add(
            missing=np.repeat(which, np.maximum(more, 0)),
            extra=np.repeat(which, np.maximum(-more, 0)),
            changed=np.repeat(which, same),
        )
        missing, extra, changed = counts.totals
        return Verdict(
            missing=missing,
            extra=extra,
            changed=changed,
            unjudged=keys[differs & is_changing],
            ranges=counts.differing(),
            different=which,
        )


def slices(
    buckets: npt.NDArray[np.int64], ours: Buckets, theirs: Buckets, rows_at_once: int
) -> list[npt.NDArray[np.int64]]:
    """The buckets in slices of bounded numbers of rows, of both sides together; at least one each.

    Buckets have about as many rows as each other, unless many rows are alike.
    """
    if not len(buckets):
        return []
    ends = np.cumsum(ours.counts[buckets] + theirs.counts[buckets])
    number = ends // max(rows_at_once, 1)
    return np.split(buckets, np.flatnonzero(np.diff(number)) + 1)
