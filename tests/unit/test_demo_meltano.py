"""The demo's tap and target: each run continues after the one before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from etl_dagster.demo.meltano.project import write_project
from etl_dagster.demo.meltano.tap import messages
from etl_dagster.demo.meltano.target import load


def test_each_run_loads_the_week_after_the_last_one(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    for _ in range(2):
        lines = [json.dumps(message) for message in messages(["fuel_prices"], state)]
        *_, last = load(lines, tmp_path)
        state = json.loads(last)

    rows = [
        json.loads(line)
        for line in (tmp_path / "fuel_prices.jsonl").read_text("utf-8").splitlines()
    ]
    assert len({(row["day"], row["airport"]) for row in rows}) == len(rows) == 2 * 7 * 3
    assert state["bookmarks"]["fuel_prices"]["replication_key_value"] == "2013-01-14"


def test_a_variable_names_where_the_state_of_the_project_is(tmp_path: Path) -> None:
    write_project(tmp_path / "a path with spaces")
    project = yaml.safe_load((tmp_path / "a path with spaces" / "meltano.yml").read_text("utf-8"))
    assert project["state_backend"]["uri"].startswith("$ETL_DAGSTER_DEMO")
    (tap,) = project["plugins"]["extractors"]
    assert Path(tap["executable"]).stat().st_mode & 0o100
