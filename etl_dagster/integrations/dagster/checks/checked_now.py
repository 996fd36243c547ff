"""The sensor's checks, evaluated by a step: by hand, by a schedule, or after a copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dagster import AssetCheckResult, AssetKey

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.checks import bookmark_check, coming, lag, odd_check
from etl_dagster.integrations.dagster.checks.check_names import BOOKMARK_CHECK
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds


def check_lag(
    resource: EtlResource,
    keys: Mapping[str, AssetKey],
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
) -> Iterator[AssetCheckResult]:
    """Whether each table is in step, and whether the next start copies it again.

    What can't be examined fails its check, and not the run.
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
    """Which columns have values that their type can't hold.

    What can't be examined fails its check, and not the run.
    """
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
    """Whether each table's Meltano state and the slot agree.

    What can't be examined fails its check, and not the run.
    """
    if not keys:
        return
    try:
        config = resource.load_config()
    except EtlError as error:
        for key in keys.values():
            yield bookmark_check.unknown(error).result(BOOKMARK_CHECK, key)
        return
    compared = bookmark_check.look(resource, keys)
    for table, key in keys.items():
        yield bookmark_check.result(config, table, key, compared[table])
