"""Catching up: copied tables replay the changes since, and are handed to the apply worker."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from etl_dagster.errors import CopyMissing, CopyOutdated, EtlError, HandoverTimeout, LeaseLost
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import Lease
from etl_dagster.model.events import EventBatch
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Catchup, Errored, FinishedCopy, SyncDone, SyncWait
from etl_dagster.model.stores import TableSyncWorker
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.many import many
from etl_dagster.runtime.streaming.delivery import Kept
from etl_dagster.runtime.streaming.feed import Feed, OpenStream
from etl_dagster.runtime.streaming.questions import schema_tracker, unchanged_values
from etl_dagster.runtime.tables.odd_counts import CopyOddCounts
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import emit_marker
from etl_dagster.threads import Background

_log = logging.getLogger(__name__)


def raise_error(table_id: TableId, error: EtlError) -> None:
    """A table that fails ends all that is done with it."""
    raise error


class CatchUp:
    """Streams the slot of one table, or of a group, from the copy to the hand-over.

    It asks for the hand-over (`SyncWait`) once its stream has passed the newest snapshot that the
    copy used: from there on the destination's table is the source's at one moment, so that the
    apply worker needs nothing but the stream. The apply worker answers with a target (`Catchup`)
    and reads nothing more until every change before the target is durable (`SyncDone`).

    The tables of a group share a stream, and so its position: what holds for one of them when its
    target is reached holds for each. A table that was handed over isn't applied here any longer.

    The `Role` of its own feed.

    Args:
        open_stream: makes the stream of the slot that keeps the tables' changes.
        worker: whose progress is stored; None for a group, which never resumes.
        replay_from: consistent point of the slot.
        must_reach: every snapshot that the copy used lies before.
        on_table_error: called when one table can't be written; the others continue without it. By
            default, or when it raises, all of them end.
    """

    def __init__(
        self,
        parts: WorkerParts,
        schemas: Sequence[TableSchema],
        lease: Lease,
        *,
        open_stream: OpenStream,
        worker: TableSyncWorker | None,
        replay_from: Lsn,
        must_reach: Lsn,
        on_state: Callable[[str], None] = lambda state: None,
        on_table_error: Callable[[TableId, EtlError], None] = raise_error,
    ) -> None:
        self._store = parts.store
        self._many = many(parts.store)
        self._control = parts.control
        self._clock = parts.clock
        self._timing = parts.timing
        self._replay_from = replay_from
        self._odd = CopyOddCounts(parts.store, parts.destination)
        self._names = {schema.id: schema.name for schema in schemas}
        label = schemas[0].name if len(schemas) == 1 else f"a group of {len(schemas)} tables"
        self._label = label
        self._lease = lease
        self._on_state = on_state
        #: The tables that are not handed over yet. A new one for each change.
        self._apply_from: Mapping[TableId, Lsn] = {schema.id: replay_from for schema in schemas}
        self._report_table_error = on_table_error
        #: Tables that failed, as the delivery's thread found.
        self._failed: set[TableId] = set()
        self._is_moved = False
        self._refusal: CopyMissing | None = None
        self._unchanged = unchanged_values(parts, "completing rows", copied_until=must_reach)
        self._marker = must_reach
        #: When the marker was written; None before the first one.
        self._marked_at: float | None = None
        self._markers = 0
        self._waiting = False
        self._handovers: dict[TableId, Lsn] = {}
        self._check_lease_at = 0.0
        #: When a process was last seen to run the pipeline, while a hand-over is asked for.
        self._pipeline_seen_at = self._check_pipeline_at = 0.0
        self._feed = Feed(
            parts,
            self,
            open_stream,
            schema_tracker(parts),
            kept=Kept(worker),
            name=f"sync writer {label}",
        )

    def run(self) -> Mapping[TableId, Lsn]:
        """Stream until the apply worker can continue; returns `SyncDone.lsn` of each table that was
        handed over.

        Raises:
            Stopped: told to stop before.
            LeaseLost: another process changed the state of every remaining table.
            CopyMissing: the apply worker doesn't find the copy at its destination.
            HandoverTimeout: no process runs the pipeline.
            EtlError: what the source, the store or the destination failed with.
        """
        watcher = Background(self._watch, name=f"sync watcher {self._label}")
        self._watching = threading.Event()
        watcher.start()
        try:
            self._feed.run()
        finally:
            self._watching.set()
            self._store.wake()
            watcher.join()
        if self._apply_from:
            raise Stopped
        if self._refusal is not None and not self._handovers:
            raise self._refusal
        if self._is_moved and not self._handovers:
            raise LeaseLost(f"another process changed the state of {self._label}")
        return self._handovers

    def _watch(self) -> None:
        """Have the stream look at the table's state as soon as it changes."""
        while not self._watching.is_set():
            try:
                self._store.wait_for_change(1.0)
            except EtlError:
                self._watching.wait(1.0)  # the stream's own thread meets the same, and reports it
            self._feed.interrupt()

    # -- its role: reading -----------------------------------------------------------------------

    @property
    def apply_from(self) -> Mapping[TableId, Lsn]:
        return self._apply_from

    def between_reads(self) -> bool:
        self._require_lease()
        self._leave(self._failed)
        if not self._waiting:
            if self._feed.has_passed(self._marker):
                self._approach()
        else:
            self._follow()
        return bool(self._apply_from)

    def _leave(self, table_ids: Collection[TableId]) -> None:
        """From the next read on, apply nothing more of these tables."""
        if any(table_id in table_ids for table_id in self._apply_from):
            self._apply_from = {t: lsn for t, lsn in self._apply_from.items() if t not in table_ids}

    def _moved_on(self, table_ids: Collection[TableId]) -> None:
        """Another process changed the states of these tables, for example to copy them again."""
        for table_id in table_ids:
            _log.info("another process changed the state of %s", self._names[table_id])
            self._is_moved = True
        self._leave(table_ids)

    def _approach(self) -> None:
        """The marker is reached: near enough to ask for the hand-over, or one more marker."""
        self._feed.deliver_all()
        if not self._feed.has_passed(self._unchanged.fetched_until):
            return
        if self._is_close():
            self._leave(self._failed)
            waiting = SyncWait(self._feed.position)
            asked = self._many.transition_table_states(
                [(table_id, FinishedCopy(), waiting) for table_id in self._apply_from]
            )
            self._moved_on(self._apply_from.keys() - asked)
            self._waiting = True
            self._pipeline_seen_at = self._clock.now_s()
            self._on_state("sync_wait")
            return
        self._marker = max(
            self._control.ask("marking the stream", emit_marker), self._feed.position
        )
        self._marked_at = self._clock.now_s()
        self._markers += 1

    def _is_close(self) -> bool:
        """Whether the stream is as near to the end of the WAL as it gets."""
        if self._marked_at is None:
            return False
        took_s = self._clock.now_s() - self._marked_at
        return took_s < self._timing.close_s or self._markers >= self._timing.most_markers

    def _follow(self) -> None:
        """Look for the apply worker's answer, and finish once its target is reached."""
        states = self._store.get_table_replication_states()
        targets: dict[TableId, Catchup] = {}
        moved = []
        for table_id in self._apply_from:
            match states.get(table_id):
                case SyncWait():
                    pass
                case Catchup() as target:
                    targets[table_id] = target
                case Errored(reason, solution):
                    # The apply worker has refused the table.
                    self._refusal = CopyMissing(reason, solution=solution)
                    moved.append(table_id)
                case _:
                    moved.append(table_id)
        self._moved_on(moved)
        if not targets:
            if self._apply_from:
                self._require_pipeline()
            return
        farthest = max(target.target_lsn for target in targets.values())
        if not self._feed.has_passed(max(farthest, self._unchanged.fetched_until)):
            return
        self._feed.deliver_all()
        # Completing what was just delivered may have looked further ahead.
        if not self._feed.has_passed(self._unchanged.fetched_until):
            return
        done = SyncDone(self._feed.position)
        reached = self._many.transition_table_states(
            [(t, target, done) for t, target in targets.items() if t not in self._failed]
        )
        self._handovers |= dict.fromkeys(reached, done.lsn)
        self._leave(reached)

    def _require_lease(self) -> None:
        now = self._clock.now_s()
        if now >= self._check_lease_at:
            self._check_lease_at = now + self._timing.lease_check_s
            if not self._lease.is_held:
                raise LeaseLost(f"the lease of {self._label} ended while it caught up")

    def _require_pipeline(self) -> None:
        """See that the hand-over has not waited too long for a process that runs the pipeline."""
        now = self._clock.now_s()
        if now < self._check_pipeline_at:
            return
        self._check_pipeline_at = now + self._timing.pipeline_check_s
        if self._store.is_leased("apply"):
            self._pipeline_seen_at = now
        elif (waited_s := now - self._pipeline_seen_at) >= self._timing.handover_s:
            raise HandoverTimeout(self._label, waited_s=waited_s)

    # -- its role: writing -----------------------------------------------------------------------

    def prepare(self, events: EventBatch) -> EventBatch:
        return self._unchanged.complete(events)

    def on_written(self, events: EventBatch) -> None:
        """Ask nothing."""

    def on_durable(self, lsn: Lsn | None, events: EventBatch | None) -> None:
        if events is not None:
            self._odd.add_stream(events, self._replay_from)
        if lsn is not None:
            self._feed.confirm(lsn)

    def on_table_error(self, table_id: TableId, error: EtlError) -> None:
        self._report_table_error(table_id, error)
        self._failed.add(table_id)

    def on_outdated(self, table_id: TableId, reason: str) -> None:
        name = self._names[table_id]
        self.on_table_error(
            table_id, CopyOutdated(f"{name} was altered after it was copied: {reason}")
        )
