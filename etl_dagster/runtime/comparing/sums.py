"""What is kept of two sides' rows while they are compared: sums of hashes, of bounded size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from etl_dagster.values.digest import Hashes

_BUCKET_BITS: Final = 18
_BUCKETS: Final = 2**_BUCKET_BITS


def bucket_of(keys: Hashes) -> npt.NDArray[np.int64]:
    """The bucket that a row with this hash of its key is in."""
    return (keys >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)


class Buckets:
    """How many rows of one side are in each bucket, and the sum of their hashes.

    Rows may come in any order. Two sides have the same rows in a bucket if count and sum are the
    same, but for one case in 2**64.
    """

    def __init__(self) -> None:
        self.sums = np.zeros(_BUCKETS, np.uint64)
        self.counts = np.zeros(_BUCKETS, np.int64)

    def add(self, keys: Hashes, rows: Hashes) -> None:
        """Count rows in, by the hash of each one's key and that of the whole."""
        buckets = bucket_of(keys)
        np.add.at(self.sums, buckets, rows)
        self.counts += np.bincount(buckets, minlength=_BUCKETS)

    @property
    def row_count(self) -> int:
        return int(self.counts.sum())

    def differing(self, other: Buckets) -> npt.NDArray[np.int64]:
        """The buckets in which the sides don't have the same rows."""
        return np.flatnonzero((self.sums != other.sums) | (self.counts != other.counts))


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


class Details:
    """Every row of some buckets, of one side."""

    def __init__(self, buckets: npt.NDArray[np.int64]) -> None:
        self._is_wanted = np.zeros(_BUCKETS, bool)
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
        return Verdict(
            missing=int(more[more > 0].sum()),
            extra=int(-more[more < 0].sum()),
            changed=int(our_counts[judged][more == 0].sum()),
            unjudged=keys[differs & is_changing],
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
