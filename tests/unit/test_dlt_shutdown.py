"""The end of a dlt destination: every lane is closed, whatever one of them fails with."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_dagster.destinations.dlt import DltDestination
from etl_dagster.destinations.dlt.worker import LaneWorker


def test_a_lane_that_cannot_be_closed_keeps_none_of_the_others_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[str] = []

    class Lane(LaneWorker):
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)
            if self.name in ("first", "second"):
                raise OSError(f"the {self.name} lane can't be closed")

    destination = DltDestination("duckdb", work_folder=tmp_path)
    destination._folder.open()
    for table_id, name in enumerate(("first", "second", "third")):
        destination._lanes["public", table_id] = Lane(name)

    with pytest.raises(OSError, match="the first lane"):
        destination.shutdown()

    assert closed == ["first", "second", "third"]
    assert "another lane of dlt can't be closed: OSError" in caplog.text
    assert list(tmp_path.rglob("*.lock")) == []
    assert not destination._folder.path.exists()
