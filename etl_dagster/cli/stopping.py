"""Signals: the first asks for the end, the second is the end, and neither waits for a server."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from etl_dagster.cli.failures import FAILED, INTERRUPTED, TERMINATED

if TYPE_CHECKING:
    from etl_dagster.cli.views import View

#: What is left to do after the end may take so long: to take leave of servers.
_LEAVING_S = 1.0
#: A command that is interrupted may take so long to clean up.
_CLEANING_UP_S = 1.5


class Asked(threading.Event):
    """Set by the first signal."""

    #: Of a process that the signal stopped before its goal was reached.
    exit_code = INTERRUPTED

    @contextlib.contextmanager
    def ends_soon_after(self, *, has_goal: bool) -> Iterator[None]:
        """Once it was asked to end, and this block is left, the process ends within a second.

        By itself, unless a server that it takes leave of does not answer.

        Args:
            has_goal: being asked to end is not what it ran for.
        """
        has_failed = False
        try:
            yield
        except BaseException:
            has_failed = True
            raise
        finally:
            self.end_soon(has_goal=has_goal, has_failed=has_failed)

    def end_soon(self, *, has_goal: bool, has_failed: bool = False) -> None:
        """The same, from now on."""
        if self.is_set():
            code = FAILED if has_failed else self.exit_code if has_goal else 0
            _exit_after(_LEAVING_S, code)


@contextlib.contextmanager
def stopped_by_signals(shutdown: Callable[[], None], view: View) -> Iterator[Asked]:
    """The first signal asks, the second doesn't."""
    asked = Asked()
    terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def stop(number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            # The terminal is gone; what is still shown must not fail.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in terminals:
                os.dup2(nowhere, terminal)
        code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        if asked.is_set():
            view.restore_terminal()
            os._exit(code)
        asked.exit_code = code
        asked.set()
        view.stopping()
        shutdown()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield asked
    finally:
        if not asked.is_set():  # else a second signal is the end also from now on
            for number, handler in before.items():
                signal.signal(number, handler)


def end_when_asked() -> None:
    """From now on, SIGINT, SIGTERM and SIGHUP end this process, also while it waits for a server.

    An exception in the main thread has the time to clean up first; a driver that asks the server
    to cancel a statement would wait for its answer. Where a command handles signals itself, or
    the process was started with one ignored (SIGHUP, by nohup), this does nothing.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                if signal.getsignal(number) is signal.default_int_handler:
                    _exit_after(_CLEANING_UP_S, INTERRUPTED)
                elif signal.getsignal(number) is _terminate:
                    _exit_after(_CLEANING_UP_S, TERMINATED)

    threading.Thread(target=watch, name="interrupts", daemon=True).start()


def _terminate(number: int, frame: object) -> None:
    """What default_int_handler is to SIGINT."""
    raise SystemExit(TERMINATED)


def _exit_after(delay_s: float, exit_code: int) -> None:
    """End the process then, unless it has ended by itself."""

    def leave() -> None:
        time.sleep(delay_s)
        os._exit(exit_code)

    threading.Thread(target=leave, name="last end", daemon=True).start()
