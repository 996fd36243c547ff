"""Checks of single tables that a run evaluates: one step for many tables, an outcome for each."""

# Dagster reads the annotations of a check's function, so they must not be strings.
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSpec,
    AssetKey,
    multi_asset_check,
)

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.findings import Finding, not_looked
from etl_dagster.integrations.dagster.names import groups_with_distinct_identifiers
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource

#: Finds the outcome for each of the named tables that the pipeline has, in any order.
Finds: TypeAlias = Callable[[EtlResource, list[str]], Iterator[tuple[str, Finding]]]


def build_table_checks(
    pipeline: str,
    check_name: str,
    description: str,
    keys: Mapping[str, AssetKey],
    find: Finds,
    *,
    step: str,
) -> list[AssetChecksDefinition]:
    """The check of each table; what can't be examined fails its check, and not the run.

    Args:
        keys: the asset of each table, by ``schema.table``.
        step: the steps are called ``PIPELINE_STEP``, and ``PIPELINE_STEP_2`` and so on.
    """
    table_of = {key: table for table, key in keys.items()}

    def build(name: str, group: Iterable[AssetKey]) -> AssetChecksDefinition:
        @multi_asset_check(
            specs=[AssetCheckSpec(check_name, asset=key, description=description) for key in group],
            name=name,
            required_resource_keys={pipeline},
            can_subset=True,
        )
        def check(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
            resource = getattr(context.resources, pipeline)
            wanted = {
                table_of[each.asset_key]: each.asset_key
                for each in context.selected_asset_check_keys
            }
            try:
                for table, finding in find(resource, list(wanted)):
                    yield _result(context, finding, check_name, wanted.pop(table))
            except EtlError as error:
                left = not_looked("Not compared", error)
            else:
                left = Finding(False, "The pipeline has not seen this table yet.", kind="unseen")
            for key in wanted.values():
                yield _result(context, left, check_name, key)

        return check

    groups = groups_with_distinct_identifiers(keys.values())
    return [
        build(f"{pipeline}_{step}" + (f"_{number}" if number > 1 else ""), group)
        for number, group in enumerate(groups, 1)
    ]


def _result(
    context: AssetCheckExecutionContext, finding: Finding, check_name: str, key: AssetKey
) -> AssetCheckResult:
    """The outcome, also stored so that it stays visible while the stream reports the table.

    Dagster hides a run's evaluation once the asset is materialized outside of that run. The
    stream's reports are outside of runs. So the evaluation is stored outside of runs as well,
    where these reports don't hide it.
    """
    context.instance.report_runless_asset_event(finding.evaluation(check_name, key))
    return finding.result(check_name, key)
