"""A destination whose rows can't be counted costs the count, and nothing else of the status."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from etl_dagster.errors import DestinationError
from etl_dagster.runtime.showing.metrics import Metrics
from etl_dagster.runtime.showing.reporter import Reporter


class _Counting:
    def __init__(self) -> None:
        self.failure: Exception | None = None

    def count_rows(self) -> dict[str, int]:
        if self.failure is not None:
            raise self.failure
        return {"public.orders": 3}


def _reporter(metrics: Metrics, destination: _Counting) -> Reporter:
    nothing: Any = SimpleNamespace(
        publish_status=lambda key, status: None,
        get_table_schema=lambda table_id, lsn: None,
        tables={1: SimpleNamespace(schema=SimpleNamespace(target="public.orders"))},
    )
    return Reporter(
        nothing,
        nothing,
        cast(Any, destination),
        nothing,
        metrics,
        nothing,
        nothing,
        slot_name=str,
    )


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (DestinationError("table orders does not exist"), "table orders does not exist"),
        (RuntimeError("a value"), "RuntimeError"),
    ],
)
def test_a_count_that_fails_is_reported_once_and_retried(
    failure: Exception, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, destination = Metrics(), _Counting()
    destination.failure = failure
    reporter = _reporter(metrics, destination)

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            reporter._count_rows(destination, [1])
    assert [each.message for each in caplog.records] == [
        f"cannot count the rows at the destination: {shown}"
    ]

    destination.failure = None
    reporter._count_rows(destination, [1])
    assert metrics.table(1).row_count == 3
