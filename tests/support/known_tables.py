"""The tables of a pipeline whose source is away, as a code location knew them last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from etl_dagster.integrations.dagster.tables.kept_tables import tables_to_text
from etl_dagster.model.schema import TableSchema

#: Where no server listens.
NOWHERE = "127.0.0.1:1"


def remember_tables(
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    tables: Sequence[TableSchema],
    *pipelines: str,
) -> None:
    """Have definitions of these pipelines, or of shop, find the tables published by etl_pub."""
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    folder = home / "etl_dagster"
    folder.mkdir()
    for pipeline in pipelines or ("shop",):
        kept = folder / f"{pipeline}.tables.json"
        kept.write_text(tables_to_text("etl_pub", "shopdb", tables, {}), "utf-8")
