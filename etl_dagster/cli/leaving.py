"""The end of the process: all that the interpreter does at its own, and not that one itself."""

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

    What the interpreter does when it ends is done here, in its order: threads that are not daemons
    are waited for, what is registered with atexit is called (logging, exporters of metrics,
    temporary folders, `etl_dagster.threads`), and the output is flushed. Then the process ends at
    once. A daemon thread may be left that waits for a server which doesn't answer. It would be
    unwound in the middle of an ending interpreter, and abort the process where it stands in C++;
    like this, it ends with the process, as by a crash, which is safe at any time.
    """
    exit_code = FAILED
    try:
        exit_code = _code_of(command)
        # First: a second signal, or the last second after the first one, cuts the rest short.
        exit_code = _code_of(_flush) or exit_code
        exit_code = _code_of(_finish) or exit_code
        exit_code = _code_of(_flush) or exit_code
    finally:  # also where a signal interrupts even this
        os._exit(exit_code)


def _code_of(step: Callable[[], object]) -> int:
    """The exit code that the step asks for; 0 where it returns. Anything else is shown."""
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
    # What multiprocessing, too, calls in a process that it ends by os._exit.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


def _flush() -> None:
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except BrokenPipeError:
        raise SystemExit(FAILED) from None  # who read it is gone
    except OSError as error:
        raise SystemExit(f"Error: the output can't be written: {error.strerror}") from None
