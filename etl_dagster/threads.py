"""Threads that the end of the interpreter waits for, and not for long.

Until Python 3.14, a daemon thread that asks for the interpreter's lock while the interpreter ends
is unwound where it stands. Inside of C++ (DuckDB, pyarrow, gRPC) that aborts the process: it has
done its work and ends with SIGABRT all the same. A thread that isn't a daemon is waited for however
long it takes, also for a server that never answers. So a thread that may stand in C++ is a daemon
that is told to stop, and given some seconds, before the interpreter ends.

Source: Python documentation, "Initialization, Finalization, and Threads": Py_FinalizeEx,
PyEval_RestoreThread.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

#: All of them together are waited for no longer than this.
_LAST_S = 5.0


class Background(threading.Thread):
    """A daemon thread that the end of the interpreter waits for, and not for long.

    Args:
        target: what it does; it ends when what it works for is told to stop.
    """

    def __init__(self, target: Callable[[], object], *, name: str) -> None:
        # Said here: else a thread is what the one that makes it is.
        super().__init__(target=target, name=name, daemon=True)


class Runs(Protocol):
    """Has threads, and can be asked to end them."""

    def shutdown(self) -> None:
        """Ask it to stop, and return at once."""


_running: weakref.WeakSet[Runs] = weakref.WeakSet()


def stops_with_the_interpreter(running: Runs) -> None:
    """Ask it to stop when the interpreter ends; for as long as its user keeps it."""
    _running.add(running)


def end_all(last_s: float = _LAST_S) -> bool:
    """Ask all that runs to stop, and wait for the threads; whether all have ended in time."""
    for running in list(_running):
        running.shutdown()
    deadline = time.monotonic() + last_s
    own = threading.current_thread()
    threads = [each for each in threading.enumerate() if isinstance(each, Background)]
    for thread in threads:
        if thread is not own:
            thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads if thread is not own)


atexit.register(end_all)
