"""The check `schema_drift`: both sides have the columns that the stream knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import AssetChecksDefinition, AssetsDefinition, AssetSpec

from etl_dagster.integrations.dagster.assets.specs import keys_by_table
from etl_dagster.integrations.dagster.checks.table_checks import build_table_checks
from etl_dagster.integrations.dagster.findings import Finding
from etl_dagster.integrations.dagster.outcome import interruptibly
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate

if TYPE_CHECKING:
    from etl_dagster.runtime.comparing.drift import Drift

DRIFT_CHECK = "schema_drift"


def build_etl_schema_checks(
    pipeline: str | Path | EtlResource, assets: Iterable[AssetsDefinition | AssetSpec]
) -> list[AssetChecksDefinition]:
    """The check ``schema_drift`` of each table; a run evaluates it, also while nothing streams.

    It warns if the source's table was altered and the stream has not brought that yet, which it
    does with the next change of the table. It fails if another process altered the destination's
    table. That can be detected in destinations whose rows can be compared, in mode ``mirror``.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources. The checks
            need a resource of the pipeline's name.
        assets: those of the pipeline's tables; others are ignored.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    _, config = locate(pipeline)
    return build_table_checks(
        config.pipeline,
        DRIFT_CHECK,
        "The table's columns are the same in the source, in the stream and at the destination.",
        keys_by_table(assets, config.pipeline),
        _find,
        step="schemas",
    )


def _find(resource: EtlResource, names: list[str]) -> Iterator[tuple[str, Finding]]:
    from etl_dagster.integrations.dagster.checks.comparisons import opened
    from etl_dagster.runtime.comparing.drift import find_drift

    with opened(resource) as parts:
        wanted = parts.table_ids(names, skips_unknown=True)
        found = interruptibly(
            lambda stop: list(
                find_drift(parts.config, parts.store, parts.destination, wanted, stop=stop)
            )
        )
    for each in found:
        yield each.name, drift_finding(each)


def drift_finding(drift: Drift) -> Finding:
    """The outcome of the check: it names columns and their types, never a value."""
    if drift.why_not is not None:
        return Finding(False, f"Not compared: {drift.why_not}.")
    facts: dict[str, Any] = {"saw_destination": drift.saw_destination}
    if drift.source:
        facts["source"] = list(drift.source)
    if drift.destination:
        facts["destination"] = list(drift.destination)
        words = with_solution(
            f"The destination's table was altered: {'; '.join(drift.destination)}",
            "Undo that, or copy the table again: materialize the asset.",
        )
        return Finding(False, words, is_severe=True, facts=facts)
    if drift.source:
        words = with_solution(
            f"The source's table was altered, and no row changed since: {'; '.join(drift.source)}",
            "No action needed: the alteration arrives with the next change of a row. To have it "
            "now, change a row, or materialize the asset.",
        )
        return Finding(False, words, facts=facts)
    sides = "everywhere" if drift.saw_destination else "in the source and in the stream"
    return Finding(True, f"The columns are the same {sides}.", facts=facts)
