"""The last hours of a pipeline in a few numbers, for plots; kept on the store's board."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from etl_dagster.runtime.showing.status import PipelineStatus

#: Where it is on the board.
HISTORY: Final = "apply history"
#: A sample this often, so many of them: two hours.
EVERY_S: Final = 15.0
AT_MOST: Final = 480
#: It is put on the board this often.
_PUBLISH_EVERY_S = 60.0


class Moment(NamedTuple):
    """A pipeline at one moment; lag and rate are the highest since the moment before."""

    #: Seconds since 1970-01-01 UTC.
    at: float
    lag_seconds: float
    lag_bytes: int
    retained_wal_bytes: int | None
    rows_per_second: float


class History:
    """Collects moments; one that was lost is a gap, nothing more.

    Args:
        publish: puts a payload on the board.
    """

    def __init__(self, publish: Callable[[Mapping[str, Any]], None]) -> None:
        self._publish = publish
        self._moments: deque[Moment] = deque(maxlen=AT_MOST)
        self._published_at = 0.0
        #: The highest since the last moment.
        self._lag_s = self._rate = 0.0
        self._lag_bytes = 0

    def recall(self, payload: Mapping[str, Any] | None) -> None:
        """Continue from what the process before has put there."""
        self._moments.extend(read_history(payload))

    def add(self, status: PipelineStatus) -> None:
        """Keep the status where a sample is due, and show all of them from time to time."""
        self._lag_s = max(self._lag_s, status.lag_seconds)
        self._lag_bytes = max(self._lag_bytes, status.lag_bytes)
        self._rate = max(self._rate, status.rows_per_second)
        if self._moments and status.at - self._moments[-1].at < EVERY_S:
            return
        self._moments.append(
            Moment(
                round(status.at, 1),
                self._lag_s,
                self._lag_bytes,
                status.retained_wal_bytes,
                self._rate,
            )
        )
        self._lag_s = self._rate = 0.0
        self._lag_bytes = 0
        if status.at - self._published_at >= _PUBLISH_EVERY_S:
            self._published_at = status.at
            self._publish({"moments": [list(moment) for moment in self._moments]})


def read_history(payload: Mapping[str, Any] | None) -> Sequence[Moment]:
    """What is on the board, oldest first; what another version wrote is left out."""
    rows = (payload or {}).get("moments", ())
    return [Moment(*row) for row in rows if len(row) == len(Moment._fields)]
