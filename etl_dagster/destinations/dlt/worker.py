"""A lane and the thread that uses it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from etl_dagster.destinations.dlt.changes import Round, Stretches
from etl_dagster.destinations.dlt.lane import Lane, LoadPart
from etl_dagster.destinations.dlt.ledger import TableEntry
from etl_dagster.errors import DestinationUnreachable, TableWriteFailed
from etl_dagster.model.events import TableStep
from etl_dagster.model.schema import TableId, TableSchema


@dataclass(frozen=True)
class ChangesOfTable:
    """One table's part of a batch."""

    table_id: TableId
    steps: Sequence[TableStep]
    #: `EventBatch.apply_from` of the table.
    applied_from: int | None


@dataclass(eq=False)
class _Write:
    """A batch that waits to be loaded, or is being loaded."""

    changes: Sequence[ChangesOfTable]
    epoch: int
    result: Future[None] = field(default_factory=Future)
    rounds: list[Iterator[Round]] = field(default_factory=list)

    def has(self, table_id: TableId) -> bool:
        return any(each.table_id == table_id for each in self.changes)


class LaneWorker:
    """Does one thing at a time with a lane; changes that wait are loaded as one package.

    Args:
        is_of_stream: whether a position counts only for a sender with the same `apply_from`.
    """

    def __init__(self, lane: Lane, stretches: Stretches, *, is_of_stream: bool) -> None:
        self._lane = lane
        self._stretches = stretches
        self._is_of_stream = is_of_stream
        self._pending: deque[_Write] = deque()
        self._lock = threading.Lock()
        #: The schemas with which the tables were written last.
        self._known: dict[TableId, TableSchema] = {}
        self._thread = ThreadPoolExecutor(1, f"dlt {lane.name}")

    def submit(self, work: Callable[[Lane], None]) -> Future[None]:
        """Do something with the lane, after everything that was queued before."""
        return self._thread.submit(work, self._lane)

    def forget(self, table_id: TableId) -> Future[None]:
        """The table is copied again: what was known of it holds no longer."""

        def work(lane: Lane) -> None:
            self._known.pop(table_id, None)
            lane.forget_table(table_id)

        return self.submit(work)

    def load_changes(self, changes: Sequence[ChangesOfTable], epoch: int) -> Future[None]:
        """Queue changes. None of their tables may be in a write that isn't durable yet."""
        write = _Write(changes, epoch)
        with self._lock:
            self._pending.append(write)
        self._thread.submit(self._load_pending)
        return write.result

    def close(self) -> None:
        """Wait for everything that is queued; idempotent."""
        self._thread.shutdown()
        self._lane.forget()

    # -- on its thread ---------------------------------------------------------------------------

    def _load_pending(self) -> None:
        with self._lock:
            taken = list(self._pending)
            self._pending.clear()
        writes = taken
        try:
            while writes:
                writes = self._load_together(writes)
        except BaseException as error:
            # A panic in a library written in Rust, such as deltalake, is not an Exception. Without
            # a result, the pipeline would wait for these writes for ever.
            failure = DestinationUnreachable(f"dlt's load was ended by {type(error).__name__}")
            for write in taken:
                if not write.result.done():
                    write.result.set_exception(failure)

    def _load_together(self, writes: Sequence[_Write]) -> list[_Write]:
        """Load the writes round by round.

        Returns:
            The writes that were stopped only because another one's table was refused; fewer than
            were given. They are to be loaded again.
        """
        active = [write for write in writes if self._begin(write)]
        while active:
            loaded: list[_Write] = []
            parts: list[LoadPart] = []
            entries: dict[TableId, TableEntry] = {}
            for write in active:
                try:
                    rounds = [next(each, None) for each in write.rounds]
                except Exception as error:
                    write.result.set_exception(error)
                    continue
                due = [each for each in rounds if each is not None]
                if not due:
                    self._end(write)
                    continue
                loaded.append(write)
                parts += [each.part for each in due]
                entries |= {each.part.table_id: each.entry for each in due}
            if not loaded:
                break
            try:
                self._lane.load(parts, entries, max(write.epoch for write in loaded))
            except TableWriteFailed as error:
                # If none has the table, all fail: the same writes would otherwise come back again
                # and again.
                refused = [write for write in loaded if write.has(error.table_id)] or loaded
                for write in refused:
                    write.result.set_exception(error)
                return [write for write in loaded if write not in refused]
            except Exception as error:
                for write in loaded:
                    write.result.set_exception(error)
                break
            active = loaded
        return []

    def _begin(self, write: _Write) -> bool:
        try:
            write.rounds = [self._rounds(each) for each in write.changes]
        except Exception as error:
            write.result.set_exception(error)
            return False
        return True

    def _rounds(self, changes: ChangesOfTable) -> Iterator[Round]:
        table_id = changes.table_id
        entry = self._lane.entry(table_id)
        if not self._is_of_stream or entry.applied_from == changes.applied_from:
            entry = replace(entry, chunks={})
            return self._stretches.rounds(changes.steps, self._known.get(table_id), entry)
        # There was a new copy in between, perhaps in another process.
        self._known.pop(table_id, None)
        entry = TableEntry(applied_from=changes.applied_from)
        return self._of_copied(table_id, self._stretches.rounds(changes.steps, None, entry))

    def _of_copied(self, table_id: TableId, rounds: Iterator[Round]) -> Iterator[Round]:
        """The rounds, of a table whose copy is here.

        The first one is made before: a table that came from another dataset is copied again.
        """
        first = next(rounds, None)
        if first is not None:
            self._lane.require_copied(table_id)
            yield first
            yield from rounds

    def _end(self, write: _Write) -> None:
        for each in write.changes:
            self._known[each.table_id] = each.steps[-1].schema
        write.result.set_result(None)
