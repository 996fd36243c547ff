"""Which tables are worth an event now."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dagster import AssetCheckEvaluation, AssetKey, AssetMaterialization

from etl_dagster.integrations.dagster.metadata import (
    Activity,
    lag_evaluation,
    stream_materialization,
)
from etl_dagster.runtime.status import PipelineStatus, TableStatus

Event = AssetMaterialization | AssetCheckEvaluation

#: The daemon writes events one at a time, some 20 ms each.
_EVENTS_PER_TICK = 25
#: After the hand-over the rows are counted; a report waits so long for the number.
_COUNT_WAIT_S = 15.0


@dataclass
class _Reported:
    """What was said of one table."""

    first_seen: float
    at: float = float("-inf")
    status: TableStatus | None = None
    check: tuple[bool, str] | None = None


class Reports:
    """Remembers what the events of one pipeline said; belongs to the code server's process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._generation = 0
        self._reported: dict[str, _Reported] = {}

    def due(
        self,
        status: PipelineStatus,
        generation: int,
        keys: Mapping[str, AssetKey],
        *,
        every_s: float,
        was_reported: Callable[[AssetKey], bool],
    ) -> list[Event]:
        """The events of this tick; they count as said.

        Args:
            generation: of the replicator, whose counts begin at zero.
            every_s: at most one materialization of a table in this time.
            was_reported: whether the latest materialization of an asset is one of ours. Asked
                once for a table that is streamed and has not changed.
        """
        now = self._clock()
        if generation != self._generation:
            self._generation = generation
            for known in self._reported.values():
                known.status = None
        events: list[Event] = []
        # Those that waited longest come first.
        names = [name for name in status.tables if name in keys]
        for name in sorted(names, key=lambda name: self._of(name, now).at):
            if len(events) >= _EVENTS_PER_TICK:
                break
            table, reported = status.tables[name], self._of(name, now)
            check = self._check(keys[name], status, table, reported)
            events += [check] if check else []
            if table.state != "ready":
                # Its next report comes after the next hand-over.
                reported.at, reported.first_seen = float("-inf"), now
                continue
            if now - reported.at < every_s:
                continue
            if table.row_count is None and now - reported.first_seen < _COUNT_WAIT_S:
                continue
            activity = Activity.between(reported.status, table)
            is_first = reported.at == float("-inf")
            if activity or (is_first and not was_reported(keys[name])):
                events.append(stream_materialization(keys[name], status, table, activity))
            if activity or is_first:
                reported.at, reported.status = now, table
        return events

    def _of(self, name: str, now: float) -> _Reported:
        return self._reported.setdefault(name, _Reported(first_seen=now))

    @staticmethod
    def _check(
        key: AssetKey, status: PipelineStatus, table: TableStatus, reported: _Reported
    ) -> AssetCheckEvaluation | None:
        """The check's evaluation, when it says something else than the last one did."""
        if table.state not in ("ready", "errored"):
            return None
        evaluation = lag_evaluation(key, status, table)
        outcome = (evaluation.passed, table.error or "")
        if outcome == reported.check:
            return None
        reported.check = outcome
        return evaluation
