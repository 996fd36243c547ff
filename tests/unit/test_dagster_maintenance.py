"""How a run of the maintenance job fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from dagster import Failure

from etl_dagster.integrations.dagster import ducklake_maintenance_job


def test_a_run_that_fails_says_what_to_do(tmp_path: Path) -> None:
    config = {
        "pipeline": "shop",
        "source": {"dsn": "dbname=shop", "publication": "p"},
        "destination": {"type": "duckdb", "path": str(tmp_path / "shop.duckdb")},
    }
    path = tmp_path / "etl.yaml"
    path.write_text(yaml.dump(config))

    with pytest.raises(Failure) as raised:
        ducklake_maintenance_job(path).execute_in_process()

    assert "duckdb is not a DuckLake" in str(raised.value.description)
    assert "What to do: Correct what is named above." in str(raised.value.description)
