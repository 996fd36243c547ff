"""The time, and waiting: passed in, so that a test moves it."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that only grow, and pauses in them."""

    def now_s(self) -> float:
        """Seconds since some moment."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until the event is set; False when the time was over first."""
        ...


class SystemClock:
    """The machine's."""

    def now_s(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.wait(timeout_s)


SYSTEM_CLOCK = SystemClock()
