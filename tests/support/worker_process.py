"""A pipeline in a process of its own, that may be killed and started again."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.support.forked import ENGINE, PIPE, Forked

#: How often a process may end with the same message, without being killed, before the test fails.
#: Whatever a killed process held is free long before that.
_SAME_FAILURES = 20
_SHOWN_BYTES = 6000


class WorkerProcess:
    """Runs a module that reads its task, a line of JSON, from stdin.

    A test that fails while it is open prints the end of its log.

    Args:
        module: such as `tests.support.worker`.
        folder: gets the log of all its processes.
        name: the log's, without its suffix.
    """

    def __init__(
        self, module: str, task: Mapping[str, Any], folder: Path, name: str = "worker"
    ) -> None:
        self._module, self._task = module, task
        self._log_path = folder / f"{name}.log"
        self._log = self._log_path.open("ab")
        self._process: Forked | None = None
        self._last_words, self._same_failures = "", 0
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
        if kind is not None:
            self.print_log_end()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the process of now, or of the last one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it unless it lives; a failed test where it keeps failing in the same way."""
        if self.is_alive:
            return
        self._count_same_failures()
        self._process = Forked(
            f"{self._module}:main",
            (*ENGINE, self._module),
            [self._module],
            cwd=Path(__file__).parents[2],
            stdin=PIPE,
            stdout=self._log,
            stderr=self._log,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._task) + "\n")
        self._process.stdin.close()
        self.starts += 1

    def kill(self) -> bool:
        """Whether it lived until then."""
        if self._process is None or not self.is_alive:
            return False
        self._process.kill()
        was_killed = self._process.wait() == -signal.SIGKILL
        self.kills += was_killed
        return was_killed

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self._process is not None and self.is_alive:
            os.kill(self._process.pid, number)

    def kill_children(self) -> None:
        """Kill what it runs now, if it lives."""
        if self._process is None or not self.is_alive:
            return
        for child in psutil.Process(self._process.pid).children():
            child.kill()
            self.child_kills += 1

    def print_log_end(self) -> None:
        code = None if self._process is None else self._process.poll()
        print(f"-- {self._log_path.name}: {self.starts} starts, the last ended with {code}")
        print(self._log_end())

    def _count_same_failures(self) -> None:
        code = None if self._process is None else self._process.returncode
        words = ""
        if code is not None and code > 0:
            last_line = self._log_end().rstrip().rpartition("\n")[2]
            words = re.sub(r"[0-9A-F]*[0-9][0-9A-F/]*", "#", last_line)
        self._same_failures = self._same_failures + 1 if words == self._last_words else 1
        self._last_words = words
        if words and self._same_failures >= _SAME_FAILURES:
            raise AssertionError(f"it failed {self._same_failures} times with {last_line!r}")

    def _log_end(self) -> str:
        with self._log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _SHOWN_BYTES))
            return log.read().decode(errors="replace")
