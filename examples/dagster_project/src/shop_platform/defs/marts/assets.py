"""SQL downstream of the replicated tables, run again when one of them has changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

HERE = Path(__file__).parent


def sql_asset(
    name: str, deps: list[dg.AssetKey], source: str, resources: set[str]
) -> dg.AssetsDefinition:
    """The answer of ``NAME.sql`` by the resource `source`, kept under its name."""

    @dg.asset(
        name=name,
        key_prefix="marts",
        group_name="marts",
        kinds={"sql", "duckdb"},
        deps=deps,
        automation_condition=dg.AutomationCondition.eager(),
        required_resource_keys=resources,
    )
    def build(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        query: Callable[[str], pa.Table] = getattr(context.resources, source).query
        rows = query((HERE / f"{name}.sql").read_text())
        context.resources.marts.write(name, rows)
        return dg.MaterializeResult(metadata={"dagster/row_count": rows.num_rows})

    return build


def of_pipeline(name: str, pipeline: str, *tables: str) -> dg.AssetsDefinition:
    """Of replicated tables; the pipeline's resource has the pipeline's name."""
    keys = [dg.AssetKey(["raw", pipeline, table]) for table in tables]
    return sql_asset(name, keys, pipeline, {pipeline, "marts"})


def of_marts(name: str, *marts: str) -> dg.AssetsDefinition:
    return sql_asset(name, [dg.AssetKey(["marts", mart]) for mart in marts], "marts", {"marts"})


orders_by_customer = of_pipeline("orders_by_customer", "shop", "customers", "orders")
open_tickets = of_pipeline("open_tickets", "support", "tickets")
customers_to_call = of_marts("customers_to_call", "orders_by_customer", "open_tickets")
