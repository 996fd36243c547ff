"""Child processes that end with their parent, and take their own children along."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_GRACE_S = 5.0
_ORPHANS_GRACE_S = 15


def watch_over(process_id: int, *, group: bool = False) -> subprocess.Popen[bytes]:
    """Start a helper that interrupts a process once this one is gone, even by SIGKILL.

    It waits on a pipe whose other end is held here and nowhere else. Kill it with `release`
    when the watched process has ended.

    Args:
        process_id: who gets SIGINT.
        group: interrupt the whole process group of that ID, and kill what is left after 15 s.
    """
    target = f"-{process_id}" if group else str(process_id)
    # dash knows `--` only after `-s`.
    script = 'read -r _; kill -s INT -- "$0"'
    if group:
        script += f'; sleep {_ORPHANS_GRACE_S}; kill -s KILL -- "$0"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, target],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def release(helper: subprocess.Popen[bytes]) -> None:
    """End a helper of `watch_over` before it does anything."""
    helper.kill()
    helper.wait()
    if helper.stdin is not None:
        helper.stdin.close()


class Child:
    """A program with a session of its own, so that a Ctrl-C in the terminal doesn't reach it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        folder: Path,
        environ: Mapping[str, str] | None = None,
        order: str | None = None,
        grace_s: float = _GRACE_S,
    ) -> None:
        """Start it.

        Args:
            command: the program and its arguments.
            log: what it prints is added to this file.
            folder: where it runs.
            environ: added to this process's environment.
            order: written to its standard input, which stays open until `stop`; without one the
                standard input is empty.
            grace_s: how long what is left of it may take to end after each signal.
        """
        self.log = log
        self._grace_s = grace_s
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            self._log_start = file.tell()
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | dict(environ or {}),
                stdin=subprocess.PIPE if order is not None else subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guard = watch_over(self._process.pid, group=True)
        self._input: IO[bytes] | None = self._process.stdin
        if order is not None and self._input is not None:
            with contextlib.suppress(BrokenPipeError):
                self._input.write(order.encode() + b"\n")
                self._input.flush()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def log_end(self, lines: int = 15) -> str:
        """The last lines that it printed."""
        try:
            with self.log.open("rb") as file:
                file.seek(self._log_start)
                text = file.read().decode("utf-8", "replace")
        except OSError as error:
            return f"(its log can't be read: {error.strerror})"
        return "\n".join(text.splitlines()[-lines:])

    def stop(self, timeout_s: float) -> None:
        """End it and everything that it started: first by asking, in the end by force.

        Its standard input is closed, or, where it has none, its process group is interrupted as
        by Ctrl-C. What is still there when `timeout_s` has passed gets SIGTERM, then SIGKILL.
        """
        import psutil

        # Taken while the family is whole: an orphan can't be found by its parent any more.
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            family = [parent, *parent.children(recursive=True)]
        if self._input is not None:
            with contextlib.suppress(BrokenPipeError):
                self._input.close()
        elif self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGINT)
        _, alive = psutil.wait_procs(family, timeout_s)
        for end in (signal.SIGTERM, signal.SIGKILL):
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(end)
            _, alive = psutil.wait_procs(alive, self._grace_s)
        self._process.wait()
        release(self._guard)
