"""What the checks of single tables say of numbers, columns and ranges."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dagster import (
    AssetCheckKey,
    AssetKey,
    AssetMaterialization,
    AssetSelection,
    AssetSpec,
    DagsterInstance,
    Definitions,
    ResourceDefinition,
    define_asset_job,
)
from dagster._core.loader import LoadingContextForTest

from etl_dagster.errors import TableRewritten
from etl_dagster.integrations.dagster.checks.comparisons import range_facts
from etl_dagster.integrations.dagster.checks.count_check import count_finding
from etl_dagster.integrations.dagster.checks.drift_check import drift_finding
from etl_dagster.integrations.dagster.checks.lag import LagVerdict
from etl_dagster.integrations.dagster.checks.odd_check import held
from etl_dagster.integrations.dagster.checks.table_checks import build_table_checks
from etl_dagster.integrations.dagster.findings import Finding
from etl_dagster.integrations.dagster.thresholds import CheckThresholds
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import DELETE, INSERT, UPDATE
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.comparing.counts import CountOutcome, RowCounts, RowsSince
from etl_dagster.runtime.comparing.drift import Drift, different_columns, different_there
from etl_dagster.runtime.repair_requests import RangeDifference
from etl_dagster.runtime.showing.status import TableStatus
from etl_dagster.testing.changes import PRICES, arrow_rows

DEFAULTS = CheckThresholds()


def told(found: Finding) -> str:
    return "passes" if found.passed else "fails" if found.is_severe else "warns"


def counted(
    here: int, there: int, fewest: int | None = None, most: int | None = None
) -> CountOutcome:
    least, largest = here if fewest is None else fewest, here if most is None else most
    return CountOutcome("public.orders", RowCounts(Lsn(100), here, there, least, largest))


# -- counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "off", "outcome"),
    [
        (counted(10, 10), 0, "passes"),
        (counted(10, 9), -1, "fails"),
        (counted(10, 12), 2, "fails"),
        # The source had as many rows at some moment while the destination was counted.
        (counted(10, 8, fewest=8, most=11), 0, "passes"),
        (counted(10, 7, fewest=8, most=11), -1, "fails"),
        (counted(10, 13, fewest=8, most=11), 2, "fails"),
    ],
)
def test_counts_differ_if_the_source_never_had_so_many_rows(
    found: CountOutcome, off: int, outcome: str
) -> None:
    finding = count_finding(found, DEFAULTS)

    assert (told(finding), finding.facts["rows_off"]) == (outcome, off)


def test_few_rows_too_many_or_missing_may_pass_or_warn() -> None:
    bounds = CheckThresholds(rows_warn=2, rows_error=5)
    assert [told(count_finding(counted(10, n), bounds)) for n in (8, 7, 5, 4, 15, 16)] == [
        "passes",
        "warns",
        "warns",
        "fails",
        "warns",
        "fails",
    ]
    # The text names the bound, for the user who has set it.
    said = [count_finding(counted(10, n), bounds).words.partition("\n")[0] for n in (8, 7, 4)]
    assert [each.partition(": ")[2] for each in said] == [
        "2 rows missing, not more than 2",
        "3 rows missing, more than 2",
        "6 rows missing, more than 5",
    ]


def test_a_table_that_could_not_be_counted_does_not_pass() -> None:
    finding = count_finding(CountOutcome("public.orders", None, "it was truncated"), DEFAULTS)

    assert (told(finding), finding.words) == ("warns", "Not counted: it was truncated.")


def test_the_fewest_and_the_most_rows_are_those_of_any_moment_since() -> None:
    net = RowsSince(PRICES)
    for ops in ([DELETE, DELETE, UPDATE, INSERT], [], [INSERT, INSERT, INSERT], [DELETE]):
        net.count(np.array(ops, np.uint8))

    assert (net.least, net.most) == (-2, 2)


# -- columns ---------------------------------------------------------------------------------------


def test_columns_that_were_added_dropped_renamed_or_altered_are_named() -> None:
    sku, region, price = (
        replace(column, attnum=number) for number, column in enumerate(PRICES.columns, 1)
    )
    known = replace(PRICES, columns=(sku, region, price))
    now = replace(
        PRICES,
        columns=(
            replace(sku, name="article"),
            replace(price, type_oid=25, type_name="text"),
            replace(region, name="country", attnum=9),
        ),
    )
    assert different_columns(known, known) == ()
    assert different_columns(known, now) == (
        "country was added",
        f"price is text, and was {price.type_name}",
        "region is gone",
        "sku is called article",
    )


@pytest.mark.parametrize(
    ("drift", "outcome"),
    [
        (Drift("public.orders", saw_destination=True), "passes"),
        (Drift("public.orders", source=("note was added",)), "warns"),
        (Drift("public.orders", destination=("it has other columns",)), "fails"),
        (Drift("public.orders", why_not="it is not published"), "warns"),
    ],
)
def test_an_alteration_in_the_source_warns_and_one_at_the_destination_fails(
    drift: Drift, outcome: str
) -> None:
    assert told(drift_finding(drift)) == outcome


class Reader:
    """A destination with one table, whose rows the test makes."""

    def __init__(self, rows: pa.RecordBatch | None) -> None:
        self._rows = rows

    @contextmanager
    def read_rows(self, schema: TableSchema) -> Iterator[Iterator[pa.RecordBatch]]:
        def batches() -> Iterator[pa.RecordBatch]:
            if self._rows is None:
                raise TableRewritten("prices has other columns at the destination")
            yield self._rows

        yield batches()

    def as_read(self, schema: TableSchema, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows


def test_a_table_altered_at_the_destination_is_seen_by_its_columns_and_their_types() -> None:
    rows = arrow_rows(PRICES, [{"sku": "a", "region": 1, "price": 2}])
    assert different_there(Reader(rows), PRICES) == ()
    assert different_there(Reader(None), PRICES) == ("prices has other columns at the destination",)
    price = rows.schema.get_field_index("price")
    other = rows.set_column(price, "price", rows.column("price").cast(pa.int64()))
    assert different_there(Reader(other), PRICES) == ("price is int64 there, and not int32",)


# -- ranges, values --------------------------------------------------------------------------------


def test_ranges_that_differ_are_in_the_metadata_and_not_without_bound() -> None:
    ranges = [RangeDifference(number, missing=1, changed=2) for number in range(256)]
    facts = range_facts(ranges)

    assert (facts["ranges_differing"], facts["ranges_in_all"]) == (256, 256)
    records = [record.data for record in facts["ranges"].records]
    assert len(records) == 50
    assert records[3] == {"range": 3, "missing": 1, "extra": 0, "changed": 2}
    assert range_facts([]) == {}


def test_many_odd_values_fail_where_that_is_set() -> None:
    def outcome(thresholds: CheckThresholds, **counts: int) -> Any:
        table = TableStatus(1, "public.orders", "ready", "id", odd_values=counts)
        return held(table, LagVerdict(True, False, "in step", ""), thresholds).outcome[:2]

    assert outcome(DEFAULTS, price=1_000_000) == (False, False)
    bounds = CheckThresholds(odd_values_error=10)
    assert outcome(bounds, price=6, amount=4) == (False, False)
    assert outcome(bounds, price=6, amount=5) == (False, True)


# -- in Dagster's pages ----------------------------------------------------------------------------


def test_an_outcome_stays_visible_while_the_stream_reports_changes() -> None:
    """Dagster's pages hide evaluations that are older than the latest materialization."""
    key = AssetKey(["shop", "public", "orders"])
    found = Finding(False, "1 missing", is_severe=True)
    checks = build_table_checks(
        "shop",
        "content_match",
        "The same rows.",
        {"public.orders": key},
        lambda resource, names: iter([(name, found) for name in names]),
        step="content",
    )
    compare = define_asset_job("compare", AssetSelection.checks(*checks))
    definitions = Definitions(
        assets=[AssetSpec(key)],
        asset_checks=checks,
        jobs=[compare],
        resources={"shop": ResourceDefinition.hardcoded_resource(None)},
    )
    with DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(AssetMaterialization(key, description="a report"))
        definitions.resolve_job_def("compare").execute_in_process(instance=instance)
        instance.report_runless_asset_event(AssetMaterialization(key, description="the next one"))

        check = AssetCheckKey(key, "content_match")
        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([check])[check]
        shown = asyncio.run(latest.targets_latest_materialization(LoadingContextForTest(instance)))
        assert latest.evaluation is not None
        assert (shown, latest.evaluation.description) == (True, "1 missing")
