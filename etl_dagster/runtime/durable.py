"""Waits until a write is durable."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from etl_dagster.errors import DestinationError
from etl_dagster.model.destination import WriteResult

#: How often a wait looks whether it was told to stop.
TURN_S = 0.2


class Stopped(Exception):
    """The pipeline was told to stop while something was waited for."""


def wait_durable(result: WriteResult, stop: threading.Event) -> None:
    """Wait for a write to be durable; raises what it failed with.

    Raises:
        Stopped: told to stop before the answer came.
        DestinationError: the write returned something else than a `WriteResult`.
    """
    written = as_future(result)
    while True:
        try:
            return written.result(timeout=TURN_S)
        except FutureTimeout:
            if written.done():  # the write's own TimeoutError
                raise
            if stop.is_set():
                raise Stopped from None


def as_future(result: WriteResult) -> Future[None]:
    """What a write returned, as a future; one that was durable at once is done.

    Raises:
        DestinationError: it is neither None nor a future. To take it for durable would lose
            changes, for example those of a coroutine that is not run.
    """
    if isinstance(result, Future):
        return result
    if result is not None:
        raise DestinationError(
            f"a write returned a {type(result).__name__}, which can't be waited for",
            solution="The destination's author must return None when the write is durable, or a "
            "concurrent.futures.Future that completes when it is.",
        )
    done: Future[None] = Future()
    done.set_result(None)
    return done
