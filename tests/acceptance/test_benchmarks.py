"""`make bench`, over few rows: that every figure is measured, not how large it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from etl_dagster.demo.server import find_servers

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_servers(), reason="no PostgreSQL here"),
]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.run", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_parts_are_measured_and_latest_json_is_left_alone_at_another_scale() -> None:
    latest = ROOT / "benchmarks" / "latest.json"
    before = latest.read_bytes() if latest.exists() else None

    done = bench(
        "--scale", "0.002", "--rounds", "1", "--json", "small", "copy", "toast", "tables", "singer"
    )

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert {
        "stream_to_arrow",
        "stream_to_duckdb",
        "copy_to_duckdb",
        "toast_updates_to_duckdb",
        "cpu_s_per_table_1000",
        "cpu_s_per_table_doubling",
    } <= set(figures)
    assert all(value > 0 for value in figures.values())
    assert (latest.read_bytes() if latest.exists() else None) == before


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    done = bench("smal")

    assert done.returncode == 2
    assert "no such part: smal; known are arrays, compare" in done.stderr
