"""Signals: the first asks for the end, the second ends the process; neither waits for a server."""

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

#: How long it may take to close connections after the end.
_LEAVING_S = 1.0
#: How long a command that is interrupted may take to clean up.
_CLEANING_UP_S = 1.5


class Terminated(SystemExit):
    """SIGTERM or SIGHUP, where KeyboardInterrupt is SIGINT."""


class Asked(threading.Event):
    """Set by the first signal."""

    #: The exit code if the signal stopped the process before its goal was reached.
    exit_code = INTERRUPTED

    @contextlib.contextmanager
    def ends_soon_after(self, *, has_goal: bool) -> Iterator[None]:
        """After a signal, the process ends within a second of the end of this block.

        It ends by itself, unless a server doesn't answer while its connection is closed.

        Args:
            has_goal: the process ran for something else than to be stopped.
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
        """The same, with the second beginning now."""
        if self.is_set():
            code = FAILED if has_failed else self.exit_code if has_goal else 0
            _exit_after(_LEAVING_S, code)


@contextlib.contextmanager
def stopped_by_signals(shutdown: Callable[[], None], view: View) -> Iterator[Asked]:
    """The first signal calls `shutdown`, the second ends the process at once."""
    asked = Asked()
    terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def stop(number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            # The terminal is gone: printing to it would fail.
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
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield asked
    finally:
        if not asked.is_set():  # otherwise a second signal still ends the process
            for number, handler in before.items():
                signal.signal(number, handler)


def end_when_asked() -> None:
    """From now on, SIGINT, SIGTERM and SIGHUP end this process, also while it waits for a server.

    The signal raises an exception in the main thread, which has some time to clean up: a driver
    that asks the server to cancel a statement might wait for its answer forever. Signals that a
    command handles itself, or that are ignored (SIGHUP, by nohup), are left alone.
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
    """For SIGTERM and SIGHUP what default_int_handler is for SIGINT."""
    raise Terminated(TERMINATED)


def _exit_after(delay_s: float, exit_code: int) -> None:
    """End the process after the delay, unless it has ended by itself."""

    def leave() -> None:
        time.sleep(delay_s)
        os._exit(exit_code)

    threading.Thread(target=leave, name="last end", daemon=True).start()
