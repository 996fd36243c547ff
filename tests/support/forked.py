"""Processes that start without importing anything: forks of a process that has it all imported.

Starting the interpreter and importing takes most of the time of most commands. Use it where it is
what a command does that is tested; tests of the start itself take `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.support import fork_server

_ROOT = Path(__file__).parents[2]
#: For what runs a pipeline, with what it only imports when it gets there.
ENGINE = (
    "etl_dagster.cli.checks",
    "etl_dagster.cli.views",
    "etl_dagster.destinations.duckdb.destination",
    "etl_dagster.destinations.ducklake.config",
    "etl_dagster.destinations.postgres.destination",
    "etl_dagster.integrations.meltano.positions.mirror",
    "etl_dagster.protocol.rows",
    "etl_dagster.stores.postgres.store",
    "importlib.resources.readers",
    "stamina.instrumentation",
    "tests.support.worker",
    "yaml",
)
DEVNULL, PIPE = subprocess.DEVNULL, subprocess.PIPE


class Forked:
    """A command in a process of its own; much like `subprocess.Popen` in text mode.

    Args:
        entry: the function that runs it, ``package.module:function``.
        modules: what to have imported before, the same for all commands of a kind.
        arguments: the command line, the program's name first.
        stdin, stdout, stderr: as of `subprocess.Popen`; output is discarded if none is given.
        python: the interpreter, that of the tests by default.
    """

    def __init__(
        self,
        entry: str,
        modules: tuple[str, ...],
        arguments: Sequence[str],
        *,
        cwd: Path,
        environ: Mapping[str, str] | None = None,
        stdin: int | IO[Any] = DEVNULL,
        stdout: int | IO[Any] = DEVNULL,
        stderr: int | IO[Any] = DEVNULL,
        python: Path | None = None,
    ) -> None:
        self.args = list(arguments)
        self.stdin, for_stdin = _pipe_or(stdin, to_it=True)
        self.stdout, for_stdout = _pipe_or(stdout)
        self.stderr, for_stderr = _pipe_or(stderr)
        self.returncode: int | None = None
        reports, for_reports = os.pipe()
        self._reports = os.fdopen(reports, "rb", buffering=0)
        task = {
            "entry": entry,
            "argv": self.args,
            "cwd": str(cwd),
            "environ": dict(os.environ if environ is None else environ),
        }
        fds = [for_stdin, for_stdout, for_stderr, for_reports]
        _server(python or Path(sys.executable), modules).start(task, fds)
        for fd in fds:
            os.close(fd)
        pid = self._reports.readline()
        assert pid, "the process that forks has ended: its stderr says why"
        self.pid = int(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()
        self.wait()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._reports], [], [], timeout)[0]:
            self.returncode = int(self._reports.readline())
            self._reports.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that is left of its output, once it has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        found: dict[str, str] = {}

        def read(name: str, file: IO[str]) -> None:
            found[name] = file.read()

        if self.stdin is not None:
            self.stdin.close()
        readers = [
            threading.Thread(target=read, args=(name, file), daemon=True)
            for name, file in (("out", self.stdout), ("err", self.stderr))
            if file is not None and not file.closed
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        for file in (self.stdout, self.stderr):
            if file is not None:
                file.close()
        return found.get("out", ""), found.get("err", "")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def etl_dagster(
    *arguments: str,
    cwd: Path,
    environ: Mapping[str, str] | None = None,
    stdio: tuple[int, int, int] = (DEVNULL, PIPE, PIPE),
) -> Forked:
    """The command line, its output in pipes unless descriptors are given."""
    stdin, stdout, stderr = stdio
    return Forked(
        "etl_dagster.cli:main",
        ENGINE,
        ["etl-dagster", *arguments],
        cwd=cwd,
        environ=environ,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


def _pipe_or(given: int | IO[Any], to_it: bool = False) -> tuple[IO[str] | None, int]:
    """Our end of a pipe, if one is wanted, and the descriptor of the process."""
    if given == DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    if given != PIPE:
        return None, os.dup(given if isinstance(given, int) else given.fileno())
    read, write = os.pipe()
    return (os.fdopen(write, "w"), read) if to_it else (os.fdopen(read, "r"), write)


class _Server:
    """The process that forks."""

    def __init__(self, python: Path, modules: tuple[str, ...]) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        # Not the folder of the program, whose modules are called like others.
        command = [str(python), "-P", fork_server.__file__, str(theirs.fileno()), *modules]
        # It is elsewhere: what is relative to here would not be found.
        given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        path = os.pathsep.join([str(_ROOT), *(str(Path(each).resolve()) for each in given)])
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env={**os.environ, "PYTHONPATH": path},
            )

    def start(self, task: dict[str, Any], fds: Sequence[int]) -> None:
        content = json.dumps(task).encode()
        with self._lock:
            socket.send_fds(self._control, [fork_server.LENGTH.pack(len(content))], fds)
            self._control.sendall(content)

    def stop(self) -> None:
        self._control.close()
        self._process.wait()


@functools.cache
def _server(python: Path, modules: tuple[str, ...]) -> _Server:
    server = _Server(python, modules)
    atexit.register(server.stop)
    return server
