"""A target that runs: its pipes, and how it ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from etl_dagster.destinations.singer.failures import TargetMissing

#: How often a wait for the pipe checks whether it should end.
_TURN_MS: Final = 200
#: Has the kernel kill the target when we are killed. Otherwise it would still write what it has in
#: its memory, after what the next process sends.
_LAUNCH: Final = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
_READ_BYTES: Final = 1 << 16
#: A longer line on stdout isn't a state of ours.
_MOST_STATE_BYTES: Final = 64 * 1024 * 1024
#: Larger than a usual pipe, so that we and the target wait less often for each other.
_PIPE_BYTES: Final = 1 << 20


class TargetProcess:
    """The target, reading from us. Its three pipes never block.

    Make it on a thread that outlives it: on Linux, the target is killed when that thread ends.

    Raises:
        TargetMissing: the program can't be run.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], folder: Path | None = None
    ) -> None:
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]
        try:
            self._child = subprocess.Popen(
                launch,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(env),
                cwd=folder,
                # A Ctrl-C is ours: the target ends with its input.
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise TargetMissing(
                f"{command[0]} can't be run: {error.strerror}",
                solution="Check destination.target and the rights of that file.",
            ) from None
        self.stdin, self.stdout, self.stderr = (
            pipe.fileno()
            for pipe in (self._child.stdin, self._child.stdout, self._child.stderr)
            if pipe is not None
        )
        for pipe in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(pipe, False)
        if sys.platform == "linux":
            import fcntl

            with contextlib.suppress(OSError):
                fcntl.fcntl(self.stdin, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @property
    def pid(self) -> int:
        return self._child.pid

    def write(
        self, data: bytes | memoryview, go_on: Callable[[], None], on_progress: Callable[[], None]
    ) -> None:
        """Write all of it, as fast as the target reads.

        Args:
            go_on: asked while the pipe is full; raises to end the wait.
            on_progress: called when the target has read something.

        Raises:
            BrokenPipeError: the target reads no more.
        """
        left = memoryview(data).cast("B")
        poll = select.poll()
        poll.register(self.stdin, select.POLLOUT)
        while left:
            try:
                left = left[os.write(self.stdin, left) :]
                on_progress()
            except BlockingIOError:
                go_on()
                poll.poll(_TURN_MS)

    def close_input(self) -> None:
        """The target's input ends: it writes what it has, and ends."""
        with contextlib.suppress(OSError):
            assert self._child.stdin is not None
            self._child.stdin.close()

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._child.poll()

    def kill(self) -> None:
        """End it, and what it has started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()

    def wait(self) -> int:
        """Its exit code; waits for its end."""
        return self._child.wait()

    def close(self) -> None:
        """Close the pipes. Later files may get their descriptors."""
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()


def how_it_ended(code: int) -> str:
    """What an exit code says, for people."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


class Lines:
    """Whole lines of what comes in pieces."""

    def __init__(self) -> None:
        self._open = b""

    def feed(self, data: bytes) -> list[bytes]:
        *whole, self._open = (self._open + data).split(b"\n")
        if len(self._open) > _MOST_STATE_BYTES:
            self._open = b""
        return whole


def read_pipe(pipe: int) -> bytes | None:
    """What is there; empty at the end; None if nothing is there yet."""
    try:
        return os.read(pipe, _READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""
