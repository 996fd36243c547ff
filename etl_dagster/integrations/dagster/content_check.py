"""The check `content_match`: rows at the destination are those of the source."""

# Dagster reads the annotations of a check's function, so they must not be strings.
from collections.abc import Iterable, Iterator
from pathlib import Path

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    multi_asset_check,
)

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.located import locate
from etl_dagster.integrations.dagster.names import groups_with_distinct_identifiers
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources import EtlResource
from etl_dagster.integrations.dagster.specs import keys_by_table

CONTENT_CHECK = "content_match"
_DESCRIPTION = "The rows at the destination are those of the source, at one position."


def build_etl_content_checks(
    pipeline: str | Path | EtlResource, assets: Iterable[AssetsDefinition | AssetSpec]
) -> list[AssetChecksDefinition]:
    """The check ``content_match`` of each table that can be compared.

    It reads both sides as a whole, by keyed hashes, while the pipeline streams; so it is not part
    of `build_etl_checks`. A run evaluates it: by hand, or of `build_reconciliation_schedule`. It
    warns where a table could not be compared, as where nothing streams; and fails where rows
    differ. Tables in other modes than ``mirror`` have none.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources. The checks
            need a resource of the pipeline's name.
        assets: those of the pipeline's tables; others are ignored.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    _, config = locate(pipeline)
    keys = {
        table: key
        for table, key in keys_by_table(assets, config.pipeline).items()
        if config.mode_of(table) == "mirror"
    }
    table_of = {key: table for table, key in keys.items()}
    resource_key = config.pipeline

    def build(name: str, group: Iterable[AssetKey]) -> AssetChecksDefinition:
        @multi_asset_check(
            specs=[
                AssetCheckSpec(CONTENT_CHECK, asset=key, description=_DESCRIPTION) for key in group
            ],
            name=name,
            required_resource_keys={resource_key},
            can_subset=True,
        )
        def compare(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
            from etl_dagster.integrations.dagster.comparisons import compare_tables

            resource = getattr(context.resources, resource_key)
            wanted = {
                table_of[check.asset_key]: check.asset_key
                for check in context.selected_asset_check_keys
            }
            try:
                for compared in compare_tables(resource, list(wanted)):
                    yield compared.result(CONTENT_CHECK, wanted.pop(compared.name))
            except EtlError as error:
                words = with_solution(f"Not compared: {error.reason}", error.solution)
                for key in wanted.values():
                    yield AssetCheckResult(
                        asset_key=key,
                        check_name=CONTENT_CHECK,
                        passed=False,
                        severity=AssetCheckSeverity.WARN,
                        description=words,
                    )

        return compare

    groups = groups_with_distinct_identifiers(keys.values())
    return [
        build(f"{config.pipeline}_content" + (f"_{number}" if number > 1 else ""), group)
        for number, group in enumerate(groups, 1)
    ]
