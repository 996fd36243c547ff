"""From closed batches to durable changes: decode, write, keep progress, in order."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from typing import Protocol

from etl_dagster.backoff import Backoff
from etl_dagster.config import RetryConfig
from etl_dagster.errors import (
    BatchTooLarge,
    DestinationError,
    EtlError,
    RowsOutdated,
    SourceRestored,
    Superseded,
    TableWriteFailed,
)
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.destination import Destination, WriteResult
from etl_dagster.model.events import BeginEvent, EventBatch, TransactionMark
from etl_dagster.model.identity import RemembersDestination
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import ApplyWorker, PipelineStore, WorkerType
from etl_dagster.protocol.batch import Altered
from etl_dagster.protocol.pgoutput import Relation
from etl_dagster.runtime.belonging import marking
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.halving import PieceSize, halves, only_table
from etl_dagster.runtime.odd_policies import OddPolicies
from etl_dagster.runtime.renames import Renames
from etl_dagster.runtime.retry import backoff
from etl_dagster.runtime.schemas import SchemaTracker
from etl_dagster.table_name import TableName

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """The pipeline was told to stop while something was waited for."""


@dataclass(frozen=True, slots=True)
class _Progress:
    """Nothing to write: everything before `lsn` is durable already."""

    lsn: Lsn


class Undecoded(Protocol):
    """What becomes an `EventBatch` on the writing thread: a `RawBatch`, or rows that were read."""

    @property
    def first_commit_lsn(self) -> Lsn | None: ...

    @property
    def first_commit_time_us(self) -> int | None: ...

    def decode(
        self,
        schema_of: Callable[[Relation, Lsn], TableSchema],
        apply_from: Mapping[TableId, Lsn],
        epoch: int,
        altered: Altered,
    ) -> EventBatch: ...


class Delivery:
    """The writer side of one stream: a thread that takes batches from a bounded queue.

    Args:
        worker: whose progress is kept in the store; None to keep none.
        expected: a transaction that was delivered before, and that this stream must bring again:
            else its source has another history.
        prepare: a last word on a decoded batch, for example to complete values in it.
        on_durable: called from the thread with each LSN that is durable at the destination and
            in the store, ascending; and with the batch, when there was one.
        on_table_error: called when one table's changes can't be written; the batch goes on
            without the table. Raising ends the delivery.
        on_outdated: called with the reason when a table can only be brought up to date by a new
            copy, before anything that follows is durable; the batch goes on without the table.
        renames: names that the destination is told without a change of the table.
        odd_policies: what becomes of values that their columns' types can't hold; None: null.
    """

    def __init__(
        self,
        destination: Destination,
        store: PipelineStore,
        worker: WorkerType | None,
        schemas: SchemaTracker,
        retry: RetryConfig,
        *,
        pipeline: str = "",
        epoch: int = 0,
        expected: TransactionMark | None = None,
        max_queued: int = 2,
        stop: threading.Event,
        prepare: Callable[[EventBatch], EventBatch] = lambda events: events,
        on_durable: Callable[[Lsn | None, EventBatch | None], None],
        on_table_error: Callable[[TableId, EtlError], None],
        on_outdated: Callable[[TableId, str], None],
        renames: Renames | None = None,
        odd_policies: OddPolicies | None = None,
        name: str,
    ) -> None:
        self._destination = destination
        self._renames = renames
        self._odd_policies = odd_policies
        self._store = store
        self._worker = worker
        self._schemas = schemas
        self._retry = retry
        self._pipeline = pipeline
        self._epoch = epoch
        self._expected = expected
        #: As the store has them by now, as far as this delivery knows.
        self._stored_lsn = LSN_ZERO
        self._stored_revision = 0
        self._stop = stop
        self._prepare = prepare
        self._on_durable = on_durable
        self._on_table_error = on_table_error
        self._on_outdated = on_outdated
        self._queue: queue.Queue[tuple[Undecoded, Mapping[TableId, Lsn]] | _Progress | None]
        self._queue = queue.Queue(max_queued)
        self._failure: BaseException | None = None
        #: From where on each table is applied, as of the last batch. Another LSN means another
        #: copy: what was known of the table before holds no longer.
        self._applied_from: dict[TableId, Lsn] = {}
        #: Tables taken out of this stream after an error, until they are copied anew.
        self._excluded: set[TableId] = set()
        self._piece_size = PieceSize()
        #: Of each batch that isn't durable yet, when its first transaction was committed.
        self._pending: deque[int] = deque()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    # -- the reader's side -----------------------------------------------------------------------

    def put(self, batch: Undecoded, apply_from: Mapping[TableId, Lsn]) -> None:
        """Hand over a batch; waits while the queue is full (that is the back-pressure).

        Raises:
            Stopped: the pipeline stops.
        """
        self._pending.append(batch.first_commit_time_us or time.time_ns() // 1000)
        self._put((batch, apply_from))

    def put_progress(self, lsn: Lsn) -> None:
        """Tell that nothing needs to be written up to `lsn`."""
        self._put(_Progress(lsn))

    def _put(self, item: tuple[Undecoded, Mapping[TableId, Lsn]] | _Progress | None) -> None:
        while True:
            self.raise_failure()
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                if self._stop.is_set():
                    raise Stopped from None

    @property
    def is_idle(self) -> bool:
        """Whether everything that was handed over is durable."""
        return self._queue.unfinished_tasks == 0

    @property
    def oldest_commit_time_us(self) -> int | None:
        """Of the transactions that aren't durable yet, the first one's commit time.

        Microseconds since 1970-01-01 UTC, by the source's clock; None when all are durable.
        """
        try:
            return self._pending[0]
        except IndexError:
            return None

    def raise_failure(self) -> None:
        """Raise what the delivery failed with, if it did."""
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Wait until everything that was handed over is durable.

        Raises:
            Stopped: the pipeline stops.
        """
        while not self.is_idle:
            self.raise_failure()
            if self._stop.is_set():
                raise Stopped
            with self._queue.all_tasks_done:
                if not self.is_idle:
                    self._queue.all_tasks_done.wait(0.2)
        self.raise_failure()

    def finish(self) -> None:
        """Wait until what was handed over is durable, then end the thread.

        Bounded by the destination once the pipeline stops: the write under way is waited for, the
        queue is left.
        """
        if self._thread.is_alive():
            try:
                self._put(None)
            except BaseException:
                # Stopped or failed: the thread ends by itself after what it is doing.
                pass
            self._thread.join()

    # -- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=0.2)
            except queue.Empty:
                if self._stop.is_set():
                    return
                continue
            try:
                if item is None or self._stop.is_set():
                    return
                self._deliver(item)
                if not isinstance(item, _Progress):
                    self._pending.popleft()
            except Stopped:
                return
            except BaseException as failure:
                self._failure = failure
                return
            finally:
                self._queue.task_done()

    def _deliver(self, item: tuple[Undecoded, Mapping[TableId, Lsn]] | _Progress) -> None:
        if isinstance(item, _Progress):
            if self._expected is not None and item.lsn > self._expected.commit_lsn:
                raise self._restored("nothing")
            self._keep_progress(item.lsn)
            self._on_durable(item.lsn, None)
            self._follow_names(item.lsn)
            return
        raw, apply_from = item
        wanted = self._wanted(apply_from)
        events = raw.decode(self._schemas.resolve, wanted, self._epoch, self._schemas.alter)
        events = replace(
            self._without_outdated(events),
            apply_from=wanted,
            pipeline=self._pipeline,
            stored_lsn=self._stored_lsn if isinstance(self._worker, ApplyWorker) else LSN_ZERO,
        )
        self._recognise(events)
        events = self._prepare(self._schemas.announce(events))
        events = self._with_odd_policies(events)
        changes = self._schemas.begin_changes(events)
        events = self._write(events)
        made = [change for change in changes if change.schema.id in events.tables]
        self._schemas.finish_changes(made)
        if self._renames is not None:
            for change in made:
                schema = change.schema
                name = TableName(schema.schema_name, schema.table_name)
                self._renames.described(schema.id, name)
        if events.commit_end_lsn is not None:
            self._keep_progress(events.commit_end_lsn)
        self._on_durable(events.commit_end_lsn, events)
        if events.commit_end_lsn is not None:
            self._follow_names(events.commit_end_lsn)

    def _with_odd_policies(self, events: EventBatch) -> EventBatch:
        if self._odd_policies is None:
            return events
        events, failures = self._odd_policies.batch(events)
        for table_id, failure in failures.items():
            self._exclude(table_id, failure)
        return events

    def _follow_names(self, reached: Lsn) -> None:
        """Tell the destination the names that tables have by now, all of them in one batch."""
        taken = self._renames.take(reached) if self._renames is not None else {}
        if self._renames is None or not taken:
            return
        renamed = {
            table_id: [event]
            for number, (table_id, name) in enumerate(taken.items())
            if (event := self._schemas.renamed(table_id, name, reached, number)) is not None
        }
        events = self._without_excluded(
            EventBatch(
                renamed,
                epoch=self._epoch,
                apply_from={t: lsn for t, lsn in self._applied_from.items() if t in renamed},
                pipeline=self._pipeline,
                stored_lsn=self._stored_lsn if isinstance(self._worker, ApplyWorker) else LSN_ZERO,
            )
        )
        changes = self._schemas.begin_changes(events)
        events = self._write(events)
        self._schemas.finish_changes([c for c in changes if c.schema.id in events.tables])
        self._renames.done(taken)

    def _without_outdated(self, events: EventBatch) -> EventBatch:
        outdated = self._schemas.take_outdated()
        for table_id, reason in outdated.items():
            self._excluded.add(table_id)
            self._on_outdated(table_id, reason)
        if not outdated:
            return events
        kept = {t: steps for t, steps in events.tables.items() if t not in outdated}
        return replace(events, tables=kept)

    def _recognise(self, events: EventBatch) -> None:
        """Find the expected transaction where it must be.

        Raises:
            SourceRestored: another one is there, or none.
        """
        for mark in events.marks if self._expected is not None else ():
            if self._expected is None:
                return
            if isinstance(mark, BeginEvent) and mark.commit_lsn >= self._expected.commit_lsn:
                found = TransactionMark(mark.commit_lsn, mark.xid, mark.commit_time_us)
                if found != self._expected:
                    raise self._restored(f"transaction {mark.xid} at {mark.commit_lsn}")
                self._expected = None

    def _restored(self, what: str) -> SourceRestored:
        assert self._expected is not None
        lsn, xid, _ = self._expected
        return SourceRestored(
            f"transaction {xid}, committed at {lsn}, is applied, but the source now sends {what} "
            "in its place"
        )

    def _wanted(self, apply_from: Mapping[TableId, Lsn]) -> dict[TableId, Lsn]:
        for table_id, lsn in apply_from.items():
            if self._applied_from.get(table_id) != lsn:
                self._applied_from[table_id] = lsn
                self._excluded.discard(table_id)
                self._schemas.forget(table_id)
        return {t: lsn for t, lsn in apply_from.items() if t not in self._excluded}

    def _write(self, events: EventBatch) -> EventBatch:
        """Write until durable; returns the batch without the tables that had to be left out.

        What the destination can't take in one piece is halved until it can. Should the delivery
        end between two pieces, positions tell which of them the destination has.
        """
        pieces = deque([events])
        pauses = backoff(self._retry)
        while pieces:
            piece = self._without_excluded(pieces[0])
            if self._piece_size.is_too_large(piece) and (two := halves(piece)) is not None:
                pieces.popleft()
                pieces.extendleft(reversed(two))
                continue
            try:
                if not piece.is_empty:
                    if len(pieces) > 1:
                        piece = replace(piece, more_follows=True)
                    self._wait_durable(self._destination.write_events(piece))
                    self._piece_size.written(piece)
                pieces.popleft()
                pauses.reset()
            except RowsOutdated as error:
                self._excluded.add(error.table_id)
                self._on_outdated(error.table_id, error.reason)
            except TableWriteFailed as error:
                self._exclude(error.table_id, error)
            except (Superseded, Stopped):
                raise
            except (BatchTooLarge, MemoryError) as error:
                if (two := halves(piece)) is not None:
                    self._piece_size.refused(piece)
                    self._log_halved(piece, error)
                    pieces.popleft()
                    pieces.extendleft(reversed(two))
                elif pauses.is_exhausted and (table_id := only_table(piece)) is not None:
                    self._exclude(table_id, _as_table_failure(table_id, error))
                else:
                    self._pause(error, pauses)
            except Exception as error:
                self._pause(error, pauses)
        return self._without_excluded(events)

    def _exclude(self, table_id: TableId, error: EtlError) -> None:
        self._excluded.add(table_id)
        self._on_table_error(table_id, error)

    def _without_excluded(self, events: EventBatch) -> EventBatch:
        if self._excluded.isdisjoint(events.tables):
            return events
        kept = {t: steps for t, steps in events.tables.items() if t not in self._excluded}
        return replace(events, tables=kept)

    def _log_halved(self, events: EventBatch, error: Exception) -> None:
        _log.warning(
            "%s can't take %d changes in one piece (%s); halving them",
            self._destination.name,
            events.row_count,
            error.reason if isinstance(error, EtlError) else type(error).__name__,
        )

    def _pause(self, error: Exception, pauses: Backoff) -> None:
        """Wait before the next try, or give up."""
        if isinstance(error, EtlError) and not error.retryable:
            raise error
        if self._stop.is_set():
            raise Stopped
        if pauses.is_exhausted:
            if isinstance(error, EtlError):
                raise error
            raise DestinationError(
                f"{self._destination.name} failed {pauses.attempt} times: {type(error).__name__}"
            ) from error
        if not isinstance(error, EtlError) and pauses.attempt == 0:
            log_failure(_log, f"{self._destination.name} failed", error)
        delay_s = pauses.next_delay_s()
        _log.warning(
            "%s refused a batch (%s); try %d in %.1f s",
            self._destination.name,
            error.reason if isinstance(error, EtlError) else type(error).__name__,
            pauses.attempt + 1,
            delay_s,
        )
        if self._stop.wait(delay_s):
            raise Stopped

    def _wait_durable(self, result: WriteResult) -> None:
        wait_durable(result, self._stop)

    def _keep_progress(self, lsn: Lsn) -> None:
        """Store the progress, and how far the destination is by now if it was written since."""
        if self._worker is None:
            return
        marked, store = marking(self._destination), self._store
        revision = 0 if marked is None else marked.written_revision(self._pipeline)
        if revision > self._stored_revision and isinstance(store, RemembersDestination):
            self._stored_lsn = store.store_delivery(self._worker, lsn, revision)
            self._stored_revision = revision
        else:
            self._stored_lsn = store.upsert_replication_progress(self._worker, lsn)


def _as_table_failure(table_id: TableId, error: BatchTooLarge | MemoryError) -> TableWriteFailed:
    """One change that can't be taken, as a failure of its table."""
    if isinstance(error, BatchTooLarge):
        return TableWriteFailed(
            table_id, f"one change alone is too large: {error.reason}", solution=error.solution
        )
    return TableWriteFailed(
        table_id,
        "one change alone needs more memory than the process can have",
        solution="Give the process more memory, then reset the table.",
    )


def wait_durable(result: WriteResult, stop: threading.Event) -> None:
    """Wait for a write to be durable; raises what it failed with.

    Raises:
        Stopped: told to stop before the answer came.
        DestinationError: what the write returned is neither None nor such a future. To take it for
            durable would lose changes, for example those of a coroutine that nobody runs.
    """
    if result is None:
        return None
    if not isinstance(result, Future):
        raise DestinationError(
            f"a write returned a {type(result).__name__}, which can't be waited for",
            solution="The destination's author must return None when the write is durable, or a "
            "concurrent.futures.Future that completes when it is.",
        )
    while True:
        try:
            return result.result(timeout=0.2)
        except FutureTimeout:
            if result.done():  # the write's own TimeoutError
                raise
            if stop.is_set():
                raise Stopped from None
