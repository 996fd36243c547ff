"""Values read from the store, kept until they are reported as changed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """One value; `invalidate` forgets it, also when it is just being loaded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generation = 0
        self._value: T | None = None

    def get(self, load: Callable[[], T], *, keep: bool) -> T:
        """The value, loaded where needed, and kept where changes of it will be heard of."""
        with self._lock:
            if keep and self._value is not None:
                return self._value
            generation = self._generation
        value = load()
        with self._lock:
            if keep and generation == self._generation:
                self._value = value
        return value

    def invalidate(self) -> None:
        with self._lock:
            self._generation += 1
            self._value = None
