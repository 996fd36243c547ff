"""Leases of a store in memory: several threads release what another one takes meanwhile."""

from __future__ import annotations

import threading
from types import TracebackType

import pytest

from etl_dagster.model.memory_lease import MemoryLease
from etl_dagster.runtime.local_store import LocalStore
from etl_dagster.stores.memory import MemoryStore
from tests.support.waiting import PATIENCE_S


class _Guard:
    """A lock that knows whether it is held."""

    is_held = False

    def __enter__(self) -> None:
        self.is_held = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.is_held = False


def test_a_release_checks_and_deletes_in_one_step() -> None:
    guard = _Guard()
    touched: list[tuple[str, bool]] = []

    class Holders(dict[str, MemoryLease]):
        def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
            touched.append(("look", guard.is_held))
            return super().get(key, default)

        def __delitem__(self, key: str) -> None:
            touched.append(("delete", guard.is_held))
            super().__delitem__(key)

    holders = Holders()
    holders["apply"] = lease = MemoryLease(holders, "apply", guard)

    lease.release()

    assert touched == [("look", True), ("delete", True)]
    assert not holders
    lease.release()
    assert touched[2:] == [("look", True)]


@pytest.mark.parametrize("make", [MemoryStore, lambda: LocalStore(MemoryStore())])
def test_a_release_waits_for_the_stores_own_lock(
    make: type[MemoryStore] | type[LocalStore],
) -> None:
    store = make()  # type: ignore[call-arg]
    lease = store.acquire_lease("apply")
    assert lease is not None
    begun = threading.Event()

    def release() -> None:
        begun.set()
        lease.release()

    thread = threading.Thread(target=release, daemon=True)
    with store._lock:
        thread.start()
        assert begun.wait(PATIENCE_S)
        thread.join(0.05)
        assert lease.is_held
    thread.join(PATIENCE_S)
    assert not lease.is_held
    assert store.acquire_lease("apply") is not None
