"""The folder of a process for load packages of dlt."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_dagster.destinations.dlt.work_folder import WorkFolder
from etl_dagster.errors import DestinationError


def test_each_process_has_its_own_and_removes_it(tmp_path: Path) -> None:
    one, other = WorkFolder(tmp_path, "shop"), WorkFolder(tmp_path, "shop")
    one.open()
    other.open()
    (one.path / "rows.parquet").touch()

    other.close()
    other.close()

    assert not other.path.exists()
    assert (one.path / "rows.parquet").exists()
    assert one.path.stat().st_mode & 0o077 == 0
    one.close()
    assert list((tmp_path / "shop").iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = WorkFolder(tmp_path, "shop")
    killed.open()
    (killed.path / "rows.parquet").touch()
    killed._lock.release()  # as the end of its process does

    following = WorkFolder(tmp_path, "shop")
    following.open()

    assert not killed.path.exists()
    following.close()


def test_the_error_for_a_folder_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()

    with pytest.raises(DestinationError, match="no folder for load packages") as raised:
        WorkFolder(tmp_path / "taken", "shop").open()

    assert "destination.work_folder" in raised.value.solution
