"""How long the DuckDB file is kept open, and how long it is left to others afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holding:
    """How long the file is kept, and left to others, in seconds."""

    #: Opening and closing costs some 20 ms of CPU, so the next write has a moment to come: a long
    #: one when it is announced, or when the last one came soon after the file was closed.
    linger_s: float = 0.03
    busy_linger_s: float = 0.3
    #: After this long the file is closed as soon as no transaction is open, however many wait.
    longest_s: float = 1.0
    #: The same after a full batch. Closing writes the last row group of each table again, which is
    #: long texts and wide rows of 100,000 rows; it has to be worth it.
    longest_catch_up_s: float = 4.0
    #: Processes that don't announce themselves, such as the duckdb shell, try again and again. A
    #: turn for them is a time in which the file stays closed: at least this long, or as long as it
    #: took to open the file if that is longer (a refused reader has done half of that), and never
    #: longer than the second.
    turn_s: float = 0.03
    longest_turn_s: float = 0.1
    #: After a batch that isn't full the file is closed at once. Where writing takes longer than
    #: filling, the next batch is there already, and the file would be closed and opened without a
    #: moment in between. So there is a turn once there was none for this long.
    longest_without_turn_s: float = 0.1


HOLDING = Holding()


class WriterTurns:
    """Times of one file: of the process that writes it, and of others.

    Knows no lock and waits for nothing: `DatabaseFile` tells what happens and asks what is due.

    Args:
        clock: seconds, ascending.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, holding: Holding = HOLDING
    ) -> None:
        self._clock = clock
        self._holding = holding
        self._opening_at = self._opened_at = self._closed_at = self._idle_since = 0.0
        #: When others last had a turn, whether given to them or because there was nothing to write.
        self._turn_at = 0.0
        self._turn_s = self._holding.turn_s
        self._is_turn_due = False
        self._linger_s = self._holding.linger_s
        self._longest_hold_s = self._holding.longest_s

    def before_opening(self) -> float:
        """The file is wanted; returns how many seconds it is still left to others."""
        now = self._clock()
        closed_s = now - self._closed_at
        self._linger_s = (
            self._holding.busy_linger_s
            if closed_s < self._holding.busy_linger_s
            else self._holding.linger_s
        )
        return max(self._turn_s - closed_s, 0.0) if self._is_turn_due else 0.0

    def opening(self) -> None:
        """The file is about to be opened, after what `before_opening` returned; again each time
        that another process has it."""
        self._opening_at = now = self._clock()
        if self._is_turn_due or now - self._closed_at >= self._turn_s:
            self._turn_at, self._is_turn_due = now, False

    def opened(self) -> None:
        self._opened_at = now = self._clock()
        self._turn_s = min(
            max(self._holding.turn_s, now - self._opening_at), self._holding.longest_turn_s
        )

    def written(self, more_follows: bool | None, *, is_closing_costly: bool) -> None:
        """A transaction has ended.

        Args:
            more_follows: whether the next is known to come soon, or known not to; None is neither.
            is_closing_costly: whether closing has much to write.
        """
        if more_follows is not None:
            self._linger_s = self._holding.busy_linger_s if more_follows else 0.0
            self._longest_hold_s = (
                self._holding.longest_catch_up_s
                if more_follows and is_closing_costly
                else self._holding.longest_s
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
        longest_s = self._longest_hold_s if self._linger_s else self._holding.longest_without_turn_s
        self._is_turn_due = now - self._turn_at > longest_s
