"""A pipeline in a process of its own, that may be killed and started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil


class WorkerProcess:
    """Runs a module that reads its task, a line of JSON, from stdin.

    Args:
        module: such as `tests.support.worker`.
        folder: gets the log of all its processes.
    """

    def __init__(self, module: str, task: Mapping[str, Any], folder: Path) -> None:
        self._module, self._task = module, task
        self._log = (folder / "worker.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = self.kills = self.child_kills = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        self._log.close()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it unless it lives."""
        if self.is_alive:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._task).encode() + b"\n")
        self._process.stdin.close()
        self.starts += 1

    def kill(self) -> None:
        if self._process is not None and self.is_alive:
            self._process.kill()
            self.kills += self._process.wait() == -signal.SIGKILL

    def kill_children(self) -> None:
        """Kill what it runs now, if it lives."""
        if self._process is None or not self.is_alive:
            return
        for child in psutil.Process(self._process.pid).children():
            child.kill()
            self.child_kills += 1
