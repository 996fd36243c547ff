"""Which failures of a request are tried again, and when."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from etl_dagster.errors import DestinationUnreachable

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: 0.1, 0.3, 0.9, 2.7 and then 5 seconds, and up to 0.2 more, by chance.
_FIRST_DELAY_S: Final = 0.1
_DELAY_GROWTH: Final = 3.0
_MAX_DELAY_S: Final = 5.0
_JITTER_S: Final = 0.2
#: No new try after this; the pipeline's own retries, which end when it stops, continue from there.
_MAX_TOTAL_S: Final = 45.0
#: If a receiver asks for more, the write fails, and the next one waits, up to this long again.
_MAX_WAIT_S: Final = 10.0


class TryAgain(Exception):
    """A request failed in a way that time may cure. Never with a value or a secret.

    Args:
        retry_after_s: how long the receiver asks to leave it alone.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


def is_transient(status: int) -> bool:
    """Whether the same request may get another answer later.

    429 and all of 5xx; and 408 and 425, where the server didn't look at the request.

    Source: RFC 9110, section 15.5.9; RFC 8470, section 5.2.
    """
    return status in (408, 425, 429) or status >= 500


def parse_retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds from a Retry-After header, which holds them or a date; None if neither.

    Source: RFC 9110, section 10.2.3.
    """
    if header is None:
        return None
    header = header.strip()
    if header.isascii() and header.isdecimal():
        return float(header) if len(header) < 10 else None
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - now).total_seconds(), 0.0)


class Patience:
    """Runs a request until it succeeds, its failure is final, or there were enough tries.

    It remembers what a receiver asked for with Retry-After: no request, of whatever table, is
    begun before. Safe for several threads.

    Args:
        closing: once set, no pause continues and no request is begun.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        max_attempts: int,
        closing: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_attempts = max_attempts
        self._closing = closing
        self._clock = clock
        self._not_before = clock()

    def run(self, request: Callable[[], _T], what: str) -> _T:
        """The request's answer.

        Raises:
            DestinationUnreachable: every try ended in `TryAgain`, the receiver asked to wait for
                too long, or the pipeline stops. Else the pipeline tries again.
        """
        self._wait_for_turn(what)
        if self._closing.is_set():
            raise DestinationUnreachable(
                f"{what}: not sent, because the pipeline stops",
                solution="No action needed: the next start sends it.",
            )
        began = self._clock()
        for attempt in itertools.count(1):
            try:
                return request()
            except TryAgain as failure:
                _log.warning("%s failed: %s", what, failure.reason)
                pause_s = self._pause_s(failure, attempt)
                is_late = pause_s is None or self._clock() - began + pause_s > _MAX_TOTAL_S
                # A stop ends the pause, and with it the tries.
                if attempt < self._max_attempts and not is_late and not self._closing.wait(pause_s):
                    continue
                tries = f"; tried {attempt} times" if attempt > 1 else ""
                raise DestinationUnreachable(
                    f"{what}: {failure.reason}{tries}",
                    solution="Check destination.url and that the server is up; "
                    "the pipeline retries by itself.",
                ) from None
        raise AssertionError("a request ends with an answer or a failure")

    def _pause_s(self, failure: TryAgain, attempt: int) -> float | None:
        """Seconds before the next try; None where the receiver asks for too many."""
        # Senders that were told the same don't come back at the same moment.
        jitter_s = random.uniform(0, _JITTER_S)
        if failure.retry_after_s is None:
            growth = _DELAY_GROWTH ** (attempt - 1)
            return min(_FIRST_DELAY_S * growth + jitter_s, _MAX_DELAY_S)
        self._not_before = max(self._not_before, self._clock() + failure.retry_after_s)
        return None if failure.retry_after_s > _MAX_WAIT_S else failure.retry_after_s + jitter_s

    def _wait_for_turn(self, what: str) -> None:
        left_s = self._not_before - self._clock()
        if left_s <= 0:
            return
        self._closing.wait(min(left_s, _MAX_WAIT_S))
        left_s = self._not_before - self._clock()
        if left_s > 0:
            raise DestinationUnreachable(
                f"{what}: the server asked for a pause, of which {left_s:.0f} s are left",
                solution="No action needed, unless the server asks for it again and again.",
            )
