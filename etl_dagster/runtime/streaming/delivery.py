"""From closed batches to durable changes: decode, write, keep progress, in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeAlias

from etl_dagster.errors import RowsOutdated, SourceRestored, TableWriteFailed
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.events import BeginEvent, EventBatch, TransactionMark
from etl_dagster.model.identity import RemembersDestination
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import ApplyWorker, WorkerType
from etl_dagster.protocol.batch import Altered
from etl_dagster.protocol.pgoutput import Relation
from etl_dagster.runtime.checking.belonging import marking
from etl_dagster.runtime.durable import TURN_S, Stopped
from etl_dagster.runtime.streaming.inbox import Inbox
from etl_dagster.runtime.streaming.role import Role
from etl_dagster.runtime.streaming.window import BegunWrite, Window
from etl_dagster.runtime.streaming.writing import BatchWriter
from etl_dagster.runtime.tables.odd_policies import OddPolicies
from etl_dagster.runtime.tables.renames import Renames
from etl_dagster.runtime.tables.reshaping import renamed_onto_others
from etl_dagster.runtime.tables.schemas import SchemaTracker
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.table_name import TableName
from etl_dagster.threads import Background


@dataclass(frozen=True, slots=True)
class _Progress:
    """Nothing to write: everything before `lsn` is durable already."""

    lsn: Lsn
    #: What was read since the last batch: transactions without rows.
    without_rows: Undecoded | None


@dataclass(frozen=True, slots=True)
class _End:
    """Nothing more comes."""


class Undecoded(Protocol):
    """What becomes an `EventBatch` on the writing thread: a `RawBatch`, or rows that were read."""

    @property
    def first_commit_time_us(self) -> int | None: ...

    def decode(
        self,
        schema_of: Callable[[Relation, Lsn], TableSchema],
        apply_from: Mapping[TableId, Lsn],
        epoch: int,
        altered: Altered,
    ) -> EventBatch: ...


#: What the thread is handed.
_Item: TypeAlias = tuple[Undecoded, Mapping[TableId, Lsn]] | _Progress | _End


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a stream, and what is known of it before it begins."""

    #: Whose progress is stored; None to store none.
    worker: WorkerType | None
    epoch: int = 0
    #: A transaction that was delivered before, and that this stream must bring again: else its
    #: source has another history.
    expected: TransactionMark | None = None


class Delivery:
    """The writer side of one stream: a thread that takes batches from a bounded queue.

    Where the destination returns futures, up to `batch.max_in_flight` writes are under way at a
    time (`Window`). What follows a write, above all progress, is done in the order of the stream.

    Args:
        role: whose changes they are. Everything of it that is called here is from the thread.
        kept: whose progress is stored, and what this stream must bring.
        renames: names that the destination is told without a change of the table.
    """

    def __init__(
        self,
        parts: WorkerParts,
        role: Role,
        schemas: SchemaTracker,
        *,
        kept: Kept,
        renames: Renames | None = None,
        name: str,
    ) -> None:
        batch = parts.config.batch
        self._destination = parts.destination
        self._renames = renames
        self._odd_policies = OddPolicies(parts.config)
        self._store = parts.store
        self._worker = kept.worker
        self._schemas = schemas
        self._pipeline = parts.config.pipeline
        self._epoch = kept.epoch
        self._expected = kept.expected
        #: As the store has them by now, as far as this delivery knows.
        self._stored_lsn = LSN_ZERO
        self._stored_revision = 0
        self._stop = parts.stop
        self._role = role
        self._inbox: Inbox[_Item] = Inbox(batch.max_queued)
        self._failure: BaseException | None = None
        #: From where on each table is applied, as of the last batch. Another LSN means another
        #: copy: what was known of the table before holds no longer.
        self._applied_from: dict[TableId, Lsn] = {}
        self._writer = BatchWriter(parts, role)
        self._window = Window(batch.max_in_flight, batch.max_in_flight_bytes)
        #: Of each batch that isn't durable yet, when its first transaction was committed.
        self._pending: deque[int] = deque()
        #: Every transaction that was committed before is durable.
        self._reached: Lsn | None = None
        # What is logged there is about the same pipeline, or table, as here.
        work = partial(copy_context().run, self._run)
        self._thread = Background(work, name=name)

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

    def put_progress(self, lsn: Lsn, without_rows: Undecoded | None = None) -> None:
        """Tell that nothing needs to be written up to `lsn`.

        Args:
            without_rows: the transactions that were read in place of a batch.
        """
        self._put(_Progress(lsn, without_rows))

    def _put(self, item: _Item) -> None:
        while True:
            self.raise_failure()
            if self._inbox.put(item, TURN_S):
                return
            if self._stop.is_set():
                raise Stopped

    @property
    def is_idle(self) -> bool:
        """Whether everything that was handed over is durable."""
        return self._inbox.is_finished

    @property
    def is_running(self) -> bool:
        """Whether its thread is at work; it ends by a stop, a failure, or `finish`."""
        return self._thread.is_alive()

    @property
    def oldest_commit_time_us(self) -> int | None:
        """Commit time of the oldest transaction that is not yet durable.

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
        while not self._inbox.wait_finished(TURN_S):
            self.raise_failure()
            if self._stop.is_set():
                raise Stopped
        self.raise_failure()

    def finish(self) -> None:
        """Wait until what was handed over is durable, then end the thread.

        Bounded by the destination once the pipeline stops: the call under way is waited for; what
        it promised to do later, and the queue, are left.
        """
        if self.is_running:
            try:
                self._put(_End())
            except BaseException:
                # Stopped or failed: the thread ends by itself after what it is doing.
                pass
            self._thread.join()

    # -- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                item = self._inbox.get(TURN_S)
                self._finish_those_over()
                if self._stop.is_set():
                    return
                match item:
                    case None:
                        pass  # none came in time, or a write is over
                    case _End():
                        self._drain()
                        self._inbox.done()
                        return
                    case _Progress(lsn, without_rows):
                        self._drain()
                        self._pass(lsn, without_rows)
                        self._inbox.done()
                    case (raw, apply_from):
                        self._begin(raw, apply_from)
                        self._finish_those_over()
        except Stopped:
            return
        except BaseException as failure:
            self._failure = failure
            # A later stream must not be overtaken by what this one has begun.
            while not (self._window.wait_over(TURN_S) or self._stop.is_set()):
                pass

    def _pass(self, lsn: Lsn, without_rows: Undecoded | None) -> None:
        """Keep progress where there is nothing to write."""
        if self._expected is not None and without_rows is not None:
            # It may be one of them, such as a heartbeat: it was delivered along with rows then.
            resolve, alter = self._schemas.resolve, self._schemas.alter
            self._recognise(without_rows.decode(resolve, {}, self._epoch, alter))
        if self._expected is not None and lsn > self._expected.commit_lsn:
            raise self._restored(f"nothing up to {lsn}")
        self._keep_progress(lsn)
        self._role.on_durable(lsn, None)
        self._follow_names(lsn)

    def _begin(self, raw: Undecoded, apply_from: Mapping[TableId, Lsn]) -> None:
        """Begin to write a batch, once what is under way leaves room for it."""
        if any(
            self._applied_from.get(table_id, lsn) != lsn for table_id, lsn in apply_from.items()
        ):
            # What is still to fail of an earlier copy must not be taken for this one's.
            self._drain()
        wanted = self._wanted(apply_from)
        events = raw.decode(self._schemas.resolve, wanted, self._epoch, self._schemas.alter)
        events = self._without_outdated(self._schemas.with_labels(events))
        self._recognise(events)
        while not self._window.has_room_for(events) or self._is_renaming():
            self._finish_oldest()
        # From here on the schemas of its tables at the destination are known.
        events = replace(
            self._writer.without_excluded(events),
            apply_from={t: lsn for t, lsn in wanted.items() if t not in self._writer.excluded},
            pipeline=self._pipeline,
            stored_lsn=self._stored_lsn if isinstance(self._worker, ApplyWorker) else LSN_ZERO,
        )
        events = self._without_taken_names(self._schemas.announce(events))
        events = self._prepared(events)
        events = self._with_odd_policies(events)
        changes = self._schemas.begin_changes(events)
        begun = self._writer.begin(events)
        self._window.add(BegunWrite(events, changes, begun))
        if begun is not None:
            begun.add_done_callback(lambda _: self._inbox.wake())
        if self._window.is_full:
            self._finish_oldest()

    def _without_taken_names(self, events: EventBatch) -> EventBatch:
        """The batch without tables that would get the name that settings gave to another one."""
        for table_id, error in renamed_onto_others(events, self._store).items():
            self._writer.exclude(table_id, error)
        return self._writer.without_excluded(events)

    def _prepared(self, events: EventBatch) -> EventBatch:
        """The batch as `prepare` returns it, without the tables that it refuses."""
        while True:
            try:
                return self._role.prepare(events)
            except RowsOutdated as error:
                self._writer.exclude_outdated(error.table_id, error.reason)
            except TableWriteFailed as error:
                self._writer.exclude(error.table_id, error)
            events = self._writer.without_excluded(events)

    def _finish_oldest(self) -> None:
        """Wait until the oldest write is durable, and do all that follows from that."""
        while not self._window.wait(TURN_S):
            if self._stop.is_set():
                raise Stopped
        write = self._window.oldest
        assert write is not None
        events = self._writer.write(write.events, write.begun)
        self._window.remove_oldest()
        made = [change for change in write.changes if change.schema.id in events.tables]
        self._schemas.finish_changes(made)
        if self._renames is not None:
            for change in made:
                schema = change.schema
                name = TableName(schema.schema_name, schema.table_name)
                self._renames.described(schema.id, name)
        self._role.on_written(events)
        if events.commit_end_lsn is not None:
            self._keep_progress(events.commit_end_lsn)
        self._role.on_durable(events.commit_end_lsn, events)
        if events.commit_end_lsn is not None:
            self._reached = events.commit_end_lsn
            if not self._window:
                self._follow_names(events.commit_end_lsn)
        self._pending.popleft()
        self._inbox.done()

    def _finish_those_over(self) -> None:
        while self._window.oldest is not None and self._window.oldest.is_over:
            self._finish_oldest()

    def _drain(self) -> None:
        """Finish every write that has begun."""
        while self._window:
            self._finish_oldest()

    def _is_renaming(self) -> bool:
        """Whether names are to be told, and what is under way must be durable before."""
        if self._renames is None or self._reached is None or not self._window:
            return False
        return bool(self._renames.take(self._reached))

    def _with_odd_policies(self, events: EventBatch) -> EventBatch:
        events, failures = self._odd_policies.batch(events)
        for table_id, failure in failures.items():
            self._writer.exclude(table_id, failure)
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
        events = self._writer.without_excluded(
            EventBatch(
                renamed,
                epoch=self._epoch,
                apply_from={t: lsn for t, lsn in self._applied_from.items() if t in renamed},
                pipeline=self._pipeline,
                stored_lsn=self._stored_lsn if isinstance(self._worker, ApplyWorker) else LSN_ZERO,
            )
        )
        events = self._without_taken_names(events)
        changes = self._schemas.begin_changes(events)
        events = self._writer.write(events)
        self._schemas.finish_changes([c for c in changes if c.schema.id in events.tables])
        self._renames.done(taken)

    def _without_outdated(self, events: EventBatch) -> EventBatch:
        outdated = self._schemas.take_outdated()
        for table_id, reason in outdated.items():
            self._writer.exclude_outdated(table_id, reason)
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
                self._writer.excluded.discard(table_id)
                self._schemas.forget(table_id)
        return {t: lsn for t, lsn in apply_from.items() if t not in self._writer.excluded}

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
