"""Which chunk of a copy is read next: by this process alone, or by several that share the copy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
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
#: So many chunks are asked for at a time: all workers take those that come first, so that the next
#: free one is nearly always among the first that aren't known to be finished.
_LOOK_AT = 100


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
        check: called before each chunk and while waiting; raises where the copy is useless.
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
        self._many = many(store)
        self._table_id = table_id
        self._copy_id = plan.copy_id
        self._waits = waits
        self._check = check
        self._on_seen = on_seen
        self._lock = threading.Lock()
        self._leases: dict[int, Lease] = {}
        #: As far as was looked, so a chunk of another worker may be missing while others are left.
        self._finished = dict(plan.finished)
        #: The chunks that aren't known to be finished, in their order.
        self._left = {chunk.index: chunk for chunk in plan.remaining}

    @property
    def finished(self) -> Mapping[int, FinishedChunk]:
        with self._lock:
            return dict(self._finished)

    def take(self, is_over: Callable[[], bool]) -> CopyChunk | None:
        while True:
            if is_over():
                raise Stopped
            self._check()
            with self._lock:
                known = len(self._finished)
                chunk = self._claim()
                is_news = len(self._finished) > known
                is_left = bool(self._left)
            if is_news:
                self._on_seen(self.finished)
            if chunk is not None or not is_left or not self._waits:
                return chunk
            self._store.wait_for_change(_LOOK_EVERY_S)

    def done(self, chunk: FinishedChunk) -> None:
        self._release(chunk.index)

    def put_back(self, chunk: CopyChunk) -> None:
        self._release(chunk.index)

    def has_free(self) -> bool:
        """Whether some chunk is neither finished nor copied by any worker now."""
        with self._lock:
            return any(self._free_ones())

    def _claim(self) -> CopyChunk | None:
        for free in self._free_ones():
            for chunk in free:
                lease = self._store.acquire_lease(self._name(chunk))
                if lease is None:
                    continue
                # Another worker may have finished it between the look and the lease.
                try:
                    is_finished = bool(self._look([chunk]))
                except BaseException:
                    lease.release()
                    raise
                if is_finished:
                    lease.release()
                    continue
                self._leases[chunk.index] = lease
                return chunk
        return None

    def _free_ones(self) -> Iterator[list[CopyChunk]]:
        """The chunks that were neither finished nor leased when this looked, some at a time."""
        # Also where nothing is left, another copy is noticed.
        in_order = iter([*self._left.values()])
        looked_at = [*islice(in_order, _LOOK_AT)]
        while True:
            finished = self._look(looked_at)
            names = {self._name(chunk): chunk for chunk in looked_at if chunk.index not in finished}
            leased = self._many.leased(list(names)) if names else ()
            if free := [chunk for name, chunk in names.items() if name not in leased]:
                yield free
            if not (looked_at := [*islice(in_order, _LOOK_AT)]):
                return

    def _look(self, chunks: Sequence[CopyChunk]) -> Mapping[int, FinishedChunk]:
        """Those of the chunks that are finished; they are known to be from here on."""
        indexes = [chunk.index for chunk in chunks]
        finished = self._many.finished_chunks(self._table_id, self._copy_id, indexes)
        if finished is None:
            raise LeaseLost(f"another copy of table {self._table_id} has begun")
        self._finished.update(finished)
        for index in finished:
            self._left.pop(index, None)
        return finished

    def _release(self, index: int) -> None:
        with self._lock:
            lease = self._leases.pop(index, None)
        if lease is not None:
            lease.release()

    def _name(self, chunk: CopyChunk) -> str:
        return f"chunk:{self._table_id}:{self._copy_id}:{chunk.index}"
