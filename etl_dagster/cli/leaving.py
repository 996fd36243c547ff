"""The end of the process, and what has to be true of its standard streams at the beginning."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from etl_dagster.cli.failures import FAILED, INTERRUPTED


def run_to_the_end(command: Callable[[], object]) -> NoReturn:
    """Run the command, and end the process with its exit code.

    This does what the interpreter does when it ends, in the same order: it waits for threads that
    are not daemons, calls what is registered with atexit (logging, exporters of metrics, temporary
    folders, `etl_dagster.threads`), and flushes the output. Then it ends the process at once. A
    daemon thread may still wait for a server that doesn't answer. The ending interpreter would
    unwind it, which aborts the process if the thread is in C++ code; here it ends with the process,
    as by a crash, which is safe at any time.
    """
    exit_code = FAILED
    try:
        exit_code = _code_of(command)
        # First, since a second signal, or the deadline after the first one, cuts the rest short.
        exit_code = _code_of(_flush) or exit_code
        exit_code = _code_of(_finish) or exit_code
        exit_code = _code_of(_flush) or exit_code
    finally:  # also where a signal interrupts even this
        os._exit(exit_code)


def open_standard_streams() -> None:
    """Open those that were closed (``>&-``) on /dev/null.

    Otherwise the next file or socket gets the number 0, 1 or 2, and receives what is printed.
    """
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _code_of(step: Callable[[], object]) -> int:
    """The exit code that the step asks for; 0 if it returns. Other exceptions are printed."""
    try:
        step()
    except SystemExit as asked:
        if asked.code is None or isinstance(asked.code, int):
            return asked.code or 0
        with contextlib.suppress(OSError):
            print(asked.code, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return FAILED
    return 0


def _finish() -> None:
    # multiprocessing calls this, too, in a process that it ends by os._exit.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


def _flush() -> None:
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except BrokenPipeError:
        raise SystemExit(FAILED) from None  # the reader is gone
    except OSError as error:
        raise SystemExit(f"Error: the output can't be written: {error.strerror}") from None
