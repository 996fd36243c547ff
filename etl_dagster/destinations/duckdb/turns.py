"""How long the DuckDB file is kept open, and how long it is left to others afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Opening and closing costs some 20 ms of CPU, so the next write has a moment to come: a long one
#: when it is announced, or when the last one came soon after the file was closed.
_LINGER_S, _BUSY_LINGER_S = 0.03, 0.3
#: After this long the file is closed as soon as no transaction is open, however many are waiting.
_LONGEST_HOLD_S = 1.0
#: The same after a full batch. Closing writes the last row group of each table again, which is long
#: texts and wide rows of 100,000 rows; it has to be worth it.
_LONGEST_CATCH_UP_HOLD_S = 4.0
#: Then processes that don't announce themselves, such as the duckdb shell, get their turn.
_TURN_S = 0.03


class Turns:
    """Times of one file: of the process that writes it, and of others.

    Knows no lock and waits for nothing: `DatabaseFile` tells what happens and asks what is due.

    Args:
        clock: seconds, ascending.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._opened_at = self._closed_at = self._idle_since = self._turn_until = 0.0
        self._linger_s = _LINGER_S
        self._longest_hold_s = _LONGEST_HOLD_S

    def before_opening(self) -> float:
        """The file is wanted; returns how many seconds it is still left to others."""
        now = self._clock()
        is_busy = now - self._closed_at < _BUSY_LINGER_S
        self._linger_s = _BUSY_LINGER_S if is_busy else _LINGER_S
        return max(self._turn_until - now, 0.0)

    def opened(self) -> None:
        self._opened_at = self._clock()

    def written(self, more_follows: bool | None, *, is_closing_costly: bool) -> None:
        """A transaction has ended.

        Args:
            more_follows: whether the next is known to come soon, or known not to; None is neither.
            is_closing_costly: whether closing has much to write.
        """
        if more_follows is not None:
            self._linger_s = _BUSY_LINGER_S if more_follows else 0.0
            self._longest_hold_s = (
                _LONGEST_CATCH_UP_HOLD_S if more_follows and is_closing_costly else _LONGEST_HOLD_S
            )
        self._idle_since = self._clock()

    @property
    def linger_s(self) -> float:
        """How many seconds the file stays open for the next transaction; none is left at zero."""
        return max(self._idle_since + self._linger_s - self._clock(), 0.0)

    @property
    def is_held_long(self) -> bool:
        """Whether others have waited long enough, however much there is to write."""
        return self._clock() - self._opened_at > self._longest_hold_s

    def closing(self) -> None:
        if self.is_held_long:
            self._turn_until = self._clock() + _TURN_S

    def closed(self) -> None:
        self._closed_at = self._clock()
