"""The check `row_count_match`: both sides have as many rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dagster import AssetChecksDefinition, AssetsDefinition, AssetSpec

from etl_dagster.integrations.dagster.assets.specs import keys_by_table
from etl_dagster.integrations.dagster.checks.table_checks import build_table_checks
from etl_dagster.integrations.dagster.findings import Finding
from etl_dagster.integrations.dagster.outcome import interruptibly
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds

if TYPE_CHECKING:
    from etl_dagster.runtime.comparing.counts import CountOutcome

COUNT_CHECK = "row_count_match"


def build_etl_count_checks(
    pipeline: str | Path | EtlResource,
    assets: Iterable[AssetsDefinition | AssetSpec],
    *,
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
) -> list[AssetChecksDefinition]:
    """The check ``row_count_match`` of each table that can be counted on both sides.

    The source counts its rows under one snapshot, while the pipeline streams; changes made
    meanwhile are taken into account. So it costs less than ``content_match``, and finds less.
    Tables in other modes than ``mirror``, or with a condition or a hook, don't have this check.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources. The checks
            need a resource of the pipeline's name.
        assets: those of the pipeline's tables; others are ignored.
        thresholds: by how many rows the counts may differ; by default, every difference fails.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    _, config = locate(pipeline)

    def is_counted(table: str) -> bool:
        settings = config.table(table)
        return config.mode_of(table) == "mirror" and not (settings.where or settings.hook)

    keys = keys_by_table(assets, config.pipeline)
    return build_table_checks(
        config.pipeline,
        COUNT_CHECK,
        "The destination has as many rows as the source.",
        {table: key for table, key in keys.items() if is_counted(table)},
        partial(_find, thresholds=thresholds),
        step="counts",
    )


def _find(
    resource: EtlResource, names: list[str], *, thresholds: CheckThresholds
) -> Iterator[tuple[str, Finding]]:
    from etl_dagster.integrations.dagster.checks.comparisons import opened
    from etl_dagster.runtime.comparing.counts import count_tables

    with opened(resource) as parts:
        wanted = parts.table_ids(names, skips_unknown=True)
        counted = interruptibly(
            lambda stop: list(
                count_tables(parts.config, parts.store, parts.destination, wanted, stop=stop)
            )
        )
    for each in counted:
        yield each.name, count_finding(each, thresholds)


def count_finding(counted: CountOutcome, thresholds: CheckThresholds) -> Finding:
    """The outcome of the check for one table."""
    counts = counted.counts
    if counts is None:
        return Finding(False, f"Not counted: {counted.why_not}.", facts={"result": "not counted"})
    off = counts.off
    facts = {
        "result": "different" if off else "equal",
        "lsn": str(counts.lsn),
        "source_rows": counts.source_rows,
        "destination_rows": counts.destination_rows,
        "rows_off": off,
        "changed_meanwhile": counts.most != counts.fewest,
    }
    if counts.fewest == counts.most:
        here = f"{counts.most:,} in the source, as of {counts.lsn}"
    else:
        here = (
            f"between {counts.fewest:,} and {counts.most:,} in the source, where it changed "
            f"since {counts.lsn}"
        )
    numbers = f"{counts.destination_rows:,} rows at the destination, {here}"
    if not off:
        return Finding(True, f"{numbers}.", facts=facts)
    what = f"{abs(off):,} rows " + ("too many" if off > 0 else "missing")
    passed, is_severe = abs(off) <= thresholds.rows_warn, abs(off) > thresholds.rows_error
    if bound := thresholds.rows_error if is_severe else thresholds.rows_warn:
        what += f", {'not ' if passed else ''}more than {bound:,}"
    words = with_solution(
        f"{numbers}: {what}",
        "Run the pipeline's repair job, or `etl-dagster repair`, which replaces what differs.",
    )
    return Finding(passed, words, is_severe=is_severe, facts=facts)
