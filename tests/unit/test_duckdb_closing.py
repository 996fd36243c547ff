"""The thread that closes the DuckDB file survives what closing it fails with."""

from __future__ import annotations

import logging
from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.duckdb.file import DatabaseFile
from etl_dagster.destinations.duckdb.upkeep import Upkeep


class Refused(Upkeep):
    """DuckDB refuses what it is asked before it is closed, as it does after a fatal failure."""

    def before_close(self, connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("SELECT error('invalidated')")


def test_a_file_that_cannot_be_closed_well_is_logged_and_opened_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "warehouse.duckdb"
    file = DatabaseFile(path, memory_limit="100MB", lock_timeout_s=30)
    file.upkeep = Refused(100_000_000)
    with file.transaction() as connection:
        connection.execute("CREATE TABLE items AS SELECT 1 AS id")

    with caplog.at_level(logging.WARNING):
        file.close()

    assert f"{path} was not closed as it should be" in caplog.text
    assert "invalidated" in caplog.text
    assert "Traceback" not in caplog.text
    with file.transaction() as connection:
        assert connection.sql("FROM items").fetchall() == [(1,)]
    file.close()
    with duckdb.connect(str(path), read_only=True) as reader:
        assert reader.sql("FROM items").fetchall() == [(1,)]
