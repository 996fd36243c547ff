"""Row messages that were put aside, given on many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl_dagster.protocol.frames import XLOG_DATA_HEADER

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class RowFrames:
    """Row messages in their XLogData frames, one after the other; each is taken once.

    Args:
        data: the frames, and nothing else.
        lengths: of each frame, at least one.
    """

    def __init__(self, data: memoryview, lengths: npt.NDArray[np.uint32]) -> None:
        import numpy as np

        self._data = data
        self._lengths: list[int] = lengths.tolist()
        #: Where each frame ends.
        self._ends: npt.NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64)
        self._taken = 0

    @property
    def is_empty(self) -> bool:
        """Whether all of them are taken."""
        return self._taken == len(self._lengths)

    @property
    def size(self) -> int:
        """Memory that they take, about."""
        return len(self._data) + self._ends.nbytes + 8 * len(self._lengths)

    @property
    def wal_end(self) -> int:
        """How far the server's WAL reached when it sent the last of them."""
        end: int = XLOG_DATA_HEADER.unpack_from(self._data, len(self._data) - self._lengths[-1])[2]
        return end

    def take(self, max_bytes: int, max_rows: int) -> tuple[memoryview, list[int]]:
        """The next frames and their lengths: up to the one that gets them to one of the bounds.

        None where a bound is below 1.
        """
        first = self._taken
        begin = int(self._ends[first - 1]) if first else 0
        past = first
        if max_bytes > 0 and max_rows > 0:
            past = int(self._ends.searchsorted(begin + max_bytes)) + 1
            past = min(past, first + max_rows, len(self._lengths))
        self._taken = past
        end = int(self._ends[past - 1]) if past else 0
        return self._data[begin:end], self._lengths[first:past]

    def take_rest(self) -> RowFrames:
        """All that is left, to be taken elsewhere; at least one."""
        rest = self.again()
        self._taken = len(self._lengths)
        return rest

    def again(self) -> RowFrames:
        """What is left, for another reader."""
        other = object.__new__(RowFrames)
        other._data, other._lengths, other._ends = self._data, self._lengths, self._ends
        other._taken = self._taken
        return other
