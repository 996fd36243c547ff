"""Lets a thread that waits for the server be told to stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)

_POLL_S = 0.1
#: A request to cancel may come a moment before what it is to cancel.
_AGAIN_S = 1.0


@contextmanager
def cancelled_by(
    stop: threading.Event,
    cancel: Callable[[], object],
    *,
    after_s: float = 0.0,
    on_waiting: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Call `cancel`, in another thread, when `stop` is set before the block ends.

    Args:
        cancel: safe to call from any thread, and more than once.
        on_waiting: called once, in that thread, when the block takes longer than `after_s`.
    """
    ended = threading.Event()

    def watch() -> None:
        began, told, due = time.monotonic(), on_waiting is None, 0.0
        while not ended.wait(_POLL_S):
            now = time.monotonic()
            if stop.is_set() and now >= due:
                due = now + _AGAIN_S
                _quietly(cancel)
            elif not told and on_waiting is not None and now - began >= after_s:
                told = True
                _quietly(on_waiting)

    watcher = threading.Thread(target=watch, name="canceller", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:
        _log.debug("a wait can't be looked into or cancelled: %s", type(error).__name__)
