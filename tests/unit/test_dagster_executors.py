"""Which runs stay in one process."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from dagster import Executor

from etl_dagster.integrations.dagster.copies.executors import _Chosen


class Named(Executor):
    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def retries(self) -> Any:
        return self.name

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        yield self.name


def plan(*names: str) -> Any:
    steps = [SimpleNamespace(node_handle=SimpleNamespace(name=name)) for name in names]
    return SimpleNamespace(steps=steps)


@pytest.mark.parametrize(
    ("steps", "chosen"),
    [
        (["copy_orders"], "one"),
        (["copy_orders", "shop_checks"], "one"),
        (["shop_checks"], "one"),
        (["copy_orders", "copy_customers", "shop_checks"], "default"),
        (["copy_orders", "foreign"], "default"),
    ],
)
def test_a_run_of_one_copy_and_checks_stays_in_one_process(steps: list[str], chosen: str) -> None:
    executor = _Chosen(
        Named("default"), Named("one"), {"copy_orders", "copy_customers"}, {"shop_checks"}
    )
    assert list(executor.execute(cast(Any, None), plan(*steps))) == [chosen]
    assert cast(Any, executor.retries) == "default"
