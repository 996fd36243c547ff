"""The private server, where a program that it needs does not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl_dagster.demo.server import ServerBinaries, ServerError, _Account


def test_a_program_that_does_not_end_is_named_with_what_to_do(tmp_path: Path) -> None:
    """As initdb on a disk that hangs."""
    with pytest.raises(ServerError, match=r"sleep did not end within 0\.05 s") as caught:
        _Account().run(["/bin/sleep", "600"], folder=tmp_path, timeout_s=0.05)
    assert "Start it again" in caught.value.solution


def test_programs_that_are_missing_cannot_be_used(tmp_path: Path) -> None:
    assert not _Account().can_use(ServerBinaries(tmp_path, "18"), tmp_path)
