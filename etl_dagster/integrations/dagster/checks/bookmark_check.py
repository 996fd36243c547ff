"""The check that compares a table's Meltano bookmark with the source's slot."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from dagster import AssetCheckEvaluation, AssetCheckResult, AssetKey, MetadataValue

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.checks import lag
from etl_dagster.integrations.dagster.checks.check_names import BOOKMARK_CHECK
from etl_dagster.integrations.dagster.findings import Finding
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.said import EVENTS_PER_TICK, Sayings, refresh_s
from etl_dagster.integrations.dagster.tables.translator import STATE_ID
from etl_dagster.integrations.meltano.positions.compared import BookmarkComparison

#: How often positions are compared, which costs the source a query, and the states another.
_EVERY_S, _SOON_S = 60.0, 3.0
#: A table's first state is written a moment after its hand-over; a check in a run waits this long.
_FIRST_STATE_S, _POLL_S = 10.0, 0.2
#: What a reader notices at once; see `_outcome`.
_Outcome = tuple[bool, bool, bool, str]


def compare_tables(
    config: PipelineConfig, keys: Mapping[str, AssetKey]
) -> Mapping[str, BookmarkComparison]:
    from etl_dagster.integrations.meltano.positions.comparison import compare_bookmarks

    compared = compare_bookmarks(config, {table: config.state_id(table) for table in keys})
    if compared is None:
        off = BookmarkComparison(True, False, "Positions of this pipeline are not mirrored.")
        return dict.fromkeys(keys, off)
    return compared


def look(
    resource: EtlResource,
    keys: Mapping[str, AssetKey],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    published: Callable[[EtlResource], lag.Published] = lag.published,
    compare: Callable[
        [PipelineConfig, Mapping[str, AssetKey]], Mapping[str, BookmarkComparison]
    ] = compare_tables,
) -> Mapping[str, BookmarkComparison]:
    """The outcome of each table's check now, whichever process runs the pipeline.

    No check passes while nothing streams. What can't be examined fails its check, and not the run.
    """
    config = resource.load_config()
    try:
        seen = published(resource)
        stopped = seen.dead_verdict(config.pipeline)
        if stopped is not None:
            return dict.fromkeys(keys, _stands_still(stopped.words))
        until = clock() + _FIRST_STATE_S
        while True:
            compared = compare(config, keys)
            is_whole = all(each.has_state for each in compared.values())
            if is_whole or clock() >= until:
                return compared
            sleep(_POLL_S)
    except EtlError as error:
        return dict.fromkeys(keys, not_comparable(error))


def _stands_still(why: str) -> BookmarkComparison:
    return BookmarkComparison(False, True, f"Positions don't advance: {why}")


def not_comparable(error: EtlError) -> BookmarkComparison:
    """The outcome if the source or the states can't be reached."""
    return BookmarkComparison(False, False, _not_comparable(error))


def unknown(error: EtlError) -> Finding:
    """The outcome if the configuration can't be read, so that no state's ID is known."""
    return Finding(False, _not_comparable(error))


def _not_comparable(error: EtlError) -> str:
    return with_solution(f"The positions can't be compared: {error.reason}", error.solution)


def result(
    config: PipelineConfig, table: str, key: AssetKey, compared: BookmarkComparison
) -> AssetCheckResult:
    """The outcome as a step returns it."""
    return _finding(config, table, compared).result(BOOKMARK_CHECK, key)


class BookmarkReports:
    """What the sensor has reported about the checks of one pipeline; kept in the code server's
    process."""

    def __init__(self) -> None:
        self._looked_at = float("-inf")
        self._said = Sayings[_Outcome]()

    def settle(self, is_stored: bool) -> None:
        """As `Sayings.settle`."""
        self._said.settle(is_stored)

    def due(
        self,
        config: PipelineConfig,
        keys: Mapping[str, AssetKey],
        *,
        again: Collection[str] = (),
    ) -> list[AssetCheckEvaluation]:
        """The evaluations to send: of a new outcome, or because the last ones are old.

        Positions are compared once a minute; more often while a table has no evaluation yet.

        Args:
            again: tables whose last evaluation Dagster no longer shows.
        """
        self._said.forget(again)
        now = time.monotonic()
        is_any_new = any(self._said.stored(table) is None for table in keys)
        pause_s = _SOON_S if is_any_new else _EVERY_S
        if not keys or now < self._looked_at + pause_s:
            return []
        self._looked_at = now
        try:
            compared = compare_tables(config, keys)
        except EtlError as error:
            compared = dict.fromkeys(keys, not_comparable(error))
        return self._say(config, compared, keys, EVENTS_PER_TICK)

    def dead(
        self,
        config: PipelineConfig,
        reason: str,
        solution: str,
        keys: Mapping[str, AssetKey],
        *,
        at_most: int = EVENTS_PER_TICK,
    ) -> list[AssetCheckEvaluation]:
        """The failed checks of a pipeline that does not stream, unless they were sent already."""
        compared = dict.fromkeys(keys, _stands_still(with_solution(reason, solution)))
        return self._say(config, compared, keys, at_most, reason)

    def _say(
        self,
        config: PipelineConfig,
        compared: Mapping[str, BookmarkComparison],
        keys: Mapping[str, AssetKey],
        at_most: int,
        reason: str = "",
    ) -> list[AssetCheckEvaluation]:
        now = time.monotonic()
        longest_s = refresh_s(len(keys))
        news = []
        for table, comparison in compared.items():
            said = self._said.newest(table)
            outcome = _outcome(comparison, reason)
            if said is None or said.outcome != outcome or now - said.at >= longest_s:
                news.append(table)
        for table in news[:at_most]:
            self._said.say(table, _outcome(compared[table], reason), now)
        return [
            _finding(config, table, compared[table]).evaluation(BOOKMARK_CHECK, keys[table])
            for table in news[:at_most]
        ]


def _outcome(comparison: BookmarkComparison, reason: str) -> _Outcome:
    """What a reader notices at once, including whether there is a position by now.

    Args:
        reason: why nothing streams; empty if positions were compared.
    """
    has_position = comparison.bookmark_lsn is not None
    return comparison.passed, comparison.is_severe, has_position, reason


def _finding(config: PipelineConfig, table: str, comparison: BookmarkComparison) -> Finding:
    facts = _metadata(config.state_id(table), comparison)
    return Finding(comparison.passed, comparison.words, comparison.is_severe, facts)


def _metadata(state_id: str, comparison: BookmarkComparison) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {STATE_ID: MetadataValue.text(state_id)}
    if comparison.bookmark_lsn is not None:
        metadata["bookmark_lsn"] = MetadataValue.text(str(comparison.bookmark_lsn))
    if comparison.confirmed_lsn is not None:
        metadata["confirmed_lsn"] = MetadataValue.text(str(comparison.confirmed_lsn))
    if comparison.slot_ahead_bytes is not None:
        metadata["slot_ahead_bytes"] = MetadataValue.int(comparison.slot_ahead_bytes)
    if comparison.written_at is not None:
        metadata["state_written_at"] = MetadataValue.timestamp(comparison.written_at)
    return metadata
