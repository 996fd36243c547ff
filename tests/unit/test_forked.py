"""A forked command is to its test what a process of `subprocess` is."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from tests.support.forked import PIPE, Forked


def start(*arguments: str, cwd: Path, **options: Any) -> Forked:
    pipes = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
    return Forked(
        "json.tool:main", ("json.tool",), ["json", *arguments], cwd=cwd, **pipes, **options
    )


def test_a_forked_process_reads_its_stdin_and_exits_with_0(tmp_path: Path) -> None:
    with start("--compact", cwd=tmp_path) as process:
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.write("[1, 2]")
        assert process.communicate() == ("[1,2]\n", "")

    assert process.returncode == 0


def test_a_failure_has_its_exit_code_and_its_message(tmp_path: Path) -> None:
    """In the folder and with the environment that it is given."""
    with start("--nonsense", cwd=tmp_path, environ={"COLUMNS": "40"}) as process:
        _, said = process.communicate()

    assert process.returncode == 2
    assert "--nonsense" in said
    assert "[-h]\n" in said, "lines are short"


def test_a_signal_that_ends_it_is_its_negative_exit_code(tmp_path: Path) -> None:
    with start(cwd=tmp_path) as process:
        process.kill()

    assert process.returncode == -signal.SIGKILL
