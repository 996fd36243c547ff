"""Waiting for changes without missing one."""

from __future__ import annotations

import threading
import time


class ChangeSignal:
    """Counts changes, and lets threads wait for the next one.

    A thread that reads, decides and then waits must not miss a change that comes while it decides.
    So the count at each thread's last wait is remembered, and a wait returns at once if the count
    has changed since; the first wait of a thread always returns at once.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0
        self._seen = threading.local()

    def bump(self) -> None:
        """Count a change and end all waits."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Return once there was a change since this thread's last wait, or after the timeout."""
        deadline = time.monotonic() + timeout_s
        with self._condition:
            seen = getattr(self._seen, "count", -1)
            while self._count == seen:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._condition.wait(remaining)
            self._seen.count = self._count
