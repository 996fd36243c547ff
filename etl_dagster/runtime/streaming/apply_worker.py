"""The apply worker: streams every ready table of the pipeline through the permanent slot."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, Superseded
from etl_dagster.lsn import LSN_MAX, LSN_ZERO, Lsn
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import NO_TRANSACTION, EventBatch, TransactionMark, truncates
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Errored, ManualRetry, Ready
from etl_dagster.model.stores import ApplyWorker as ApplyWorkerType
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.membership.partitions import Partitions
from etl_dagster.runtime.showing.metrics import Metrics
from etl_dagster.runtime.streaming.delivery import Delivery
from etl_dagster.runtime.streaming.feed import Feed, OpenStream
from etl_dagster.runtime.streaming.leaf_copies import LeafCopies
from etl_dagster.runtime.streaming.ownership import Ownership
from etl_dagster.runtime.streaming.unchanged import Key, UnchangedValues
from etl_dagster.runtime.tables.odd_policies import OddPolicies
from etl_dagster.runtime.tables.renames import Renames
from etl_dagster.runtime.tables.representation import chosen
from etl_dagster.runtime.tables.schemas import FetchTable, SchemaTracker, ask_types
from etl_dagster.source.catalog import FetchedValues, fetch_row_values
from etl_dagster.source.control import SourceControl

_log = logging.getLogger(__name__)

_LEASE_CHECK_S = 1.0


class ApplyWorker:
    """One stream's worth of applying; the pipeline makes a new one after each failure.

    Args:
        open_stream: makes the stream that is applied.
        start_lsn: where that stream starts: what is committed from here on comes, whether it is
            applied or not.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        destination: Destination,
        *,
        open_stream: OpenStream,
        start_lsn: Lsn,
        epoch: int,
        last_begin: TransactionMark = NO_TRANSACTION,
        on_begin: Callable[[TransactionMark | None], None] = lambda last_begin: None,
        fetch_table: FetchTable,
        metrics: Metrics,
        missing_copies: Callable[[Collection[TableId]], Mapping[TableId, EtlError]],
        on_durable: Callable[[Lsn], None],
        on_outdated: Callable[[TableId], None],
        on_truncate: Callable[[TableId, int], None] = lambda table_id, xid: None,
        control: SourceControl,
        partitions: Partitions,
        require_lease: Callable[[], None] = lambda: None,
        renames: Renames | None = None,
        stop: threading.Event,
    ) -> None:
        self._config = config
        self._control = control
        self._store = store
        self._metrics = metrics
        self._progress = on_durable
        self._begun = on_begin
        self._on_truncate = on_truncate
        self._copy_follows = on_outdated
        self._require_lease = require_lease
        self._check_lease_at = 0.0
        self._stop = stop
        self._epoch = epoch
        schemas = SchemaTracker(
            store,
            fetch_table,
            partial(ask_types, control),
            config.source.publication,
            partial(chosen, config=config),
        )
        delivery = Delivery(
            destination,
            store,
            ApplyWorkerType(),
            schemas,
            config.retry,
            pipeline=config.pipeline,
            epoch=epoch,
            # Not confirmed, so the source sends it again.
            expected=last_begin if last_begin.commit_lsn >= start_lsn else None,
            batch=config.batch,
            stop=stop,
            prepare=UnchangedValues(self._fetch_values, copied_until=None).complete,
            on_written=self._written,
            on_durable=self._durable,
            on_table_error=self._table_failed,
            on_outdated=self._outdated,
            renames=renames,
            odd_policies=OddPolicies(config),
            name=f"apply writer {config.pipeline}",
        )
        self._feed = feed = Feed(open_stream, delivery, self, config.batch, stop=stop)
        self._ownership = Ownership(
            store,
            position=lambda: feed.loop.position,
            missing_copies=missing_copies,
            on_taken=self._taken,
            stop=stop,
        )
        self._leaf_copies = LeafCopies(
            config,
            control,
            partitions,
            feed.loop,
            delivery,
            schemas,
            epoch=epoch,
            request_keepalive=feed.request_keepalive,
            require_lease=require_lease,
            on_table_error=self._table_failed,
            on_outdated=self._outdated,
            stop=stop,
        )

    def _fetch_values(
        self, schema: TableSchema, columns: Sequence[str], keys: Sequence[Key]
    ) -> FetchedValues:
        doing = "reading values that were not sent"
        return self._control.ask(doing, fetch_row_values, schema, columns, keys)

    def run(self) -> None:
        """Stream until stopped; raises what it failed with."""
        self._ownership.start()
        self._feed.run()

    # -- what the stream loop asks ---------------------------------------------------------------

    def between_reads(self) -> bool:
        if time.monotonic() >= self._check_lease_at:
            self._check_lease_at = time.monotonic() + _LEASE_CHECK_S
            self._require_lease()
        self._ownership.refresh()
        self._leaf_copies.advance(self._ownership.apply_from)
        return True

    @property
    def apply_from(self) -> Mapping[TableId, Lsn]:
        return self._ownership.apply_from

    # -- what others ask -------------------------------------------------------------------------

    def states_changed(self) -> None:
        """Some table state may have changed. From any thread."""
        self._ownership.invalidate()
        self._feed.interrupt()

    def hurry(self, goal: Lsn) -> None:
        """Make what was committed before `goal` durable as soon as possible. From any thread."""
        self._feed.hurry(goal)

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

    # -- what the delivery reports ---------------------------------------------------------------

    def _written(self, events: EventBatch) -> None:
        for table_id, xid in truncates(events):
            self._on_truncate(table_id, xid)

    def _durable(self, lsn: Lsn | None, events: EventBatch | None) -> None:
        if events is not None:
            self._metrics.add(events)
            self._begun(events.last_begin)
        if lsn is not None and lsn > LSN_ZERO:
            self._feed.confirm(lsn)
            self._progress(lsn)

    def _taken(self, table_id: TableId) -> None:
        _log.info("%s is streamed from now on", self._name_of(table_id))

    def _table_failed(self, table_id: TableId, error: EtlError) -> None:
        if isinstance(error, Superseded):
            raise error
        _log.error("%s stopped: %s", self._name_of(table_id), error.reason)
        # Its changes since are not kept, so going on means copying it again: a person decides.
        state = self._store.get_table_replication_state(table_id)
        if isinstance(state, Ready):  # else somebody has asked for a copy meanwhile
            failed = Errored(error.reason, error.solution, ManualRetry())
            self._store.transition_table_state(table_id, state, failed)
        self._ownership.invalidate()

    def _outdated(self, table_id: TableId, reason: str) -> None:
        _log.warning("%s is copied again: %s", self._name_of(table_id), reason)
        state = self._store.get_table_replication_state(table_id)
        if isinstance(state, Ready):  # else another copy was asked for meanwhile
            self._copy_follows(table_id)
            self._store.request_copy(table_id)
        self._ownership.invalidate()

    def _name_of(self, table_id: TableId) -> str:
        schema = self._store.get_table_schema(table_id, LSN_MAX)
        return f"table {table_id}" if schema is None else schema.name
