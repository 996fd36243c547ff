"""Catching up: a copied table replays the changes since, and is handed to the apply worker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, LeaseLost
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Catchup, FinishedCopy, SyncDone, SyncWait
from etl_dagster.model.stores import CoordinatingStore, Lease, TableSyncWorker
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.delivery import Delivery, Stopped
from etl_dagster.runtime.schemas import SchemaTracker
from etl_dagster.runtime.stream_loop import StreamLoop
from etl_dagster.runtime.unchanged import Key, UnchangedValues
from etl_dagster.source.catalog import emit_marker, fetch_row_values, fetch_table_schema
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import table_sync_slot_name
from etl_dagster.source.stream import ReplicationStream

_log = logging.getLogger(__name__)

#: Reaching a marker took less than this: the stream is as close as it gets.
_CLOSE_S = 1.0
#: A table that changes faster than it can be replayed asks all the same, after so many markers.
_MOST_MARKERS = 20
#: On an idle server the stream tells its position only when asked.
_ASK_EVERY_S = 0.2
_LEASE_CHECK_S = 1.0


class CatchUp:
    """Streams a table's own slot from the copy to the hand-over.

    It asks for the hand-over (`SyncWait`) once its stream has passed the newest snapshot that the
    copy used: from there on the destination's table is the source's at one moment, so that the
    apply worker needs nothing but the stream. The apply worker answers with a target (`Catchup`)
    and reads nothing more until every change before the target is durable (`SyncDone`).

    Args:
        replay_from: consistent point of the slot.
        start_lsn: what an earlier worker made durable already.
        must_reach: every snapshot that the copy used lies before.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        destination: Destination,
        control: SourceControl,
        schema: TableSchema,
        lease: Lease,
        *,
        replay_from: Lsn,
        start_lsn: Lsn,
        must_reach: Lsn,
        stop: threading.Event,
        on_state: Callable[[str], None],
    ) -> None:
        self._store = store
        self._control = control
        self._publication = config.source.publication
        self._table_id = schema.id
        self._table_name = schema.name
        self._lease = lease
        self._stop = stop
        self._on_state = on_state
        self._apply_from = {schema.id: replay_from}
        self._unchanged = UnchangedValues(self._fetch_values, copied_until=must_reach)
        self._marker = must_reach
        self._marked_at = 0.0
        self._markers = 0
        self._waiting = False
        self._handover: Lsn | None = None
        self._ask_at = 0.0
        self._check_lease_at = 0.0
        self._session = ReplicationSession(
            max_bytes=config.batch.max_bytes, max_rows=config.batch.max_rows
        )
        self._stream = ReplicationStream(
            config.source,
            table_sync_slot_name(config.pipeline, schema.id),
            self._session,
            start_lsn,
            application_name=f"etl_dagster sync {config.pipeline} {schema.id}",
        )
        self._delivery = Delivery(
            destination,
            store,
            TableSyncWorker(schema.id),
            SchemaTracker(store, self._fetch_schema),
            config.retry,
            max_queued=config.batch.max_queued,
            stop=stop,
            prepare=self._unchanged.complete,
            on_durable=self._durable,
            on_table_error=self._failed,
            name=f"sync writer {schema.name}",
        )
        self._loop = StreamLoop(
            self._stream, self._session, self._delivery, self, config.batch, stop=stop
        )

    def run(self) -> Lsn:
        """Stream until the apply worker can go on; returns `SyncDone.lsn`.

        Raises:
            Stopped: told to stop before.
            EtlError: what the source, the store or the destination failed with.
        """
        watcher = threading.Thread(
            target=self._watch, name=f"sync watcher {self._table_name}", daemon=True
        )
        self._watching = threading.Event()
        watcher.start()
        try:
            self._loop.run()
        finally:
            self._watching.set()
            self._store.wake()
            watcher.join()
        if self._handover is None:
            raise Stopped
        return self._handover

    def _watch(self) -> None:
        """Have the stream look at the table's state as soon as it changes."""
        while not self._watching.is_set():
            try:
                self._store.wait_for_change(1.0)
            except EtlError:
                self._watching.wait(1.0)  # the stream's own thread meets the same, and reports it
            self._stream.interrupt()

    # -- what the stream loop asks -------------------------------------------------------------

    @property
    def apply_from(self) -> Mapping[TableId, Lsn]:
        return self._apply_from

    def between_reads(self) -> bool:
        self._require_lease()
        if not self._waiting:
            if self._is_past(self._marker):
                self._approach()
        else:
            self._follow()
        return self._handover is None

    def _approach(self) -> None:
        """The marker is reached: near enough to ask for the hand-over, or one more marker."""
        self._deliver_all()
        if not self._is_past(self._unchanged.fetched_until):
            return
        if self._marked_at and (
            time.monotonic() - self._marked_at < _CLOSE_S or self._markers >= _MOST_MARKERS
        ):
            state = self._store.get_table_replication_state(self._table_id)
            waiting = SyncWait(self._loop.position)
            if not isinstance(state, FinishedCopy) or not self._store.transition_table_state(
                self._table_id, state, waiting
            ):
                raise LeaseLost(f"somebody else moved {self._table_name} on")
            self._waiting = True
            self._on_state("sync_wait")
            return
        self._marker = max(
            self._control.ask("marking the stream", emit_marker), self._loop.position
        )
        self._marked_at = time.monotonic()
        self._markers += 1

    def _follow(self) -> None:
        """Look for the apply worker's answer, and finish once its target is reached."""
        state = self._store.get_table_replication_state(self._table_id)
        match state:
            case SyncWait():
                return
            case Catchup(target):
                if not self._is_past(max(target, self._unchanged.fetched_until)):
                    return
                self._deliver_all()
                # Completing what was just delivered may have looked further ahead.
                if not self._is_past(self._unchanged.fetched_until):
                    return
                done = SyncDone(self._loop.position)
                if self._store.transition_table_state(self._table_id, state, done):
                    self._handover = done.lsn
            case _:
                raise LeaseLost(f"somebody else moved {self._table_name} on")

    def _is_past(self, lsn: Lsn) -> bool:
        """Whether every change that was committed before `lsn` was read."""
        if self._loop.position >= lsn and self._loop.is_between_transactions:
            return True
        now = time.monotonic()
        if now >= self._ask_at:
            self._ask_at = now + _ASK_EVERY_S
            self._stream.request_keepalive()
        return False

    def _deliver_all(self) -> None:
        self._loop.close_batch()
        self._delivery.flush()

    def _require_lease(self) -> None:
        now = time.monotonic()
        if now >= self._check_lease_at:
            self._check_lease_at = now + _LEASE_CHECK_S
            if not self._lease.is_held:
                raise LeaseLost(f"the lease of {self._table_name} ended while it caught up")

    # -- what the delivery asks and reports ----------------------------------------------------

    def _fetch_schema(self, table_id: TableId) -> TableSchema | None:
        return self._control.ask(
            "reading the table's columns", fetch_table_schema, self._publication, table_id
        )

    def _fetch_values(
        self, schema: TableSchema, columns: Sequence[str], keys: Sequence[Key]
    ) -> tuple[Mapping[Key, Key], Lsn]:
        return self._control.ask("completing rows", fetch_row_values, schema, columns, keys)

    def _durable(self, lsn: Lsn | None, events: EventBatch | None) -> None:
        if lsn is not None:
            self._stream.confirm(lsn)

    @staticmethod
    def _failed(table_id: TableId, error: EtlError) -> None:
        raise error
