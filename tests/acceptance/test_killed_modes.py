"""A worker that keeps histories is killed at random moments; they are exact in the end.

In a DuckLake: `tests/ducklake/test_killed_modes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.demo.server import EmbeddedPostgres
from tests.support.database import Database
from tests.support.killed_histories import check_histories


@pytest.fixture(params=["duckdb", "postgres"])
def destination(
    request: pytest.FixtureRequest, newest_server: EmbeddedPostgres, tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """The section of the configuration."""
    if request.param == "duckdb":
        yield {"type": "duckdb", "path": str(tmp_path / "shop.duckdb")}
        return
    with Database.create(newest_server) as replica:
        yield {"type": "postgres", "dsn": replica.dsn}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_histories_are_exact_though_their_worker_is_killed(
    newest_database: Database, destination: dict[str, Any], tmp_path: Path
) -> None:
    check_histories(newest_database, destination, tmp_path)
