"""What the mirror has written lately, and so what is due to be written again."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Mapping

from etl_dagster.integrations.meltano.positions.bookmarks import TablePosition
from etl_dagster.integrations.meltano.positions.verdicts import StateRow

#: A table without changes follows the stream's position this many intervals later.
_IDLE_INTERVALS = 6
#: ... but of all tables together not more than one in this time; and each once an hour.
_IDLE_WRITE_S, _LONGEST_IDLE_S = 0.5, 3600.0
_LSNS_KEPT = 200


def idle_pause_s(interval_s: float, tables: int) -> float:
    """How long the state of a table without changes is left as it is, in seconds.

    Each is written by itself, so that of many tables is written less often.
    """
    least_s = min(tables * _IDLE_WRITE_S, _LONGEST_IDLE_S)
    return max(interval_s * _IDLE_INTERVALS, least_s)


class WrittenPositions:
    """By state ID: the position, when it was written, and those written before it.

    Args:
        now_s: a clock that only goes forward, in seconds.
    """

    def __init__(self, interval_s: float, now_s: Callable[[], float]) -> None:
        self._interval_s = interval_s
        self._now_s = now_s
        self._last: dict[str, tuple[TablePosition, float]] = {}
        self._versions: dict[str, int] = {}
        self._lsns: dict[str, deque[int]] = {}

    def add(self, position: TablePosition, version: int | None) -> None:
        """Remember that it was written now, as this version of its state; None if not known."""
        self._last[position.state_id] = position, self._now_s()
        if version is None:
            self._versions.pop(position.state_id, None)
        else:
            self._versions[position.state_id] = version
        if position.lsn is not None:
            lsns = self._lsns.setdefault(position.state_id, deque(maxlen=_LSNS_KEPT))
            lsns.append(position.lsn.offset)

    def forget(self, state_id: str) -> None:
        """Forget a state that is not there any more."""
        self._last.pop(state_id, None)
        self._versions.pop(state_id, None)
        self._lsns.pop(state_id, None)

    def lsns(self, state_id: str) -> Collection[int]:
        """The positions that were written lately."""
        return self._lsns.get(state_id, ())

    def followed(self, rows: Mapping[str, StateRow]) -> TablePosition | None:
        """A position that was written here, and since by another mirror of the same name."""
        for state_id, version in self._versions.items():
            row = rows.get(state_id)
            if row is not None and row.is_ours and row.version > version:
                return self._last[state_id][0]
        return None

    def is_new_phase(self, position: TablePosition) -> bool:
        """Whether the table has another phase than what was written."""
        last = self._last.get(position.state_id)
        return last is None or last[0].phase != position.phase

    def is_due(self, position: TablePosition, *, is_last: bool) -> bool:
        """Whether to write it now, where no user asked for anything.

        Args:
            is_last: whether this is the last pass.
        """
        if self.is_new_phase(position):
            return True
        before, at_s = self._last[position.state_id]
        if before == position:
            return False
        if is_last:
            return True
        age_s = self._now_s() - at_s
        is_idle = before == dataclasses.replace(position, lsn=before.lsn)
        if not is_idle:
            return age_s >= self._interval_s
        return age_s >= idle_pause_s(self._interval_s, len(self._last))
