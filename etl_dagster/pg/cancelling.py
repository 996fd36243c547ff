"""Ends waits for a server: when a stop is asked for, or when it does not answer."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

import psycopg

from etl_dagster.threads import Background

T = TypeVar("T")

_log = logging.getLogger(__name__)

_POLL_S = 0.1
#: A request to cancel may come a moment before what it is to cancel.
_AGAIN_S = 1.0


class Abandoned(Exception):
    """A stop was asked for while something was waited for that does not end."""


@contextmanager
def cancelled_by(
    stop: threading.Event,
    cancel: Callable[[], object],
    *,
    after_s: float = 0.0,
    on_waiting: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Call `cancel`, in another thread, when `stop` is set before the block ends.

    Where the server doesn't answer at all, `cancel` may take long: the block's end does not wait
    for it.

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
        watcher.join(_AGAIN_S)


def _quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:
        _log.debug("cannot inspect or cancel a wait: %s", type(error).__name__)


def unless_stopped(work: Callable[[], T], stop: threading.Event, *, after_s: float, name: str) -> T:
    """Do the work in a thread of its own, and return or raise what it does.

    Some waits can't be cancelled, such as those for a name server, or for a server that accepts a
    connection and then says nothing.

    Args:
        stop: once set, the work is waited for no longer than `after_s`. It continues by itself, and
            must do no harm.
        name: of the thread.

    Raises:
        Abandoned: the work did not end in that time.
    """
    outcome: Future[T] = Future()
    context = copy_context()

    def run() -> None:
        try:
            outcome.set_result(context.run(work))
        except BaseException as failure:
            outcome.set_exception(failure)

    Background(run, name=name).start()
    deadline: float | None = None
    while True:
        try:
            return outcome.result(_POLL_S)
        except FutureTimeout:
            if outcome.done():  # the work's own
                raise
        if stop.is_set():
            now = time.monotonic()
            if deadline is None:
                deadline = now + after_s
            if now >= deadline:
                raise Abandoned from None


@contextmanager
def answered_within(connection: psycopg.Connection[Any], limit_s: float) -> Iterator[None]:
    """End the connection when the block takes longer, and have it raise psycopg's error.

    TCP notices a server that is gone. It does not notice one behind a proxy or a pooler, which
    still answers for itself and holds what is sent.

    Args:
        limit_s: more than the server itself may take, for example for a lock.
    """
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        cut(connection)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except psycopg.Error as error:
        if is_late.is_set():
            raise psycopg.OperationalError(
                f"the server accepts connections, but gave no answer for {limit_s:g} s"
            ) from error
        raise
    finally:
        timer.cancel()


def cut(connection: psycopg.Connection[Any]) -> None:
    """End the connection for good; who waits for it gets an error now. From any thread."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        # The number itself stays libpq's to close.
        socket.socket(fileno=os.dup(connection.fileno())) as wire,
    ):
        wire.shutdown(socket.SHUT_RDWR)
