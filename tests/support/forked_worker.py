"""A pipeline in a forked process, that may be killed often: to start it again costs no imports."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.worker import run

_SHOWN_BYTES = 20_000
_STUCK_S = 100.0
#: A server without threads, which has imported what a worker needs, forks each process.
_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["tests.support.worker", "tests.support.imported"])


def _work(task: dict[str, Any], log_path: str) -> None:
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    # What each thread waits for is in the log of a test that takes too long.
    faulthandler.dump_traceback_later(_STUCK_S)
    # The server that forks ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run(task)


class ForkedWorker:
    """Runs a pipeline with its copies; a test that fails while it is open prints its log's end."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self._task = {"config": config, "copies": "own"}
        self._log_path = folder / "worker.log"
        self._process: BaseProcess | None = None
        self.kills = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        if kind is not None and self._log_path.exists():
            print(f"killed {self.kills} times")
            print(self._log_path.read_bytes()[-_SHOWN_BYTES:].decode(errors="replace"))

    def start(self) -> None:
        """Start it unless it lives."""
        if self._process is None or not self._process.is_alive():
            self._process = _FORKING.Process(target=_work, args=(self._task, str(self._log_path)))
            self._process.start()

    def kill(self) -> None:
        """By SIGKILL, if it lives."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.kills += self._process.exitcode == -signal.SIGKILL
            self._process = None
