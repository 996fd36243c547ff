"""Which chunk of a copy is read next: by this process alone, or by several that share the copy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from etl_dagster.errors import LeaseLost
from etl_dagster.model.coordination import CopyChunk, CopyPlan, FinishedChunk, Lease
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.many import many

#: How often a worker that waits for the chunks of others looks at the plan, seconds. The store
#: wakes it when one of them is finished; this is for those whose worker is gone.
_LOOK_EVERY_S = 0.5


class ChunkQueue(Protocol):
    """Gives out the chunks of a copy that aren't finished; for any thread."""

    @property
    def finished(self) -> Mapping[int, FinishedChunk]:
        """All that are known to be finished, by any worker."""
        ...

    def take(self, is_over: Callable[[], bool]) -> CopyChunk | None:
        """A chunk that no other worker copies now; None where none is left.

        Raises:
            Stopped: it was over before.
            LeaseLost: another copy of the table has begun.
        """
        ...

    def done(self, chunk: FinishedChunk) -> None:
        """The chunk is durable, and recorded."""
        ...

    def put_back(self, chunk: CopyChunk) -> None:
        """Leave a chunk that was taken to others."""
        ...


class OwnChunks:
    """The chunks of a copy that this process makes alone."""

    def __init__(self, plan: CopyPlan) -> None:
        self._lock = threading.Lock()
        self._left = list(reversed(plan.remaining))
        self._finished = dict(plan.finished)

    @property
    def finished(self) -> Mapping[int, FinishedChunk]:
        with self._lock:
            return dict(self._finished)

    def take(self, is_over: Callable[[], bool]) -> CopyChunk | None:
        if is_over():
            raise Stopped
        with self._lock:
            return self._left.pop() if self._left else None

    def done(self, chunk: FinishedChunk) -> None:
        with self._lock:
            self._finished[chunk.index] = chunk

    def put_back(self, chunk: CopyChunk) -> None:
        with self._lock:
            self._left.append(chunk)


class SharedChunks:
    """The chunks of a copy that several processes make, each claimed by a lease of the store.

    A lease ends with its process, so the chunk of one that was killed is free at once, and with the
    connection of one that can't be reached any more. Such a process may still write the chunk that
    another copies by then: a destination keeps the chunk of a copy once (`Destination`), so a lease
    spares work and nothing rests on it.

    Args:
        waits: whether `take` waits for the chunks that others copy, so that None means that the
            copy is complete; else None means that nothing is free now.
        check: called before each chunk and while waiting; raises where the copy is in vain.
        on_seen: called with all finished chunks, also those of others.
    """

    def __init__(
        self,
        store: CoordinatingStore,
        table_id: TableId,
        plan: CopyPlan,
        *,
        waits: bool,
        check: Callable[[], None] = lambda: None,
        on_seen: Callable[[Mapping[int, FinishedChunk]], None] = lambda finished: None,
    ) -> None:
        self._store = store
        self._table_id = table_id
        self._copy_id = plan.copy_id
        self._waits = waits
        self._check = check
        self._on_seen = on_seen
        self._lock = threading.Lock()
        self._leases: dict[int, Lease] = {}
        self._finished = plan.finished

    @property
    def finished(self) -> Mapping[int, FinishedChunk]:
        return self._finished

    def take(self, is_over: Callable[[], bool]) -> CopyChunk | None:
        while True:
            if is_over():
                raise Stopped
            self._check()
            with self._lock:
                plan = self._look()
                chunk = self._claim(plan)
            self._on_seen(plan.finished)
            if chunk is not None or not plan.remaining or not self._waits:
                return chunk
            self._store.wait_for_change(_LOOK_EVERY_S)

    def done(self, chunk: FinishedChunk) -> None:
        self._release(chunk.index)

    def put_back(self, chunk: CopyChunk) -> None:
        self._release(chunk.index)

    def has_free(self) -> bool:
        """Whether some chunk is neither finished nor copied by any worker now."""
        plan = self._look()
        names = [self._name(chunk) for chunk in plan.remaining]
        return len(many(self._store).leased(names)) < len(names)

    def _look(self) -> CopyPlan:
        plan = self._store.get_copy_plan(self._table_id)
        if plan is None or plan.copy_id != self._copy_id:
            raise LeaseLost(f"another copy of table {self._table_id} has begun")
        self._finished = plan.finished
        return plan

    def _claim(self, plan: CopyPlan) -> CopyChunk | None:
        free = {self._name(chunk): chunk for chunk in plan.remaining}
        leased = many(self._store).leased(list(free))
        for name, chunk in free.items():
            if name in leased or (lease := self._store.acquire_lease(name)) is None:
                continue
            # Another worker may have finished it between the look at the plan and the lease.
            if chunk.index in self._look().finished:
                lease.release()
                continue
            self._leases[chunk.index] = lease
            return chunk
        return None

    def _release(self, index: int) -> None:
        with self._lock:
            lease = self._leases.pop(index, None)
        if lease is not None:
            lease.release()

    def _name(self, chunk: CopyChunk) -> str:
        return f"chunk:{self._table_id}:{self._copy_id}:{chunk.index}"
