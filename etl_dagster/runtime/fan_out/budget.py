"""Which destination holds the others back for too long, by what each has read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from etl_dagster.lsn import Lsn
from etl_dagster.runtime.fan_out.pacing import FanOutPace
from etl_dagster.words import human_bytes


@dataclass(frozen=True, slots=True)
class DestinationReader:
    """A destination at one moment. What is counted never goes down while its pipeline runs."""

    durable: Lsn
    #: Batches that are durable, also of a transaction that has not ended.
    written: int = 0
    #: Whether it was given a batch that is not durable yet.
    is_writing: bool = False
    #: How long another one wanted more of the stream, and got none because of this one, seconds.
    held_up_s: float = 0.0
    #: How long this one wanted more, and got none because of another one, seconds.
    asked_s: float = 0.0
    #: Whether it has a slot of its own: the others are compared with it, it is not set aside.
    is_aside: bool = False


@dataclass(frozen=True, slots=True)
class Findings:
    """What comes of a look; each with the reason, for people."""

    #: To be set aside.
    slow: Mapping[str, str] = field(default_factory=dict)
    #: Past the budget for some time, and not set aside, since none is further.
    tolerated: Mapping[str, str] = field(default_factory=dict)


class Budget:
    """Compares one look at the destinations with those before.

    A destination is to be set aside once it is behind the end of the WAL by more than the budget,
    and another one would be further without it. Either that one is further already, and this one
    does not get there in a while. Or, as in the middle of a large transaction, of which none has
    made anything durable, that one has read all it was given and wants more, while this one has no
    room for it; then that one may as well be the one that is past the budget. (Before such a
    transaction, a keepalive may have brought this one close to its commit, and that one not.)

    Neither may be said of a destination by one that hangs itself: it may have read more, or have
    written more once, than one that is merely slow. So what is said by one that has a batch in its
    hands counts only if it has completed another since, and not before the last one of the
    destination that it speaks of.
    """

    def __init__(self, max_wal_behind: int, pace: FanOutPace) -> None:
        self._max_wal_behind = max_wal_behind
        self._pace = pace
        self._looked_at = 0.0
        #: As of the last look.
        self._readers: Mapping[str, DestinationReader] = {}
        #: When something of each was last seen to have become durable.
        self._moved_at: dict[str, float] = {}
        #: Since when they were waited for, in every look.
        self._waited_for_since: dict[str, float] = {}
        #: Where another one was, and when.
        self._goals: dict[str, tuple[Lsn, float]] = {}
        self._over_since: dict[str, float] = {}

    def look(
        self, readers: Mapping[str, DestinationReader], wal_end: Lsn, now_s: float
    ) -> Findings:
        """Which of them are past the budget; never are all of them to be set aside.

        Args:
            readers: the destinations whose pipelines run.
        """
        before, self._readers = self._readers, dict(readers)
        since_s, self._looked_at = now_s - self._looked_at, now_s
        self._notice_moves(before, now_s)
        nothing = DestinationReader(Lsn(0))
        asking = {
            name
            for name, reader in readers.items()
            if reader.asked_s - before.get(name, nothing).asked_s > since_s / 2
        }
        behind = {name: wal_end.offset - each.durable.offset for name, each in readers.items()}
        over = {name for name, distance in behind.items() if distance > self._max_wal_behind}
        slow: dict[str, str] = {}
        tolerated: dict[str, str] = {}
        for name, reader in readers.items():
            if reader.is_aside:
                for noted in (self._goals, self._waited_for_since, self._over_since):
                    noted.pop(name, None)
                continue
            held_up_s = reader.held_up_s - before.get(name, nothing).held_up_s
            is_held_up = held_up_s > since_s / 2 and bool(over & {name, *asking})
            is_waited_for = self._is_waited_for(name, is_held_up, asking, now_s)
            if name not in over:
                self._goals.pop(name, None)
                self._over_since.pop(name, None)
            is_left_behind = name in over and self._is_left_behind(name, now_s)
            if is_waited_for or is_left_behind:
                most = max(behind[each] for each in over & {name, *asking})
                slow[name] = (
                    f"it held the others back, {human_bytes(most)} behind the end of the WAL"
                )
            elif name not in over:
                continue
            elif now_s - self._over_since.setdefault(name, now_s) >= self._pace.tolerated_s:
                tolerated[name] = (
                    "behind by more than fan_out.max_wal_behind "
                    f"({human_bytes(self._max_wal_behind)}), and not set aside, since no other "
                    "destination is further: the source keeps the WAL, up to its "
                    "max_slot_wal_keep_size"
                )
        if slow and slow.keys() == readers.keys():
            # They speak of each other: the one that is the furthest stays.
            del slow[max(slow, key=lambda name: readers[name].durable)]
        return Findings(slow, tolerated)

    def _notice_moves(self, before: Mapping[str, DestinationReader], now_s: float) -> None:
        for name, reader in self._readers.items():
            last = before.get(name)
            if last is None or (last.durable, last.written) != (reader.durable, reader.written):
                self._moved_at[name] = now_s
        # What was noted of one that went, holds no longer once it comes again.
        noted: dict[str, float] | dict[str, tuple[Lsn, float]]
        for noted in (self._moved_at, self._waited_for_since, self._goals, self._over_since):
            for name in noted.keys() - self._readers.keys():
                del noted[name]

    def _is_waited_for(self, name: str, is_now: bool, asking: set[str], now_s: float) -> bool:
        if not is_now:
            self._waited_for_since.pop(name, None)
            return False
        since = self._waited_for_since.setdefault(name, now_s)
        return now_s - since >= self._pace.held_up_s and any(
            self._may_speak(other, of=name, since=since) for other in asking - {name}
        )

    def _is_left_behind(self, name: str, now_s: float) -> bool:
        """Whether it has not got, in some time, to where another one was at its beginning."""
        others = {other: each for other, each in self._readers.items() if other != name}
        if not others:
            self._goals.pop(name, None)
            return False
        farthest = max(other.durable for other in others.values())
        goal, seen_at = self._goals.setdefault(name, (farthest, now_s))
        if self._readers[name].durable >= goal:
            del self._goals[name]
            return False
        return now_s - seen_at >= self._pace.standstill_s and any(
            each.durable >= goal and self._may_speak(other, of=name, since=seen_at)
            for other, each in others.items()
        )

    def _may_speak(self, other: str, *, of: str, since: float) -> bool:
        """Whether the other one is not known to hang; see above."""
        if not self._readers[other].is_writing:
            return True
        moved_at = self._moved_at[other]
        return moved_at > since and moved_at >= self._moved_at[of]
