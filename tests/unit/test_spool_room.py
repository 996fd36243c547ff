"""Doctor compares the room on disk with what transactions in progress may take there."""

from __future__ import annotations

from pathlib import Path

from etl_dagster.runtime.checking.spool import check_spool, free_bytes
from tests.support.scripted import config


def found(free: int, **batch: object) -> list[tuple[str, str]]:
    settings = config(batch={"spool_dir": "/there", "spool_max_bytes": "2GiB", **batch})
    return [(c.level, c.message) for c in check_spool(settings, lambda folder: free)]


def test_a_disk_that_would_fill_up_is_a_warning() -> None:
    [(level, message)] = found(1024**3)
    assert level == "warning"
    assert message.startswith("/there has 1.0 GiB free, and transactions in progress may take 2.0")


def test_enough_room_raises_no_warning() -> None:
    assert found(3 * 1024**3) == [("ok", "/there has 3.0 GiB free")]


def test_a_spool_that_is_off_needs_no_room() -> None:
    settings = config().model_copy(
        update={"source": config().source.model_copy(update={"streaming": "off"})}
    )
    assert list(check_spool(settings, lambda folder: 0)) == []


def test_a_folder_that_cannot_be_read_is_reported() -> None:
    def fail(folder: Path) -> int:
        raise PermissionError(13, "Permission denied")

    [check] = check_spool(config(), fail)
    assert (check.level, "Permission denied" in check.message) == ("warning", True)


def test_a_folder_that_does_not_exist_yet_has_the_room_of_its_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0
