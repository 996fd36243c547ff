"""How often work is repeated that grows with the number of tables."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Of one core, for one kind of work.
_SHARE = 0.005


class Pace:
    """Repeats work as often as wanted while it is cheap, and less often once it costs much.

    Args:
        every_s: the pause after work that costs little.
        at_most_s: no pause is longer.
        cpu_s: the CPU time of the thread so far, in seconds.
    """

    def __init__(
        self,
        every_s: float,
        *,
        at_most_s: float = 60.0,
        cpu_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self._cpu_s = cpu_s
        self._every_s = every_s
        self._at_most_s = max(at_most_s, every_s)
        self._began_s = 0.0
        self.pause_s = every_s

    def begin(self) -> None:
        """The work begins, in this thread."""
        self._began_s = self._cpu_s()

    def end(self) -> float:
        """The work is done; returns the pause until it is due again, in seconds."""
        took_s = self._cpu_s() - self._began_s
        self.pause_s = min(max(self._every_s, took_s / _SHARE), self._at_most_s)
        return self.pause_s
