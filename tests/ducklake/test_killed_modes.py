"""A worker that keeps histories in a lake is killed at random; they are exact in the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_dagster.demo.server import EmbeddedPostgres
from tests.support.database import Database
from tests.support.killed_histories import check_histories


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_histories_in_a_lake_are_exact_though_their_worker_is_killed(
    newest_database: Database, newest_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    with Database.create(newest_server) as catalog:
        destination = {
            "type": "ducklake",
            "catalog": catalog.dsn,
            "data_path": str(tmp_path / "files"),
            "inline_rows": 100,
        }
        check_histories(newest_database, destination, tmp_path, is_slow=True)
