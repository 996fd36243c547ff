"""The apply worker: streams every ready table of the pipeline through the permanent slot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from etl_dagster.errors import EtlError, Superseded
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.events import EventBatch, truncates
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Ready
from etl_dagster.model.stores import ApplyWorker
from etl_dagster.runtime.checking.belonging import Belonging
from etl_dagster.runtime.checking.origin import OriginCheck
from etl_dagster.runtime.membership.members import Members
from etl_dagster.runtime.showing.metrics import Metrics
from etl_dagster.runtime.streaming.delivery import Kept
from etl_dagster.runtime.streaming.feed import Feed, OpenStream
from etl_dagster.runtime.streaming.leaf_copies import LeafCopies
from etl_dagster.runtime.streaming.ownership import Ownership
from etl_dagster.runtime.streaming.questions import schema_tracker, unchanged_values
from etl_dagster.runtime.streaming.set_aside import SettingAside
from etl_dagster.runtime.table_names import name_of
from etl_dagster.runtime.tables.renames import Renames
from etl_dagster.runtime.tables.rewrites import Rewrites
from etl_dagster.runtime.tenure import Tenure
from etl_dagster.runtime.worker_parts import WorkerParts

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What a pipeline knows of its source, its destination and its tables.

    The stream adds to it. It outlives the stream.
    """

    origin: OriginCheck
    belonging: Belonging
    members: Members
    rewrites: Rewrites
    renames: Renames
    metrics: Metrics


class AppliedStream:
    """One stream's worth of applying; the pipeline makes a new one after each failure.

    The `Role` of its own feed.

    Args:
        open_stream: makes the stream that is applied.
        start_lsn: where that stream starts: what is committed from here on comes, whether it is
            applied or not.
        on_durable: called with each LSN before which everything is durable, from another thread.
    """

    def __init__(
        self,
        parts: WorkerParts,
        known: Known,
        tenure: Tenure,
        *,
        open_stream: OpenStream,
        start_lsn: Lsn,
        on_durable: Callable[[Lsn], None],
    ) -> None:
        self._store = parts.store
        self._clock = parts.clock
        self._timing = parts.timing
        self._known = known
        self._tenure = tenure
        self._check_lease_at = 0.0
        self._report_durable = on_durable
        self._unchanged = unchanged_values(
            parts, "reading values that were not sent", copied_until=None
        )
        last_begin = known.origin.last_begin
        schemas = schema_tracker(parts)
        self._feed = Feed(
            parts,
            self,
            open_stream,
            schemas,
            kept=Kept(
                ApplyWorker(),
                tenure.epoch,
                # Not confirmed, so the source sends it again.
                expected=last_begin if last_begin.commit_lsn >= start_lsn else None,
            ),
            renames=known.renames,
            name=f"apply writer {parts.config.pipeline}",
        )
        self._ownership = Ownership(parts, self._feed, known.belonging)
        self._setting_aside = SettingAside(parts)
        self._leaf_copies = LeafCopies(
            parts, self, self._feed, known.members.partitions, schemas, tenure
        )

    def run(self) -> None:
        """Stream until stopped; raises what it failed with."""
        self._ownership.start()
        self._feed.run()

    # -- its role: reading -----------------------------------------------------------------------

    def between_reads(self) -> bool:
        if self._clock.now_s() >= self._check_lease_at:
            self._check_lease_at = self._clock.now_s() + self._timing.lease_check_s
            self._tenure.require()
        self._ownership.refresh()
        self._leaf_copies.advance(self._ownership.apply_from)
        return True

    @property
    def apply_from(self) -> Mapping[TableId, Lsn]:
        return self._ownership.apply_from

    # -- its role: writing -----------------------------------------------------------------------

    def prepare(self, events: EventBatch) -> EventBatch:
        return self._unchanged.complete(events)

    def on_written(self, events: EventBatch) -> None:
        for table_id, xid in truncates(events):
            self._known.members.truncated(table_id, xid)

    def on_durable(self, lsn: Lsn | None, events: EventBatch | None) -> None:
        if events is not None:
            self._known.metrics.add(events)
            self._known.origin.delivered(events.last_begin)
        if lsn is not None and lsn > LSN_ZERO:
            self._feed.confirm(lsn)
            self._report_durable(lsn)

    def on_table_error(self, table_id: TableId, error: EtlError) -> None:
        if isinstance(error, Superseded):
            raise error
        state = self._store.get_table_replication_state(table_id)
        if isinstance(state, Ready):  # else a copy was asked for meanwhile
            self._setting_aside.stop(table_id, state, error)
        self._ownership.invalidate()

    def on_outdated(self, table_id: TableId, reason: str) -> None:
        _log.warning("%s is copied again: %s", name_of(self._store, table_id), reason)
        state = self._store.get_table_replication_state(table_id)
        if isinstance(state, Ready):  # else another copy was asked for meanwhile
            self._known.rewrites.copy_follows(table_id)
            self._store.request_copy(table_id)
        self._ownership.invalidate()

    # -- what others ask -------------------------------------------------------------------------

    def states_changed(self) -> None:
        """Some table state may have changed. From any thread."""
        self._ownership.invalidate()
        self._feed.interrupt()

    def hurry(self, goal: Lsn) -> None:
        """Make what was committed before `goal` durable as soon as possible. From any thread."""
        self._feed.hurry(goal)

    def confirm_from(self, lsn: Lsn) -> None:
        """Confirm an idle position past `lsn` at once, which the stream is to reach by itself."""
        self._feed.confirm_from(lsn)

    def interrupt(self) -> None:
        self._feed.interrupt()

    @property
    def is_writing(self) -> bool:
        """Whether a batch was closed that is not durable yet."""
        return self._feed.is_writing

    @property
    def received(self) -> Lsn:
        return self._feed.received

    @property
    def server_end(self) -> Lsn:
        return self._feed.server_end

    @property
    def lag_s(self) -> float:
        return self._feed.lag_s
