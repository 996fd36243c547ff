"""Transactions in progress on disk: who can read them, how large they get, and when it is full."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from etl_dagster.errors import SpoolError, SpoolFull, SpoolUnusable
from etl_dagster.source.spool import Spools, default_folder


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def spools(folder: Path, *, max_bytes: int = 100, clock: Clock | None = None) -> Spools:
    return Spools(folder, max_bytes, clock=clock or Clock())


def test_bytes_are_appended_cut_and_read(tmp_path: Path) -> None:
    kept = spools(tmp_path)
    file = kept.open()
    file.append(bytearray(b"first second"))
    file.cut(6)
    file.append(bytearray(b"third"))

    assert (file.read(0, 100), file.read(6, 3)) == (b"first third", b"thi")
    assert kept.bytes_kept == 11


def test_no_other_user_can_read_them_and_nothing_is_left(tmp_path: Path) -> None:
    """A killed process leaves nothing, since there is no name."""
    folder = tmp_path / "made" / "here"
    file = spools(folder).open()
    file.append(bytearray(b"secret"))
    found = os.fstat(file._number)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(found.st_mode) & 0o077 == 0
    assert (found.st_nlink, list(folder.iterdir())) == (0, [])


def test_all_transactions_together_have_a_limit(tmp_path: Path) -> None:
    kept = spools(tmp_path)
    first, second = kept.open(), kept.open()
    first.append(bytearray(60))
    with pytest.raises(SpoolFull, match=r"more than batch.spool_max_bytes \(100 B\)"):
        second.append(bytearray(41))

    first.close()
    first.close()
    second.append(bytearray(100))
    assert kept.bytes_kept == 100


def test_a_full_disk_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = spools(tmp_path).open()
    monkeypatch.setattr(os, "pwrite", full)

    with pytest.raises(SpoolUnusable, match="No space left on device") as caught:
        file.append(bytearray(10))
    assert "batch.spool_dir" in caught.value.solution
    assert caught.value.retryable


def test_after_a_failure_large_transactions_are_read_whole_for_an_hour(tmp_path: Path) -> None:
    clock = Clock()
    kept = spools(tmp_path, clock=clock)
    assert kept.is_usable()
    assert kept.note is None

    kept.give_up(SpoolError("it went wrong"))
    assert not kept.is_usable()
    assert "it went wrong. No action needed" in (kept.note or "")

    clock.now_s += 3600
    assert kept.note is None
    assert kept.is_usable()


def test_a_folder_that_cannot_be_written_is_known_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = spools(tmp_path / "file" / "folder")

    assert not kept.is_usable()
    assert "no file can be made in" in (kept.note or "")


def test_files_are_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert default_folder() == tmp_path
