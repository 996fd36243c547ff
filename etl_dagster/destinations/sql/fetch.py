"""Fetches record batches in a thread of its own, so that reading and writing overlap."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from etl_dagster.model.events import CopiedRows
from etl_dagster.threads import Background

#: How much is fetched ahead and not yet taken, at most (and one batch more).
_LIMIT_BYTES = 16 * 1024**2
#: A source that fills this much in this time is quick enough to be written as it comes.
_QUICK_BYTES, _QUICK_S = 2 * 1024**2, 0.1


class FetchAhead:
    """Iterates over batches that are fetched some MiB ahead. Use it as a context manager."""

    def __init__(self, batches: Iterator[CopiedRows]) -> None:
        self._batches = batches
        self._changed = threading.Condition()
        self._ready: deque[CopiedRows] = deque()
        self._ready_bytes = 0
        self._is_at_end = self._is_stopped = False
        self._failure: BaseException | None = None
        self._thread = Background(self._fetch, name="copy-fetch")

    def __enter__(self) -> FetchAhead:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, so that the source's connection is free for its owner again."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        self._thread.join()

    def wait_until_worthwhile(self) -> None:
        """Return when batches can be read almost without waiting.

        So a lock that is taken then is held only briefly.
        """
        started = time.monotonic()
        with self._changed:
            self._wait_for(_QUICK_BYTES)
            if time.monotonic() - started > _QUICK_S:
                self._wait_for(_LIMIT_BYTES)

    def __iter__(self) -> Iterator[CopiedRows]:
        while True:
            with self._changed:
                self._wait_for(1)
                if not self._ready:
                    self.raise_failure()
                    return
                batch = self._ready.popleft()
                self._ready_bytes -= _size(batch)
                self._changed.notify_all()
            yield batch

    def raise_failure(self) -> None:
        """Raise what the source failed with, if it did."""
        if self._failure is not None:
            raise self._failure

    def _wait_for(self, count: int) -> None:
        self._changed.wait_for(lambda: self._ready_bytes >= count or self._is_at_end)

    def _fetch(self) -> None:
        try:
            for batch in self._batches:
                with self._changed:
                    self._ready.append(batch)
                    self._ready_bytes += _size(batch)
                    self._changed.notify_all()
                    self._changed.wait_for(
                        lambda: self._is_stopped or self._ready_bytes < _LIMIT_BYTES
                    )
                    if self._is_stopped:
                        return
        except BaseException as failure:
            self._failure = failure
        finally:
            with self._changed:
                self._is_at_end = True
                self._changed.notify_all()


def _size(batch: CopiedRows) -> int:
    # Rows of nulls may have no bytes at all, and are still to be waited for.
    return batch.nbytes + 1
