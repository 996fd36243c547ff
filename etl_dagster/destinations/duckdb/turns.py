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
#: Processes that don't announce themselves, such as the duckdb shell, try again and again. A turn
#: for them is a time in which the file stays closed: at least this long, or as long as it took to
#: open the file if that is longer (a refused reader has done half of that), and never longer than
#: the second.
_TURN_S, _LONGEST_TURN_S = 0.03, 0.1
#: After a batch that isn't full the file is closed at once. Where writing takes longer than
#: filling, the next batch is there already, and the file would be closed and opened without a
#: moment in between. So there is a turn once there was none for so long.
_LONGEST_WITHOUT_TURN_S = 0.1


class Turns:
    """Times of one file: of the process that writes it, and of others.

    Knows no lock and waits for nothing: `DatabaseFile` tells what happens and asks what is due.

    Args:
        clock: seconds, ascending.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._opening_at = self._opened_at = self._closed_at = self._idle_since = 0.0
        #: When others last had a turn, whether given to them or because there was nothing to write.
        self._turn_at = 0.0
        self._turn_s = _TURN_S
        self._is_turn_due = False
        self._linger_s = _LINGER_S
        self._longest_hold_s = _LONGEST_HOLD_S

    def before_opening(self) -> float:
        """The file is wanted; returns how many seconds it is still left to others."""
        now = self._clock()
        closed_s = now - self._closed_at
        self._linger_s = _BUSY_LINGER_S if closed_s < _BUSY_LINGER_S else _LINGER_S
        return max(self._turn_s - closed_s, 0.0) if self._is_turn_due else 0.0

    def opening(self) -> None:
        """The file is about to be opened, after what `before_opening` returned; again each time
        that another process has it."""
        self._opening_at = now = self._clock()
        if self._is_turn_due or now - self._closed_at >= self._turn_s:
            self._turn_at, self._is_turn_due = now, False

    def opened(self) -> None:
        self._opened_at = now = self._clock()
        self._turn_s = min(max(_TURN_S, now - self._opening_at), _LONGEST_TURN_S)

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

    def closed(self) -> None:
        """The file is closed; a turn for others is counted from here."""
        self._closed_at = now = self._clock()
        # It lingers while full batches come, or chunks of a copy.
        longest_s = self._longest_hold_s if self._linger_s else _LONGEST_WITHOUT_TURN_S
        self._is_turn_due = now - self._turn_at > longest_s
