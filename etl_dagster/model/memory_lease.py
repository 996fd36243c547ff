"""A lease among the threads of one process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


class MemoryLease:
    """Held until it is released, from any thread; another holder's release doesn't end it.

    Args:
        holders: the leases of a store that are held now, by name.
        lock: guards `holders`; the caller may hold it, so it must be reentrant.
    """

    def __init__(
        self, holders: dict[str, MemoryLease], name: str, lock: AbstractContextManager[Any]
    ) -> None:
        self._holders = holders
        self._name = name
        self._lock = lock

    @property
    def is_held(self) -> bool:
        return self._holders.get(self._name) is self

    def release(self) -> None:
        # Without the lock, a second release could delete the lease of the next holder.
        with self._lock:
            if self.is_held:
                del self._holders[self._name]
