"""The largest lag between two reports: the lag at the moment of a report alone says little."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from etl_dagster.runtime.showing.status import PipelineStatus

#: Each entry holds the largest lag of this many seconds; an hour of entries is kept.
_ENTRY_S, _KEPT_S = 5.0, 3600.0


@dataclass(frozen=True)
class Lag:
    """The lag as in `PipelineStatus`; after `or_larger`, each field is the larger of its kind."""

    seconds: float
    bytes: int

    @classmethod
    def of(cls, status: PipelineStatus) -> Lag:
        return cls(float(status.lag_seconds), status.lag_bytes)

    def or_larger(self, other: Lag) -> Lag:
        return Lag(max(self.seconds, other.seconds), max(self.bytes, other.bytes))


class WorstLag:
    """The lag that one replicator has reported.

    The thread that reads the replicator's status notes it; ticks ask for the largest.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: When each entry began, and its largest lag.
        self._entries: deque[tuple[float, Lag]] = deque(maxlen=round(_KEPT_S / _ENTRY_S))

    def note(self, status: PipelineStatus) -> None:
        now, lag = self._clock(), Lag.of(status)
        with self._lock:
            if self._entries and now - self._entries[-1][0] < _ENTRY_S:
                began, largest = self._entries[-1]
                self._entries[-1] = began, largest.or_larger(lag)
            else:
                self._entries.append((now, lag))

    def since(self, at: float, now: Lag) -> Lag:
        """The largest lag since `at`, looking back an hour at most.

        It may be one of up to five seconds before `at`, the length of an entry.

        Args:
            at: seconds of the same clock.
            now: the lag in the status that the report is about.
        """
        with self._lock:
            for began, lag in reversed(self._entries):
                if began + _ENTRY_S <= at:
                    break
                now = now.or_larger(lag)
        return now
