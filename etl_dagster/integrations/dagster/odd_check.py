"""Whether the types of a table's columns hold every value: the check `values_held`."""

from __future__ import annotations

from dagster import AssetCheckResult, AssetCheckSeverity, AssetKey, MetadataValue

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.lag import with_solution
from etl_dagster.runtime.status import TableStatus

ODD_CHECK = "values_held"


def result(table: TableStatus | None, key: AssetKey) -> AssetCheckResult:
    """The outcome for a table as the pipeline last published it; None: it has not seen it."""
    counts = {} if table is None else dict(table.odd_values or {})
    if table is None:
        words = "The pipeline has not seen this table: is it in the publication?"
    elif counts:
        of_each = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
        words = with_solution(
            f"Values that the column's type can't hold: {of_each}",
            f"Find them with `etl-dagster odd {table.name}`, or set odd_values of the column.",
        )
    else:
        words = "Every value is held by the type of its column."
    return AssetCheckResult(
        asset_key=key,
        check_name=ODD_CHECK,
        passed=table is not None and not counts,
        severity=AssetCheckSeverity.WARN,
        description=words,
        metadata={"odd_values": MetadataValue.json(counts)} if counts else {},
    )


def unknown(error: EtlError, key: AssetKey) -> AssetCheckResult:
    """The outcome where the state store can't be asked."""
    words = f"The state of the pipeline is not known: {error.reason}"
    return AssetCheckResult(
        asset_key=key,
        check_name=ODD_CHECK,
        passed=False,
        severity=AssetCheckSeverity.WARN,
        description=with_solution(words, error.solution),
    )
