"""The check `content_match`: rows at the destination are those of the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dagster import AssetChecksDefinition, AssetsDefinition, AssetSpec

from etl_dagster.integrations.dagster.assets.specs import keys_by_table
from etl_dagster.integrations.dagster.checks.table_checks import build_table_checks
from etl_dagster.integrations.dagster.findings import Finding
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate

CONTENT_CHECK = "content_match"


def build_etl_content_checks(
    pipeline: str | Path | EtlResource, assets: Iterable[AssetsDefinition | AssetSpec]
) -> list[AssetChecksDefinition]:
    """The check ``content_match`` of each table that can be compared.

    It reads all rows of both sides, by keyed hashes, while the pipeline streams. So it is not part
    of `build_etl_checks`. A run evaluates it: by hand, or of `build_reconciliation_schedule`. It
    warns if a table could not be compared, for example because nothing streams. It fails if rows
    differ, with the ranges of keys in which they do. Tables in other modes than ``mirror`` don't
    have this check.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources. The checks
            need a resource of the pipeline's name.
        assets: those of the pipeline's tables; others are ignored.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    _, config = locate(pipeline)
    keys = keys_by_table(assets, config.pipeline)
    return build_table_checks(
        config.pipeline,
        CONTENT_CHECK,
        "The rows at the destination are those of the source, at one position.",
        {table: key for table, key in keys.items() if config.mode_of(table) == "mirror"},
        _find,
        step="content",
    )


def _find(resource: EtlResource, names: list[str]) -> Iterator[tuple[str, Finding]]:
    from etl_dagster.integrations.dagster.checks.comparisons import compare_tables

    for compared in compare_tables(resource, names, skips_unknown=True):
        yield compared.name, compared.finding
