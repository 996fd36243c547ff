"""What a run tells of the destinations that it has brought in step, and of those that failed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from dagster import AssetKey, AssetMaterialization, Failure

from etl_dagster.errors import DestinationTooNew, DestinationUnreachable, EtlError
from etl_dagster.integrations.dagster.jobs.batch_run import Synced, report
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

TABLE = TableStatus(
    table_id=1,
    name="public.orders",
    state="ready",
    state_id="dev:shop-to-duckdb:public.orders",
    row_count=10,
)
STATUS = PipelineStatus("shop__left", "duckdb", "stopped", tables={TABLE.name: TABLE}, at=1000.0)


@pytest.mark.parametrize(
    ("failure", "is_retried"),
    [(DestinationUnreachable("no answer"), True), (DestinationTooNew("version 99"), False)],
)
def test_the_rows_of_other_destinations_are_reported_before_one_fails_the_run(
    failure: EtlError, is_retried: bool
) -> None:
    events: list[AssetMaterialization] = []
    context: Any = SimpleNamespace(
        job_name="shop_sync",
        log=SimpleNamespace(info=lambda message: None),
        log_event=events.append,
    )
    synced = {"left": Synced(STATUS, {1}), "right": Synced(STATUS, (), failure)}
    keys = {name: {TABLE.name: AssetKey([name, "orders"])} for name in synced}

    with pytest.raises(Failure) as raised:
        report(context, synced, keys, 5.0)

    assert [event.asset_key for event in events] == [AssetKey(["left", "orders"])]
    description = raised.value.description or ""
    assert description.startswith(f"right failed: {failure.reason}")
    assert failure.solution in description
    assert raised.value.allow_retries is is_retried


def test_a_destination_that_is_newer_than_the_loaded_code_does_not_fail_the_run() -> None:
    """A run reads etl.yaml again; its assets are those of when the code was loaded."""
    lines: list[str] = []
    context: Any = SimpleNamespace(
        job_name="shop_sync",
        log=SimpleNamespace(info=lines.append),
        log_event=lambda event: pytest.fail("there is no asset for it"),
    )

    report(context, {"new": Synced(STATUS, {1})}, {"old": {TABLE.name: AssetKey("orders")}}, 5.0)

    assert lines == [
        "shop__left: 1 of 1 tables in step, 0 rows streamed, lag 0 bytes; no asset yet (reload the "
        "code location): public.orders"
    ]
