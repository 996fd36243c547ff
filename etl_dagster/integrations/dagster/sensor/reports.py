"""Which tables are worth an event now."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dagster import AssetCheckEvaluation, AssetKey, AssetMaterialization

from etl_dagster.integrations.dagster.checks.coming import verdict as coming_verdict
from etl_dagster.integrations.dagster.checks.lag import LagVerdict, dead, judge, waits
from etl_dagster.integrations.dagster.history import LastEvents
from etl_dagster.integrations.dagster.said import EVENTS_PER_TICK, refresh_s
from etl_dagster.integrations.dagster.tables.metadata import Activity, stream_materialization
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds
from etl_dagster.integrations.dagster.worst_lag import Lag, WorstLag
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

Event = AssetMaterialization | AssetCheckEvaluation

#: After the hand-over the rows are counted; a report waits this long for the number.
_COUNT_WAIT_S = 15.0
#: What is known of an asset's last events may be this old.
_HISTORY_S = 120.0
#: A stream that is interrupted for less than this is not worth an event for each table.
_INTERRUPTED_S = 15.0


@dataclass(frozen=True)
class _Said:
    """What was reported of one table."""

    first_seen: float
    #: The last materialization, and the counts that it was about.
    at: float = float("-inf")
    status: TableStatus | None = None
    #: How long the next one waits at least.
    pause_s: float = 0.0
    #: Whether a tick after that pause found nothing to report.
    has_rested: bool = False
    check: tuple[bool, bool, str] | None = None
    checked_at: float = float("-inf")
    #: The last run of the asset that the check has followed.
    run_id: str | None = None


@dataclass(frozen=True)
class _Times:
    """How far apart the materializations of a table are; see `Reports.due`."""

    every_s: float
    busy_every_s: float
    idle_every_s: float | None

    def next_pause_s(self, said: _Said, now: float) -> float:
        """Twice the last pause after a report that came as soon as it might, else the shortest.

        It may have come late because ticks are far apart, or have other tables to report first.
        """
        last_s = max(self.every_s, said.pause_s)
        has_rested = said.has_rested or said.at == float("-inf")
        is_quiet = has_rested and now - said.at >= 2 * last_s
        return self.every_s if is_quiet else min(2 * last_s, self.busy_every_s)


class Reports:
    """Remembers what the events of one pipeline reported; belongs to the code server's process.

    Dagster stores a tick's events after the tick, and then its cursor. So events count as reported
    once the next tick finds that cursor; else they are sent again.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._generation = 0
        self._said: dict[str, _Said] = {}
        self._unstored: dict[str, _Said] = {}
        self._cursor: str | None = None
        self._streamed_at = clock()

    def runs_followed(self) -> dict[str, str | None]:
        """By table, the last run of the asset after which the check was sent again."""
        said = self._said | self._unstored
        return {name: said[name].run_id for name in said}

    @property
    def has_cursor(self) -> bool:
        """Whether a tick was given a cursor to store."""
        return self._cursor is not None

    def expect(self, cursor: str | None) -> None:
        """The events of this tick are stored together with this cursor."""
        self._cursor = cursor

    def settle(self, cursor: str | None) -> bool:
        """Count the last tick's events as reported, if its cursor is the one that Dagster has.

        Returns:
            Whether they were stored.
        """
        is_stored = cursor == self._cursor
        if is_stored:
            self._said |= self._unstored
        self._unstored = {}
        return is_stored

    def dead(
        self,
        reason: str,
        solution: str,
        keys: Mapping[str, AssetKey],
        *,
        at_most: int = EVENTS_PER_TICK,
    ) -> list[AssetCheckEvaluation]:
        """The failed checks of a pipeline that does not stream, unless they were reported."""
        now, verdict = self._clock(), dead(reason, solution)
        news = [name for name in keys if self._is_check_due(self._of(name), verdict, now, keys)]
        for name in news[:at_most]:
            self._checked(name, verdict, now)
        return [verdict.evaluation(keys[name]) for name in news[:at_most]]

    def announce(
        self, coming: Mapping[str, str], keys: Mapping[str, AssetKey]
    ) -> list[AssetCheckEvaluation]:
        """The checks of tables that the replicator copies again as it starts, with the reason."""
        now = self._clock()
        evaluations = []
        for name in [name for name in coming if name in keys][:EVENTS_PER_TICK]:
            verdict = coming_verdict(coming[name])
            self._checked(name, verdict, now)
            evaluations.append(verdict.evaluation(keys[name]))
        return evaluations

    def due(
        self,
        status: PipelineStatus,
        generation: int,
        keys: Mapping[str, AssetKey],
        *,
        every_s: float,
        busy_every_s: float | None = None,
        idle_every_s: float | None = None,
        history: Mapping[AssetKey, LastEvents] | None = None,
        waiting: Mapping[str, str] | None = None,
        worst_lag: WorstLag | None = None,
        thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
    ) -> list[Event]:
        """The events of this tick.

        Args:
            generation: of the replicator, whose counts begin at zero.
            every_s: at most one materialization of a table in this time.
            busy_every_s: what the time grows to, doubled by each report in a row, while the table
                changes all the time. None for a time that doesn't grow.
            idle_every_s: a table that doesn't change is reported this often; None for never.
            history: the last events of the assets, as far as they are known.
            waiting: tables whose copy is not requested now, and why.
            worst_lag: the lag between ticks; without it, the status has the lag.
        """
        history, waiting = history or {}, waiting or {}
        worst_lag = worst_lag or WorstLag(self._clock)
        times = _Times(every_s, max(every_s, busy_every_s or every_s), idle_every_s)
        now = self._clock()
        if generation != self._generation:
            self._generation = generation
            self._said = {name: replace(said, status=None) for name, said in self._said.items()}
        if status.phase != "retrying":
            self._streamed_at = now
        events: list[Event] = []
        # Those that waited longest come first.
        names = [name for name in status.tables if name in keys]
        for name in sorted(names, key=lambda name: self._of(name).at):
            if len(events) >= EVENTS_PER_TICK:
                break
            table, key = status.tables[name], keys[name]
            last = history.get(key)
            report = self._report(name, key, status, table, last, times, worst_lag)
            events += [report] if report else []
            verdict = self._verdict(status, table, waiting.get(name), thresholds)
            if verdict is None:
                continue
            run_id = None
            if last is not None and last.hides_checks(self._wall_clock()):
                run_id = last.run_id
            if self._is_check_due(self._of(name), verdict, now, keys, run_id):
                self._checked(name, verdict, now, run_id)
                events.append(verdict.evaluation(key))
        return events

    # -- what was said ---------------------------------------------------------------------------

    def _of(self, name: str) -> _Said:
        said = self._unstored.get(name) or self._said.get(name)
        return said or self._said.setdefault(name, _Said(first_seen=self._clock()))

    def _say(self, name: str, said: _Said) -> None:
        self._unstored[name] = said

    # -- checks ----------------------------------------------------------------------------------

    def _verdict(
        self,
        status: PipelineStatus,
        table: TableStatus,
        waiting: str | None,
        thresholds: CheckThresholds,
    ) -> LagVerdict | None:
        """None while whatever there is to report may be over in a moment."""
        if waiting is not None:
            return waits(waiting)
        if table.state not in ("ready", "errored") or status.phase == "starting":
            return None
        verdict = judge(status, table, now=self._wall_clock(), thresholds=thresholds)
        is_short = self._clock() - self._streamed_at < _INTERRUPTED_S
        return None if verdict.kind == "retrying" and is_short else verdict

    @staticmethod
    def _is_check_due(
        said: _Said,
        verdict: LagVerdict,
        now: float,
        keys: Mapping[str, AssetKey],
        run_id: str | None = None,
    ) -> bool:
        if verdict.outcome != said.check:
            return True
        if now - said.checked_at >= refresh_s(len(keys)):
            return True
        # Dagster shows an evaluation until the next run of the asset, also if that is canceled.
        return run_id not in (None, said.run_id)

    def _checked(
        self, name: str, verdict: LagVerdict, now: float, run_id: str | None = None
    ) -> None:
        said = self._of(name)
        run_id = run_id or said.run_id
        self._say(name, replace(said, check=verdict.outcome, checked_at=now, run_id=run_id))

    # -- materializations ------------------------------------------------------------------------

    def _report(
        self,
        name: str,
        key: AssetKey,
        status: PipelineStatus,
        table: TableStatus,
        last: LastEvents | None,
        times: _Times,
        worst_lag: WorstLag,
    ) -> AssetMaterialization | None:
        """What the stream did to the table, or that it is still streamed."""
        now, said = self._clock(), self._of(name)
        if table.state != "ready":
            # Its next report comes after the next hand-over.
            self._say(name, replace(said, at=float("-inf"), first_seen=now))
            return None
        if now - said.at < max(times.every_s, said.pause_s):
            return None
        if table.row_count is None and now - said.first_seen < _COUNT_WAIT_S:
            return None
        activity = Activity.between(said.status, table)
        is_first = said.at == float("-inf")
        # A copy has its own materialization; a second one would trigger downstream assets again.
        is_due = bool(activity) or (last is not None and last.materialized_at is None)
        if not is_due and times.idle_every_s is not None and last is not None:
            is_old = self._age_s(last) >= times.idle_every_s and now - said.at >= _HISTORY_S
            is_due = is_old and judge(status, table, now=self._wall_clock()).passed
        if is_due or is_first:
            pause_s = times.next_pause_s(said, now)
            self._say(name, replace(said, at=now, status=table, pause_s=pause_s, has_rested=False))
        elif not said.has_rested:
            self._say(name, replace(said, has_rested=True))
        if not is_due:
            return None
        lag = worst_lag.since(said.at, Lag.of(status))
        seconds = None if is_first or said.status is None else now - said.at
        return stream_materialization(key, status, table, activity, lag, seconds)

    def _age_s(self, last: LastEvents) -> float:
        return self._wall_clock() - (last.materialized_at or 0.0)
