"""Rows that differ have different hashes, also where DuckDB's own hash is the same."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination
from etl_dagster.destinations.duckdb.hashes import is_told_apart
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import FLOAT8, INT8, NUMERIC, TEXT, column, table
from etl_dagster.values.digest import RowHashes

ROWS = table(
    [
        column("id", INT8, 1, key=1),
        column("wide", NUMERIC, 2, type_modifier=((30 << 16) | 2) + 4),
        column("number", FLOAT8, 3),
        column("one", TEXT, 4),
        column("other", TEXT, 5),
    ]
)


def hashes(schema: TableSchema, *rows: tuple[Any, ...]) -> RowHashes:
    columns = dict(zip(schema.column_names, zip(*rows, strict=True), strict=True))
    batch = pa.RecordBatch.from_pydict(columns, schema=schema.arrow_schema)
    return DuckDBDestination(Path("unused.duckdb")).hash_rows(schema, batch)


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        ("BOOLEAN", ["true", "false"]),
        ("INTEGER", ["0", "1", "-1", "-2147483648"]),
        ("BIGINT", ["0", "-1", "1", "9223372036854775807", "-9223372036854775808"]),
        ("UBIGINT", ["0", "1", "18446744073709551615"]),
        ("DECIMAL(18,2)", ["0", "-0.01", "0.01", "9999999999999999.99"]),
        ("DATE", ["2024-01-01", "2024-01-02", "infinity", "-infinity"]),
        ("TIME", ["00:00:00", "00:00:00.000001", "24:00:00"]),
        ("TIMESTAMP", ["2024-01-01", "2024-01-01 00:00:00.000001", "infinity", "-infinity"]),
        ("VARCHAR", ["", "a", "b", "ab", "ba", "a" * 12, "a" * 13, "a" * 16, "a" * 17, " a"]),
        ("BLOB", ["", r"\x00", r"\x00\x00", "a", r"a\x00", "a" * 12, "a" * 12 + r"\x00"]),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_values_of_types_that_duckdb_hashes_have_different_hashes(
    type_: str, values: list[str]
) -> None:
    with duckdb.connect() as connection:
        found = {
            connection.execute(f"SELECT hash(CAST(? AS {type_}))", [value]).fetchall()[0][0]
            for value in [*values, None]
        }
    assert is_told_apart(type_)
    assert len(found) == len(values) + 1


@pytest.mark.parametrize(
    "type_", ["DECIMAL(19,2)", "DOUBLE", "INTERVAL", "UUID", "INTEGER[]", "STRUCT(a INTEGER)"]
)
def test_values_of_other_types_are_not_hashed_by_duckdb(type_: str) -> None:
    assert not is_told_apart(type_)


def test_values_that_duckdb_takes_for_equal_are_told_apart() -> None:
    found = hashes(
        ROWS,
        (1, Decimal("0.00"), 0.0, "a", ""),
        (1, Decimal("-0.01"), 0.0, "a", ""),
        (1, Decimal("0.00"), -0.0, "a", ""),
        (1, Decimal("0.00"), 0.0, "", "a"),
        (1, Decimal("0.00"), 0.0, "a", None),
        (1, None, None, None, None),
    )
    assert len(set(found.rows.tolist())) == 6
    assert len(set(found.keys.tolist())) == 1


def test_rows_that_exchange_values_have_another_sum() -> None:
    """DuckDB combines hashes bit by bit, where what is exchanged can cancel itself out."""
    nothing = (None, None)
    before = hashes(ROWS, *[(n, *nothing, str(n), str(n)) for n in range(200)])
    after = hashes(ROWS, *[(n, *nothing, str(n), str(n ^ 1)) for n in range(200)])
    sums = [each.rows.reshape(-1, 2).sum(axis=1) for each in (before, after)]
    assert not np.any(sums[0] == sums[1])


def test_rows_of_a_table_without_columns_are_alike() -> None:
    empty = table([])
    batch = pa.RecordBatch.from_struct_array(pa.array([{}, {}], pa.struct([])))
    found = DuckDBDestination(Path("unused.duckdb")).hash_rows(empty, batch)
    assert len(found.keys) == len(found.rows) == 2
    assert found.rows[0] == found.rows[1]
