"""How long to wait before the next try: pauses that double, with jitter."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

#: Above that, doubling overflows long after every limit was reached.
_MOST_DOUBLINGS = 64


def doubled_s(first_s: float, longest_s: float, attempt: int) -> float:
    """The pause after a failed attempt, without jitter, in seconds.

    >>> [doubled_s(5, 60, attempt) for attempt in range(5)]
    [5.0, 10.0, 20.0, 40.0, 60.0]

    Args:
        attempt: counted from 0.
    """
    return min(math.ldexp(first_s, min(attempt, _MOST_DOUBLINGS)), float(longest_s))


class Backoff:
    """Pauses that double up to a limit, each with jitter; `reset` after progress.

    Not thread-safe.

    Args:
        first_s: the first pause, before jitter.
        longest_s: no pause is longer.
        max_attempts: so many pauses in a row at most; None for any number.
        give_up_after_s: no pause ends later than this, counted from now or from the last `reset`;
            None for no such end.
        clock: seconds that only grow.
        rand: a number from 0 up to, but not including, 1.
    """

    def __init__(
        self,
        first_s: float,
        longest_s: float,
        *,
        max_attempts: int | None = None,
        give_up_after_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._max_attempts = max_attempts
        self._give_up_after_s = give_up_after_s
        self._clock = clock
        self._random = rand
        #: Pauses since the last progress.
        self.attempt = 0
        self._began = clock()

    @property
    def is_exhausted(self) -> bool:
        """Whether to give up: no attempt is left, or the next pause would end too late."""
        if self._max_attempts is not None and self.attempt >= self._max_attempts:
            return True
        if self._give_up_after_s is None:
            return False
        pause_s = doubled_s(self._first_s, self._longest_s, self.attempt)
        return self._clock() + pause_s > self._began + self._give_up_after_s

    def next_delay_s(self) -> float:
        """Seconds before the next try; counts as an attempt."""
        delay_s = self.delay_s(self.attempt)
        self.attempt += 1
        return delay_s

    def delay_s(self, attempt: int) -> float:
        """The pause after this attempt, from 0: between half of the doubled pause and all of it."""
        return doubled_s(self._first_s, self._longest_s, attempt) * (0.5 + self._random() / 2)

    def reset(self) -> None:
        """Begin again with the first pause, after progress."""
        self.attempt = 0
        self._began = self._clock()
