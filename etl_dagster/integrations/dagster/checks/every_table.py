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

from etl_dagster.integrations.dagster.checks.check_names import (
    BOOKMARK_CHECK,
    LAG_CHECK,
    ODD_CHECK,
    TABLE_CHECKS,
)
from etl_dagster.integrations.dagster.names import groups_with_distinct_identifiers
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds


def build_checks(
    pipeline: str,
    resource_key: str,
    keys: Mapping[str, AssetKey],
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
) -> list[AssetChecksDefinition]:
    """The checks of every table: for the UI's button, for a schedule, for a run of the sensor.

    The sensor evaluates them, too, and reports each new outcome.

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
            for check_name, description in TABLE_CHECKS.items()
        ],
        name=name,
        required_resource_keys={resource_key},
        can_subset=True,
    )
    def check_tables(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
        from etl_dagster.integrations.dagster.checks.checked_now import (
            check_bookmarks,
            check_lag,
            check_odd_values,
        )

        resource = getattr(context.resources, resource_key)
        wanted: dict[str, dict[str, AssetKey]] = {name: {} for name in TABLE_CHECKS}
        for check in context.selected_asset_check_keys:
            wanted[check.name][table_of[check.asset_key]] = check.asset_key
        yield from check_lag(resource, wanted[LAG_CHECK], thresholds)
        yield from check_odd_values(resource, wanted[ODD_CHECK], thresholds)
        yield from check_bookmarks(resource, wanted[BOOKMARK_CHECK])

    return check_tables
