"""The checks of every table, as a step that can run without a copy."""

# Dagster reads the annotations of a check's function, so they must not be strings.
from collections.abc import Iterator, Mapping, Sequence

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSpec,
    AssetKey,
    multi_asset_check,
)

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster import bookmark_check, coming, lag, odd_check
from etl_dagster.integrations.dagster.bookmark_check import BOOKMARK_CHECK
from etl_dagster.integrations.dagster.lag import LAG_CHECK
from etl_dagster.integrations.dagster.names import groups_with_distinct_identifiers
from etl_dagster.integrations.dagster.odd_check import ODD_CHECK
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds

_DESCRIPTIONS = {
    LAG_CHECK: "Changes of the source arrive at the destination in time.",
    ODD_CHECK: "Every value is held by the type of its column.",
    BOOKMARK_CHECK: "The position that Meltano shows and the slot's are the same story.",
}


def build_checks(
    pipeline: str,
    resource_key: str,
    keys: Mapping[str, AssetKey],
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
) -> list[AssetChecksDefinition]:
    """The checks of every table: for the UI's button, for a schedule, for a run of the sensor.

    The sensor evaluates them, too, and reports when the outcome is another.

    Args:
        keys: the asset of each table, by ``schema.table``.
    """
    groups = groups_with_distinct_identifiers(keys.values())
    names = [f"{pipeline}_checks", *(f"{pipeline}_checks_{n}" for n in range(2, len(groups) + 1))]
    return [
        _build_group(name, resource_key, keys, group, thresholds)
        for name, group in zip(names, groups, strict=False)
    ]


def _build_group(
    name: str,
    resource_key: str,
    keys: Mapping[str, AssetKey],
    group: Sequence[AssetKey],
    thresholds: CheckThresholds,
) -> AssetChecksDefinition:
    table_of = {key: table for table, key in keys.items()}

    @multi_asset_check(
        specs=[
            AssetCheckSpec(check_name, asset=key, description=description)
            for key in group
            for check_name, description in _DESCRIPTIONS.items()
        ],
        name=name,
        required_resource_keys={resource_key},
        can_subset=True,
    )
    def check_tables(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
        resource = getattr(context.resources, resource_key)
        wanted: dict[str, dict[str, AssetKey]] = {name: {} for name in _DESCRIPTIONS}
        for check in context.selected_asset_check_keys:
            wanted[check.name][table_of[check.asset_key]] = check.asset_key
        yield from check_lag(resource, wanted[LAG_CHECK], thresholds)
        yield from check_odd_values(resource, wanted[ODD_CHECK], thresholds)
        yield from check_bookmarks(resource, wanted[BOOKMARK_CHECK])

    return check_tables


def check_lag(
    resource: EtlResource,
    keys: Mapping[str, AssetKey],
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
) -> Iterator[AssetCheckResult]:
    """Whether each table is in step, and whether the next start copies it again.

    What can't be looked at fails its check, and not the run.
    """
    if not keys:
        return
    try:
        config = resource.load_config()
        published = lag.published(resource)
    except EtlError as error:
        for key in keys.values():
            yield lag.unknown(error).result(key)
        return
    found = coming.find_coming(config)
    for table, key in keys.items():
        verdict = published.verdict(config.pipeline, table, thresholds)
        yield coming.announced(verdict, found.get(table)).result(key)


def check_odd_values(
    resource: EtlResource,
    keys: Mapping[str, AssetKey],
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
) -> Iterator[AssetCheckResult]:
    """Which columns have values that their type can't hold."""
    if not keys:
        return
    try:
        config = resource.load_config()
        published = lag.published(resource)
    except EtlError as error:
        unknown = odd_check.not_known("unknown", lag.unknown(error).words)
        for key in keys.values():
            yield unknown.result(key)
        return
    tables = {} if published.status is None else published.status.tables
    for table, key in keys.items():
        stream = published.verdict(config.pipeline, table)
        yield odd_check.held(tables.get(table), stream, thresholds).result(key)


def check_bookmarks(
    resource: EtlResource, keys: Mapping[str, AssetKey]
) -> Iterator[AssetCheckResult]:
    """Whether each table's Meltano state and the slot agree."""
    if not keys:
        return
    config = resource.load_config()
    compared = bookmark_check.look(resource, keys)
    for table, key in keys.items():
        yield bookmark_check.result(config, table, key, compared[table])
