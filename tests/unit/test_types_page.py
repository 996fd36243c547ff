"""The page of all types, which docs/generate.py makes from the registry, is complete and true."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.duckdb.tables import column_type
from etl_dagster.destinations.sql.statements import insert
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.form import BuiltIn
from etl_dagster.values.forms import arrow_type
from etl_dagster.values.registry import REGISTRY
from etl_dagster.values.text import parse

_SCRIPT = Path(__file__).parents[2] / "docs" / "generate.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lines() -> dict[str, list[str]]:
    """The cells of each type's line in the page."""
    page: str = _script().types_page()
    table = page.partition("## Types with parts")[0]
    rows = [line.removesuffix(" |") for line in table.splitlines() if line.startswith("| `")]
    found = [row.removeprefix("| ").split(" | ") for row in rows]
    return {cells[0].strip("`"): cells for cells in found}


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        yield opened


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in REGISTRY.values()])
def test_the_page_shows_each_type_correctly(
    row: BuiltIn, lines: dict[str, list[str]], connection: duckdb.DuckDBPyConnection
) -> None:
    if row.name == "interval" and not DuckDBDestinationConfig.has_own_types:
        pytest.skip("this DuckDB can't read every interval")
    column = ColumnSchema("c", row.oid, own_type=row.own is not None)
    name, arrow, kind, _json, values = lines[row.name]
    assert (name, arrow) == (f"`{row.name}`", f"`{arrow_type(column)}`")
    edges = row.edges_for(own_type=column.own_type)
    assert values.count("odd") == sum(edge.is_odd for edge in edges)
    for edge in edges:
        assert edge.becomes == "itself" or edge.becomes in values

    texts = [edge.text for edge in edges]
    rows = _batch(parse(column, pa.array(texts, pa.string())).array)
    connection.execute(f"create or replace table t (c {column_type(column)})")
    session = DuckDBSession(connection)
    session.run(insert(Target.of(session.dialect, TableSchema(1, "main", "t", (column,))), rows))
    kept = connection.execute("select typeof(c), c is null from t").fetchall()
    assert {f"`{type_}`" for type_, _ in kept} == {kind}
    assert [is_null for _, is_null in kept] == [edge.is_odd for edge in edges]


def _batch(array: pa.Array[Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([array], names=["c"])


def test_the_page_lists_every_width_of_a_number(lines: dict[str, list[str]]) -> None:
    assert lines["numeric"][1:3] == ["`string`", "`VARCHAR`"]
    assert lines["numeric(12,2)"][1:3] == ["`decimal128(12, 2)`", "`DECIMAL(12,2)`"]
    assert lines["numeric(100,0)"][1:3] == ["`string`", "`VARCHAR`"]
