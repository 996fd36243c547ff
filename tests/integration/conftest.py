"""Fixtures that several files of integration tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.database import Database


@pytest.fixture
def small_shop(newest_database: Database) -> Database:
    """Ten orders, for tests of what Dagster does with a table."""
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY)",
        "INSERT INTO orders SELECT i FROM generate_series(1, 10) i",
        "CREATE PUBLICATION etl_pub FOR TABLE orders",
    )
    return newest_database


@pytest.fixture
def shop_file(small_shop: Database, tmp_path: Path) -> Path:
    """The configuration of a pipeline called shop that copies them into a DuckDB file."""
    from tests.support.dagster_in_process import write_config

    return write_config(small_shop.dsn, tmp_path)
