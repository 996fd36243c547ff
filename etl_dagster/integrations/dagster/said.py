"""What a sensor has reported about each table, and when it repeats the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Outcome = TypeVar("Outcome")

#: The daemon writes events one at a time, at some 20 ms each.
EVENTS_PER_TICK = 25
#: An evaluation with the same outcome is sent again this often, so that its age shows that the
#: sensor runs. Dagster keeps every event for good, so with many tables the time grows: all of them
#: send a little less than one event in a minute, which leaves some for the pipeline's own checks.
_REFRESH_S, _REFRESH_PER_TABLE_S = 600.0, 62.0


def refresh_s(tables: int) -> float:
    """After how many seconds an evaluation of one of so many tables is sent again."""
    return max(_REFRESH_S, _REFRESH_PER_TABLE_S * tables)


@dataclass(frozen=True, slots=True)
class Said(Generic[Outcome]):
    """What was reported about one table."""

    outcome: Outcome
    #: Seconds of a monotonic clock.
    at: float


class Sayings(Generic[Outcome]):
    """What was reported about the tables of one pipeline; kept in the code server's process.

    Dagster stores a tick's events after the tick, so they count as reported only from then on.
    """

    def __init__(self) -> None:
        self._stored: dict[str, Said[Outcome]] = {}
        self._unstored: dict[str, Said[Outcome]] = {}

    def settle(self, is_stored: bool) -> None:
        """Count the last tick's events as reported, if Dagster has stored them."""
        if is_stored:
            self._stored |= self._unstored
        self._unstored = {}

    def forget(self, tables: Iterable[str]) -> None:
        """Report these tables again: Dagster no longer shows what was reported about them."""
        for table in tables:
            self._stored.pop(table, None)

    def say(self, table: str, outcome: Outcome, at: float) -> None:
        """Remember what an event of this tick reports."""
        self._unstored[table] = Said(outcome, at)

    def newest(self, table: str) -> Said[Outcome] | None:
        """The last report about the table, this tick included."""
        return self._unstored.get(table) or self._stored.get(table)

    def stored(self, table: str) -> Said[Outcome] | None:
        """The last report about the table before this tick."""
        return self._stored.get(table)
