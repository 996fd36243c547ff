"""What a sensor has said of each table, and how often it says so again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Outcome = TypeVar("Outcome")

#: The daemon writes events one at a time, some 20 ms each.
EVENTS_PER_TICK = 25
#: An evaluation that says the same is sent again this often, so that its age shows that the
#: sensor runs. Dagster keeps every event for good: with many tables it is about one in a minute,
#: less what the checks of the pipeline as a whole take.
_REFRESH_S, _REFRESH_PER_TABLE_S = 600.0, 62.0


def refresh_s(tables: int) -> float:
    """After how many seconds an evaluation of one of so many tables is sent again."""
    return max(_REFRESH_S, _REFRESH_PER_TABLE_S * tables)


@dataclass(frozen=True, slots=True)
class Said(Generic[Outcome]):
    """What was said of one table, and when, by a clock that only grows."""

    outcome: Outcome
    at: float


class Sayings(Generic[Outcome]):
    """What was said of the tables of one pipeline; belongs to the code server's process.

    Dagster stores a tick's events after the tick, so until then they don't count as said.
    """

    def __init__(self) -> None:
        self._stored: dict[str, Said[Outcome]] = {}
        self._unstored: dict[str, Said[Outcome]] = {}

    def settle(self, is_stored: bool) -> None:
        """Count the last tick's events as said, if they were stored."""
        if is_stored:
            self._stored |= self._unstored
        self._unstored = {}

    def forget(self, tables: Iterable[str]) -> None:
        """Dagster doesn't show any more what was said of these tables."""
        for table in tables:
            self._stored.pop(table, None)

    def say(self, table: str, outcome: Outcome, at: float) -> None:
        """Remember what an event of this tick says."""
        self._unstored[table] = Said(outcome, at)

    def newest(self, table: str) -> Said[Outcome] | None:
        """What was said of the table last, this tick included."""
        return self._unstored.get(table) or self._stored.get(table)

    def stored(self, table: str) -> Said[Outcome] | None:
        """What was said of the table before this tick."""
        return self._stored.get(table)
