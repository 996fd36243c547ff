"""Whether the types of a table's columns can hold every value: the check `values_held`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from dagster import AssetCheckEvaluation, AssetCheckResult, AssetKey

from etl_dagster.config.commands import command
from etl_dagster.integrations.dagster.checks.check_names import ODD_CHECK
from etl_dagster.integrations.dagster.checks.lag import LagVerdict, judge
from etl_dagster.integrations.dagster.findings import Finding
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.said import EVENTS_PER_TICK, Sayings, refresh_s
from etl_dagster.integrations.dagster.tables.metadata import odd_metadata
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

#: New numbers of a table that gets such values all the time are sent this often.
_NUMBERS_EVERY_S = 300.0


@dataclass(frozen=True)
class Held:
    """The outcome of the check for one table."""

    passed: bool
    words: str
    #: Values that the column's type can't hold, by column.
    counts: Mapping[str, int] = field(default_factory=dict)
    #: Rows that are kept apart from the table because of such values.
    quarantined: int = 0
    #: Why nothing is known; empty if the values were counted.
    unknown: str = ""
    #: Whether there are more such values than allowed; else the check warns, since nothing is lost.
    is_severe: bool = False

    @property
    def outcome(self) -> tuple[bool, bool, frozenset[str], str]:
        """What a reader notices at once; equal if only numbers differ."""
        return self.passed, self.is_severe, frozenset(self.counts), self.unknown

    def evaluation(self, key: AssetKey) -> AssetCheckEvaluation:
        """The outcome as an event outside of runs."""
        return self._finding.evaluation(ODD_CHECK, key)

    def result(self, key: AssetKey) -> AssetCheckResult:
        """The outcome as a step returns it."""
        return self._finding.result(ODD_CHECK, key)

    @property
    def _finding(self) -> Finding:
        facts = odd_metadata(self.counts, self.quarantined)
        return Finding(self.passed, self.words, self.is_severe, facts)


def held(
    table: TableStatus | None,
    stream: LagVerdict,
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
) -> Held:
    """The outcome for a table as the pipeline last published it.

    Args:
        table: None if the pipeline has not seen the table.
        stream: the verdict on the table's stream. If the stream has ended, nothing is known of the
            values that it would bring.
    """
    if stream.is_dead:
        return not_known(stream.kind, stream.words)
    if table is None:
        words = "The pipeline has not seen this table. Is it in the publication?"
        return Held(False, words, unknown=words)
    if table.odd_values is None:
        return not_known("counted", "The values are not counted yet.")
    counts = dict(table.odd_values)
    if not counts:
        return Held(True, "The types of the columns can hold every value.")
    of_each = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
    rows = table.rows_quarantined
    apart = f"; {rows:,} rows with such a value are in quarantine" if rows else ""
    words = with_solution(
        f"Values that the column's type can't hold: {of_each}{apart}",
        f"Find them with `{command(None, 'odd', table.name)}`, or set odd_values of the column.",
    )
    most = thresholds.odd_values_error
    is_severe = most is not None and sum(counts.values()) > most
    return Held(False, words, counts, rows, is_severe=is_severe)


def not_known(kind: str, words: str) -> Held:
    """The outcome if nothing streams, or if the state store can't be reached.

    Args:
        kind: the same for outcomes that differ in numbers and times only.
    """
    words = f"It is not known whether the types of the columns can hold every value. {words}"
    return Held(False, words, unknown=kind)


class OddReports:
    """What the sensor has reported about the checks of one pipeline; kept in the code server's
    process."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._said = Sayings[Held]()

    def settle(self, is_stored: bool) -> None:
        """As `Sayings.settle`."""
        self._said.settle(is_stored)

    def due(
        self,
        status: PipelineStatus,
        keys: Mapping[str, AssetKey],
        *,
        again: Collection[str] = (),
        thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
    ) -> list[AssetCheckEvaluation]:
        """The evaluations to send: of a new outcome, or because the last ones are old.

        A table that is being copied, or whose values are not counted yet, keeps its last
        evaluation.

        Args:
            again: tables whose last evaluation Dagster no longer shows.
        """
        self._said.forget(again)
        found: dict[str, Held] = {}
        for name in keys.keys() & status.tables.keys():
            table = status.tables[name]
            stream = judge(status, table, now=self._wall_clock())
            is_known = table.state in ("ready", "errored") and table.odd_values is not None
            if stream.is_dead or (is_known and status.phase != "starting"):
                found[name] = held(table, stream, thresholds)
        return self._say(found, keys, EVENTS_PER_TICK)

    def dead(
        self,
        stream: LagVerdict,
        keys: Mapping[str, AssetKey],
        *,
        at_most: int = EVENTS_PER_TICK,
    ) -> list[AssetCheckEvaluation]:
        """The checks of a pipeline that does not stream, unless they were sent already."""
        return self._say(dict.fromkeys(keys, held(None, stream)), keys, at_most)

    def _say(
        self, found: Mapping[str, Held], keys: Mapping[str, AssetKey], at_most: int
    ) -> list[AssetCheckEvaluation]:
        now = self._clock()
        longest_s = refresh_s(len(keys))
        news = [
            name
            for name in keys
            if name in found and self._is_news(name, found[name], now, longest_s)
        ]
        # Tables that have waited longest come first.
        news.sort(key=self._said_at)
        for name in news[:at_most]:
            self._said.say(name, found[name], now)
        return [found[name].evaluation(keys[name]) for name in news[:at_most]]

    def _said_at(self, name: str) -> float:
        said = self._said.stored(name)
        return float("-inf") if said is None else said.at

    def _is_news(self, name: str, found: Held, now: float, longest_s: float) -> bool:
        said = self._said.newest(name)
        if said is None or said.outcome.outcome != found.outcome or now - said.at >= longest_s:
            return True
        return said.outcome.counts != found.counts and now - said.at >= _NUMBERS_EVERY_S
