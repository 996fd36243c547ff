"""What the destination refuses a batch with, for as long as it does."""

from __future__ import annotations

from etl_dagster.runtime.clock import Clock
from etl_dagster.runtime.showing.events import BatchWritten, Event, WriteRetried
from etl_dagster.runtime.showing.observer import Observer


class Trouble:
    """Observes: remembers the last refusal until a batch is written, and tells another observer.

    Args:
        forgets_after_s: a refusal that isn't followed by another one in this time is over; the
            stream that met it has ended.
    """

    def __init__(self, then: Observer, clock: Clock, *, forgets_after_s: float) -> None:
        self._then = then
        self._clock = clock
        self._forgets_after_s = forgets_after_s
        self._last: tuple[WriteRetried, float] | None = None

    @property
    def refusal(self) -> WriteRetried | None:
        """None while batches are taken."""
        last = self._last
        if last is None or self._clock.now_s() - last[1] > self._forgets_after_s:
            return None
        return last[0]

    def observe(self, event: Event) -> None:
        match event:
            case WriteRetried():
                self._last = event, self._clock.now_s()
            case BatchWritten():
                self._last = None
        self._then.observe(event)
