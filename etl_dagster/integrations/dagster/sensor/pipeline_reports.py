"""When the sensor reports what the checks of a pipeline as a whole found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from dagster import AssetCheckEvaluation

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.checks.all_shards import Found, with_other_shards
from etl_dagster.integrations.dagster.checks.lag import LagVerdict, judge_dead
from etl_dagster.integrations.dagster.checks.pipeline_asset import PipelineChecks
from etl_dagster.integrations.dagster.checks.pipeline_checks import judge_pipeline, judge_stopped
from etl_dagster.integrations.dagster.checks.slot_look import SlotLook
from etl_dagster.integrations.dagster.findings import Finding
from etl_dagster.integrations.dagster.said import Sayings
from etl_dagster.runtime.showing.status import PipelineStatus

#: A look costs source and store a few queries; it comes sooner while something doesn't pass.
_LOOK_EVERY_S, _LOOK_AGAIN_S = 300.0, 60.0
#: Dagster keeps every event for good, so an unchanged result is sent once an hour. That its age
#: stays below this shows that the sensor runs.
SAY_EVERY_S = 3600.0


class PipelineReports:
    """What the sensor has reported of a pipeline's checks; belongs to the code server's process."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._said = Sayings[Finding]()
        self._look_at = float("-inf")
        self._was_dead = False
        self._has_unstored = False

    def settle(self, is_stored: bool) -> None:
        """As `Sayings.settle`."""
        self._said.settle(is_stored)
        if self._has_unstored and not is_stored:
            # What was not stored is reported with the next look, which is due now.
            self._look_at = float("-inf")
        self._has_unstored = False

    def due(
        self,
        checks: PipelineChecks,
        config: PipelineConfig,
        status: PipelineStatus,
        look: Callable[[PipelineConfig], SlotLook],
        ask_shard: Callable[[str], Found],
    ) -> list[AssetCheckEvaluation]:
        """The evaluations that differ from the last ones, or repeat those that are old.

        The checks are evaluated every few minutes, more often while one doesn't pass, and at once
        when the stream has ended or continues again. Nothing is reported while it starts.

        Args:
            look: looks at the slots.
            ask_shard: returns what the checks of another shard find now, by its name.
        """
        stopped = judge_dead(status, now=self._wall_clock())
        if stopped is not None:
            return self.dead(checks, stopped)
        now = self._clock()
        is_soon = self._was_dead and status.phase == "streaming"
        if status.phase == "starting" or (now < self._look_at and not is_soon):
            return []
        self._was_dead = False
        looked: SlotLook | EtlError
        try:
            looked = look(config)
        except EtlError as error:
            looked = error
        found = judge_pipeline(status, None, looked, checks.thresholds)
        found = with_other_shards(config, found, ask_shard)
        is_well = all(each.passed for each in found.values())
        self._look_at = now + (_LOOK_EVERY_S if is_well else _LOOK_AGAIN_S)
        return self._say(checks, found)

    def dead(self, checks: PipelineChecks, stopped: LagVerdict) -> list[AssetCheckEvaluation]:
        """The failed checks of a pipeline that does not stream, unless they were reported."""
        self._was_dead = True
        return self._say(checks, judge_stopped(stopped))

    def _say(
        self, checks: PipelineChecks, found: Mapping[str, Finding]
    ) -> list[AssetCheckEvaluation]:
        now = self._clock()
        events = []
        for name, finding in found.items():
            said = self._said.newest(name)
            is_same = said is not None and said.outcome.outcome == finding.outcome
            if said is None or not is_same or now - said.at >= SAY_EVERY_S:
                self._said.say(name, finding, now)
                events.append(finding.evaluation(name, checks.key))
                self._has_unstored = True
        return events
