"""The outcome of a function that runs on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from etl_dagster.threads import Background

_Result = TypeVar("_Result")

_POLL_S = 0.2


class Outcome(Generic[_Result]):
    """Runs a function on a thread, so that waiting for its result can be interrupted."""

    def __init__(self, function: Callable[[], _Result]) -> None:
        self._function = function
        self._results: list[_Result] = []
        self._failure: BaseException | None = None
        self._thread = Background(self._run, name="copy")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as failure:
            self._failure = failure

    def wait(self, timeout_s: float) -> bool:
        """Whether the function has ended, after waiting for it this long at most."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def result(self) -> _Result:
        """What the function returned, or raises what it raised; only once it has ended."""
        if self._failure is not None:
            raise self._failure
        return self._results[0]


def interruptibly(work: Callable[[threading.Event], _Result], *, stop_s: float = 60.0) -> _Result:
    """Call `work` on a thread, and return or raise what it does.

    If the caller is interrupted, as when its run is terminated, the event that `work` was given is
    set, and the end of `work` is waited for.

    Args:
        stop_s: the longest wait for that end, in seconds.
    """
    stop = threading.Event()
    outcome = Outcome(lambda: work(stop))
    try:
        while not outcome.wait(_POLL_S):
            pass
    except BaseException:
        stop.set()
        outcome.wait(stop_s)
        raise
    return outcome.result()
