"""The check that warns of values which a column's type can't hold."""

from __future__ import annotations

from dagster import AssetCheckSeverity, AssetKey

from etl_dagster.integrations.dagster.odd_check import ODD_CHECK, result
from etl_dagster.runtime.status import PipelineStatus, TableStatus

KEY = AssetKey(["shop", "public", "orders"])


def _table(**odd_values: int) -> TableStatus:
    return TableStatus(
        1, "public.orders", "ready", "dev:shop-to-duckdb:public.orders", odd_values=odd_values
    )


def test_it_passes_where_every_value_is_held() -> None:
    assert result(_table(), KEY).passed


def test_it_warns_with_the_count_of_each_column() -> None:
    found = result(_table(price=1200, amount=3), KEY)

    assert (found.passed, found.severity) == (False, AssetCheckSeverity.WARN)
    assert found.check_name == ODD_CHECK
    assert "amount 3, price 1,200" in (found.description or "")
    assert found.metadata["odd_values"].value == {"price": 1200, "amount": 3}


def test_it_does_not_pass_for_a_table_that_was_not_seen() -> None:
    assert not result(None, KEY).passed


def test_counts_reach_other_processes_with_the_status() -> None:
    status = PipelineStatus("shop", "duckdb", "streaming", tables={"t": _table(amount=3)})

    assert PipelineStatus.from_json(status.to_json()) == status
