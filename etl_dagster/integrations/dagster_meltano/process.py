"""Runs Meltano as a child process whose log is followed, and which ends with the run."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_POLL_S = 0.2
#: How long to read on after the process has ended, since its children may still hold the pipe.
_LAST_WORDS_S = 2.0


def follow(
    command: Sequence[str],
    *,
    folder: Path,
    environ: Mapping[str, str],
    on_line: Callable[[str], None],
    require: Callable[[], None] = lambda: None,
    grace_s: float = 60.0,
) -> int:
    """Run the command to its end; its exit code.

    However this function is left, the process is gone by then: it gets SIGTERM, so that Meltano can
    mark its run as failed and release its state's lock, and what is left after `grace_s` is killed.
    If this process itself is killed, `guard.py` ends the child.

    Args:
        on_line: called in this thread with each line of stdout and stderr.
        require: called several times a second; what it raises ends the process, too.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), *command],
        cwd=folder,
        env=dict(environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Ctrl-C in the terminal goes to Dagster, which interrupts this function.
        start_new_session=True,
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=[process, lines], name="meltano", daemon=True)
    reader.start()
    try:
        _relay(process, lines, on_line, require)
    except BaseException:
        _end(process, grace_s)
        # Its last lines are worth a short delay.
        with contextlib.suppress(Exception):
            _relay(process, lines, on_line, lambda: None)
        raise
    finally:
        _end(process, grace_s)
    return process.returncode


def _read(process: subprocess.Popen[bytes], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError):
        for line in process.stdout:
            lines.put(line.decode(errors="replace"))
    lines.put(None)


def _relay(
    process: subprocess.Popen[bytes],
    lines: queue.SimpleQueue[str | None],
    on_line: Callable[[str], None],
    require: Callable[[], None],
) -> None:
    ended_at: float | None = None
    while True:
        require()
        try:
            line = lines.get(timeout=_POLL_S)
        except queue.Empty:
            # A plugin that outlives Meltano may hold the pipe for ever.
            if process.poll() is not None:
                ended_at = ended_at or time.monotonic()
                if time.monotonic() - ended_at > _LAST_WORDS_S:
                    return
            continue
        if line is None:
            process.wait()
            return
        on_line(line)


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
    # The group is this command's own: it holds nothing but Meltano and its plugins.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
