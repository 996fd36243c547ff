"""A lease among the threads of one process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


class MemoryLease:
    """Held until it is released, from any thread, and by no other holder's release.

    Args:
        holders: the leases of a store that are held now, by name.
        lock: what guards them; the caller may hold it, so it must be reentrant.
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
        # Else another thread's release, and the next holder, could come between look and deletion.
        with self._lock:
            if self.is_held:
                del self._holders[self._name]
