"""A bounded queue whose reader can be woken for something else."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items from any threads to one. An item counts as unfinished until it is `done`.

    `queue.Queue` would do if its reader had nothing to wait for but the next item.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._unfinished = 0
        self._is_woken = False
        self._changed = threading.Condition()

    def put(self, item: T, timeout_s: float) -> bool:
        """Add an item; False where there was no room in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._items) < self._capacity, timeout_s):
                return False
            self._items.append(item)
            self._unfinished += 1
            self._changed.notify_all()
            return True

    def get(self, timeout_s: float) -> T | None:
        """The next item; None where none came in time, or the reader was woken first."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._is_woken, timeout_s)
            self._is_woken = False
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def wake(self) -> None:
        """End the wait of `get`: the one under way, or else the next. From any thread."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def done(self) -> None:
        """One of the items that were taken is dealt with."""
        with self._changed:
            self._unfinished -= 1
            self._changed.notify_all()

    @property
    def is_finished(self) -> bool:
        """Whether every item that was put in is done."""
        return self._unfinished == 0

    def wait_finished(self, timeout_s: float) -> bool:
        """Wait until every item is done; False where the time was over first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._unfinished == 0, timeout_s)
