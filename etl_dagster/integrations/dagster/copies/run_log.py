"""The lines of a run's log about what the engine does in a step."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Its drivers cost as much to import as Dagster; every process of Dagster imports this module.
    from etl_dagster.runtime.copying.table_sync import CopyProgress

#: Copy threads fail together, and again after each pause. One line in this time reports it.
_SAME_AGAIN_S = 30.0
_ENGINE = "etl_dagster"


class Warnings(logging.Handler):
    """Keeps warnings of the engine's threads until the step's own thread logs them.

    Otherwise they would appear only on the run's standard error, and a copy that waits for its
    source would look like one that hangs.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._texts: deque[str] = deque()
        self._said: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())

    def take(self) -> list[str]:
        """New warnings since the last call; texts that differ in numbers only count as the same."""
        now, news = self._clock(), []
        while self._texts:
            text = self._texts.popleft()
            gist = re.sub(r"\d+(\.\d+)?", "", text)
            if now - self._said.get(gist, float("-inf")) >= _SAME_AGAIN_S:
                self._said[gist] = now
                news.append(text)
        return news


@contextmanager
def engine_warnings() -> Iterator[Warnings]:
    """Collects, during this block, all warnings of the engine in this process."""
    warnings, engine = Warnings(), logging.getLogger(_ENGINE)
    engine.addHandler(warnings)
    try:
        yield warnings
    finally:
        engine.removeHandler(warnings)


class CopyPace:
    """The rate of a copy, as this step sees it, and how long the rest takes at that rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None

    def line(self, name: str, progress: CopyProgress) -> str:
        """The progress in one line, for example::

        public.orders: 3 of 7 chunks copied, 150,000 rows of about 336,000; 50,000 rows/s,
        about 4 s left
        """
        now, rows = self._clock(), progress.rows_done
        if self._first is None:
            # Chunks that an earlier run copied took no time in this one.
            self._first = now, rows
        started, rows_before = self._first
        left = max(progress.rows_estimated - rows, 0)
        chunks = f"{progress.chunks_done} of {progress.chunks_total} chunks copied"
        text = f"{name}: {chunks}, {rows:,} rows"
        if left:
            text += f" of about {progress.rows_estimated:,}"
        if now <= started or rows <= rows_before:
            return text
        rate = (rows - rows_before) / (now - started)
        text += f"; {rate:,.0f} rows/s"
        return f"{text}, about {duration(left / rate)} left" if left else text


def duration(seconds: float) -> str:
    """A length of time, for people.

    >>> duration(42.4), duration(605), duration(8000)
    ('42 s', '10 min', '2 h 13 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
