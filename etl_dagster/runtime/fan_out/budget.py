"""Which destination holds the others back for too long, by what each has made durable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from etl_dagster.lsn import Lsn
from etl_dagster.runtime.fan_out.pacing import FanOutPace
from etl_dagster.words import human_bytes


@dataclass(frozen=True, slots=True)
class Reader:
    """A destination that reads the shared slot."""

    durable: Lsn
    #: How long others waited for it since it came, seconds.
    held_up_s: float = 0.0


class Budget:
    """Compares one look at the readers of a shared slot with those before.

    A destination is to be set aside once it is behind the end of the WAL by more than the budget,
    and it is the one that is waited for: the others would be further without it. Where all are
    behind, none of them is at fault.
    """

    def __init__(self, max_wal_behind: int, pace: FanOutPace) -> None:
        self._max_wal_behind = max_wal_behind
        self._pace = pace
        self._looked_at = 0.0
        self._held_up_s: dict[str, float] = {}
        #: Those that were waited for in every look since then.
        self._waited_for_since: dict[str, float] = {}
        #: Where another one was, and when.
        self._goals: dict[str, tuple[Lsn, float]] = {}

    def look(self, readers: Mapping[str, Reader], wal_end: Lsn, now_s: float) -> dict[str, str]:
        """Those to be set aside, each with the reason; never all of the readers."""
        since_s, self._looked_at = now_s - self._looked_at, now_s
        found: dict[str, str] = {}
        for name, reader in readers.items():
            behind = wal_end.offset - reader.durable.offset
            held_up_s = reader.held_up_s - self._held_up_s.get(name, 0.0)
            others = [other.durable for other_name, other in readers.items() if other_name != name]
            if behind <= self._max_wal_behind or not others:
                self._goals.pop(name, None)
                self._waited_for_since.pop(name, None)
                continue
            # In the middle of a large transaction none has more than another, and yet one waits.
            is_waited_for = self._is_waited_for(name, held_up_s > since_s / 2, now_s)
            if is_waited_for or self._stands_still(name, reader.durable, max(others), now_s):
                found[name] = f"it was {human_bytes(behind)} behind, and held the others back"
        self._held_up_s = {name: reader.held_up_s for name, reader in readers.items()}
        self._goals = {name: goal for name, goal in self._goals.items() if name in readers}
        return found

    def _is_waited_for(self, name: str, is_now: bool, now_s: float) -> bool:
        if not is_now:
            self._waited_for_since.pop(name, None)
            return False
        return now_s - self._waited_for_since.setdefault(name, now_s) >= self._pace.held_up_s

    def _stands_still(self, name: str, durable: Lsn, farthest: Lsn, now_s: float) -> bool:
        """Whether it has not got, in some time, to where another one was at its beginning."""
        goal, seen_at = self._goals.setdefault(name, (farthest, now_s))
        if durable >= goal:
            del self._goals[name]
            return False
        return now_s - seen_at >= self._pace.standstill_s
