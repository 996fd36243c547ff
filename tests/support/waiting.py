"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

#: How long a test waits for real work before it fails. Only a test that fails pays for it, so it is
#: far beyond what a busy machine needs; pytest's own timeout must be longer.
PATIENCE_S = 180.0


def wait_until(holds: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Return once the condition holds; a failed test when it doesn't in time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
