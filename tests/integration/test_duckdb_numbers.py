"""Numerics of more than 38 digits are text in DuckDB, as Postgres prints them."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination, query
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT8,
    NUMERIC,
    Transactions,
    batch,
    chunk,
    column,
    delete,
    end_of_copy,
    insert,
    table,
)

WIDE = table(
    [
        column("amount", NUMERIC, 1, key=1, type_modifier=((60 << 16) | 20) + 4),
        column("id", INT8, 2),
    ]
)
#: As Postgres 15 and 18 print them as numeric(60,20).
PRINTED = (
    "0.00000000000000000000",
    "0.00000001000000000000",
    "-0.00000000000000000001",
    "1234567890123456789012345678901234567890.00000000000000000001",
    "-1.50000000000000000000",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "warehouse.duckdb"


@pytest.fixture
def destination(path: Path) -> Iterator[DuckDBDestination]:
    destination = DuckDBDestination(path)
    destination.startup(MemoryStore())
    yield destination
    destination.shutdown()


def amounts(path: Path) -> list[str]:
    return [row["amount"] for row in query(path, "FROM public.orders ORDER BY id").to_pylist()]


def test_wide_numbers_have_no_exponent_after_copy_and_stream(
    destination: DuckDBDestination, path: Path
) -> None:
    rows = [{"amount": Decimal(text), "id": number} for number, text in enumerate(PRINTED)]
    destination.write_table_rows(WIDE, chunk("copy", 0, WIDE, rows[:2]))
    destination.write_table_rows(WIDE, end_of_copy("copy"))
    destination.write_events(
        batch(Transactions().commit(*(insert(WIDE, **row) for row in rows[2:])))
    )

    assert amounts(path) == list(PRINTED)


def test_a_file_of_an_earlier_version_is_corrected_at_the_start(path: Path) -> None:
    """Otherwise a row with such a key would never be found again."""
    destination = DuckDBDestination(path)
    destination.startup(MemoryStore())
    destination.write_table_rows(WIDE, end_of_copy("copy"))
    destination.shutdown()
    earlier = ["0E-20", "1.000000000000E-8", "-1E-20", PRINTED[3], PRINTED[4]]
    with duckdb.connect(str(path)) as connection:
        connection.executemany(
            "INSERT INTO public.orders VALUES (?, ?)", [(t, n) for n, t in enumerate(earlier)]
        )

    destination = DuckDBDestination(path)
    destination.startup(MemoryStore())
    destination.shutdown()
    assert amounts(path) == list(PRINTED)

    destination.write_events(batch(Transactions().commit(delete(WIDE, amount=Decimal(0)))))
    destination.shutdown()
    assert amounts(path) == list(PRINTED[1:])
