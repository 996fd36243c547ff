"""Waiting for what another thread or process does."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable

import pytest

#: How long a test waits for real work before it fails. Only a test that fails pays for it, so it is
#: far beyond what a busy machine needs; pytest's own timeout must be longer.
PATIENCE_S = 180.0


def wait_until(holds: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Return once the condition holds; a failed test that shows it when it doesn't in time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not so within {timeout_s:g} s:\n{_written(holds)}")
        time.sleep(0.02)


def _written(condition: Callable[[], bool]) -> str:
    """The condition as the test has it, and where."""
    try:
        lines, number = inspect.getsourcelines(condition)
        return f"{inspect.getsourcefile(condition)}:{number}\n{''.join(lines).rstrip()}"
    except (OSError, TypeError):
        return repr(condition)
