"""The check that compares a table's Meltano bookmark with the source's slot."""

# Dagster reads the annotations of a check's function, so they must not be strings.
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    Failure,
    MetadataValue,
    multi_asset_check,
)

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.names import groups_with_distinct_identifiers
from etl_dagster.integrations.dagster.translator import STATE_ID
from etl_dagster.integrations.meltano.positions.comparison import Comparison, compare_bookmarks

BOOKMARK_CHECK = "meltano_bookmark_in_step"
#: It costs the source a query, and the states another.
_EVERY_S, _SOON_S = 60.0, 3.0
#: The daemon writes events one at a time, some 20 ms each.
_EVENTS_PER_TICK = 25


def build_bookmark_checks(
    pipeline: str, resource_key: str, keys: Mapping[str, AssetKey]
) -> list[AssetChecksDefinition]:
    """The check of every table, as one step where possible: for the UI's button, for a schedule.

    The sensor evaluates it, too, and tells when the outcome is another.
    """
    groups = groups_with_distinct_identifiers(keys.values())
    return [
        _build_bookmark_check(pipeline, resource_key, keys, group, number)
        for number, group in enumerate(groups, 1)
    ]


def _build_bookmark_check(
    pipeline: str,
    resource_key: str,
    keys: Mapping[str, AssetKey],
    group: Sequence[AssetKey],
    number: int,
) -> AssetChecksDefinition:
    name = f"{pipeline}_{BOOKMARK_CHECK}"
    specs = [
        AssetCheckSpec(
            BOOKMARK_CHECK,
            asset=key,
            description="The position that Meltano shows and the slot's are the same story.",
        )
        for key in group
    ]

    @multi_asset_check(
        specs=specs,
        name=name if number == 1 else f"{name}_{number}",
        required_resource_keys={resource_key},
        can_subset=True,
    )
    def check_bookmarks(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
        config = getattr(context.resources, resource_key).load_config()
        try:
            compared = compare_tables(config, keys)
        except EtlError as error:
            raise Failure(
                description=f"{error.reason}\n\nWhat to do: {error.solution}",
                metadata={"solution": error.solution},
            ) from error
        wanted = {check.asset_key for check in context.selected_asset_check_keys}
        for table, key in keys.items():
            if key in wanted:
                yield AssetCheckResult(
                    check_name=BOOKMARK_CHECK,
                    asset_key=key,
                    passed=compared[table].passed,
                    severity=_severity(compared[table]),
                    description=compared[table].words,
                    metadata=_metadata(config.state_id(table), compared[table]),
                )

    return check_bookmarks


def compare_tables(
    config: PipelineConfig, keys: Mapping[str, AssetKey]
) -> Mapping[str, Comparison]:
    compared = compare_bookmarks(config, {table: config.state_id(table) for table in keys})
    if compared is None:
        off = Comparison(True, False, "Positions of this pipeline are not mirrored.")
        return dict.fromkeys(keys, off)
    return compared


class BookmarkReports:
    """What the sensor has said of one pipeline's checks; belongs to the code server's process."""

    def __init__(self) -> None:
        self._looked_at = float("-inf")
        self._said: dict[str, tuple[bool, bool]] = {}

    def due(
        self, config: PipelineConfig, keys: Mapping[str, AssetKey]
    ) -> list[AssetCheckEvaluation]:
        """The evaluations whose outcome is another than the last one's.

        Looked at once a minute, and soon for a table that nothing was said of. A source or states
        that can't be reached have errors of their own elsewhere.
        """
        now = time.monotonic()
        pause_s = _SOON_S if keys.keys() - self._said.keys() else _EVERY_S
        if not keys or now < self._looked_at + pause_s:
            return []
        self._looked_at = now
        try:
            compared = compare_tables(config, keys)
        except EtlError:
            return []
        news = [
            table
            for table, comparison in compared.items()
            if self._said.get(table) != (comparison.passed, comparison.is_severe)
        ][:_EVENTS_PER_TICK]
        for table in news:
            self._said[table] = compared[table].passed, compared[table].is_severe
        return [
            AssetCheckEvaluation(
                asset_key=keys[table],
                check_name=BOOKMARK_CHECK,
                passed=compared[table].passed,
                severity=_severity(compared[table]),
                description=compared[table].words,
                metadata=_metadata(config.state_id(table), compared[table]),
            )
            for table in news
        ]


_reports: dict[str, BookmarkReports] = {}
_reports_lock = threading.Lock()


def bookmark_reports_of(pipeline: str) -> BookmarkReports:
    with _reports_lock:
        return _reports.setdefault(pipeline, BookmarkReports())


def _severity(comparison: Comparison) -> AssetCheckSeverity:
    return AssetCheckSeverity.ERROR if comparison.is_severe else AssetCheckSeverity.WARN


def _metadata(state_id: str, comparison: Comparison) -> dict[str, MetadataValue]:
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
