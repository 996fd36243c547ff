"""An end that does not wait for a server that no longer answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from etl_dagster.threads import Background

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: How often a call to the destination is looked at that may still end by itself.
_TURN_S = 0.1


class Calls:
    """Calls to a destination that are under way; while there are any, it has not refused to end.

    A call that waits for rows of the source does not count: that is the source's doing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    @property
    def are_under_way(self) -> bool:
        return self._count > 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """A call, which lasts as long as the block."""
        self._add(1)
        try:
            yield
        finally:
            self._add(-1)

    def reading(self, rows: Iterable[T]) -> Iterator[T]:
        """The rows, to be read within a call."""
        left = iter(rows)
        while True:
            self._add(-1)
            try:
                row = next(left)
            except StopIteration:
                return
            finally:
                self._add(1)
            yield row

    def _add(self, number: int) -> None:
        with self._lock:
            self._count += number


class Ending:
    """Watches over an end that was asked for; one that takes too long happens without its waits.

    What was under way then is as after a crash of the process: what is durable stays, the rest
    comes again.

    Args:
        stop: asks for the end.
        done: set by the end, in time or here.
        is_busy: whether something is under way that ends by itself, and must not be abandoned.
        after_s: how long the end may take otherwise.
        give_up: asks those who wait to wait no longer; must not wait itself.
        leave: does what can be done all the same when that doesn't help; may wait.
        last_s: how long `give_up`, and `leave`, may take to have an effect.
    """

    def __init__(
        self,
        name: str,
        stop: threading.Event,
        done: threading.Event,
        *,
        is_busy: Callable[[], bool],
        after_s: float,
        give_up: Callable[[], None],
        leave: Callable[[], None] = lambda: None,
        last_s: float = 0.5,
    ) -> None:
        self._name = name
        self._stop = stop
        self._done = done
        self._is_busy = is_busy
        self._after_s = after_s
        self._give_up = give_up
        self._leave = leave
        self._last_s = last_s
        #: Set once nothing is waited for any more.
        self.impatient = threading.Event()

    def start(self) -> None:
        """From now on."""
        Background(self._run, name=f"ending {self._name}").start()

    def _run(self) -> None:
        self._stop.wait()
        if self._done.wait(self._after_s):
            return
        while self._is_busy():
            if self._done.wait(_TURN_S):
                return
        self.impatient.set()
        self._give_up()
        if self._done.wait(self._last_s):
            return
        _log.warning(
            "%s ends without waiting for a server that does not answer; what was under way comes "
            "again with the next start",
            self._name,
        )
        leaving = Background(self._leave, name=f"leaving {self._name}")
        leaving.start()
        leaving.join(self._last_s)
        self._done.set()

    def join(self, thread: threading.Thread) -> None:
        """Wait for a thread's end, unless nothing is waited for any more."""
        while thread.is_alive() and not self.impatient.is_set():
            thread.join(_TURN_S)
