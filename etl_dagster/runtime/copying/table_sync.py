"""The table sync worker: copies one table, then catches up with the stream."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import (
    CopyOutdated,
    EtlError,
    HandoverTimeout,
    InvalidState,
    LeaseLost,
    SourceError,
    TableNameTaken,
    TableRewritten,
)
from etl_dagster.lsn import LSN_MAX, LSN_ZERO, Lsn
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import (
    Catchup,
    DataSync,
    Errored,
    FinishedCopy,
    Init,
    Ready,
    SyncDone,
    SyncWait,
    TableState,
    TimedRetry,
    check_transition,
    state_name,
)
from etl_dagster.model.stores import (
    CoordinatingStore,
    CopyChunk,
    CopyPlan,
    FinishedChunk,
    Lease,
    TableSyncWorker,
)
from etl_dagster.runtime.checking.belonging import MISMATCHES, Belonging
from etl_dagster.runtime.checking.origin import Origin
from etl_dagster.runtime.clock import SYSTEM_CLOCK, Clock
from etl_dagster.runtime.copying.table_copy import CopySummary, TableCopy
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.membership.partitions import note_copied_partitions
from etl_dagster.runtime.retry import errored_state
from etl_dagster.runtime.showing.metrics import CopyMeter
from etl_dagster.runtime.slot import make_slot
from etl_dagster.runtime.streaming.catchup import CatchUp
from etl_dagster.runtime.streaming.feed import stream_of_slot
from etl_dagster.runtime.tables.identities import find_unidentified
from etl_dagster.runtime.tables.representation import chosen_tables
from etl_dagster.runtime.tables.reshaping import refused_shapes
from etl_dagster.runtime.tables.schemas import destination_metadata
from etl_dagster.runtime.tables.shaped import shaping
from etl_dagster.runtime.timing import TIMING, Timing
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import (
    PublishedTable,
    fetch_clock,
    fetch_leaves,
    fetch_published_tables,
)
from etl_dagster.source.connection import connect
from etl_dagster.source.control import SourceControl
from etl_dagster.source.copy import plan_chunks
from etl_dagster.source.membership import Partition, fetch_partitions
from etl_dagster.source.slots import drop_slot, fetch_slot, table_sync_slot_name

_log = logging.getLogger(__name__)

#: How long making a slot may wait for transactions that are open.
_SLOT_LOCK_TIMEOUT_S = 60.0
_NAME_POLL_S = 0.2


@dataclass(frozen=True)
class CopyProgress:
    """How far a copy is, after each chunk and each change of state."""

    state: str
    chunks_done: int
    chunks_total: int
    rows_done: int
    bytes_done: int
    rows_estimated: int


@dataclass(frozen=True)
class TableSyncResult:
    """What a table sync worker did, from its start to the hand-over."""

    schema: TableSchema
    copy_id: str
    #: All of the copy, also what an earlier worker had done of it.
    row_count: int
    byte_count: int
    chunk_count: int
    #: Chunks that an earlier worker had done.
    resumed_chunks: int
    copy_seconds: float
    catchup_seconds: float
    #: Consistent point of the table sync slot: the changes from here on were replayed.
    snapshot_lsn: Lsn
    #: `SyncDone.lsn`: from here on the apply worker streams the table.
    handover_lsn: Lsn


class TableSync:
    """One table's worker; it may run in a thread of the pipeline or in a process of its own."""

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        destination: Destination,
        table_id: TableId,
        *,
        stop: threading.Event | None = None,
        on_progress: Callable[[CopyProgress], None] = lambda progress: None,
        meter: CopyMeter | None = None,
        clock: Clock = SYSTEM_CLOCK,
        timing: Timing = TIMING,
    ) -> None:
        self._config = config
        self._store = store
        self._destination = destination = shaping(destination, config)
        self._belonging = Belonging(config, store, destination)
        self._table_id = table_id
        self._worker = TableSyncWorker(table_id)
        self._slot = table_sync_slot_name(config.pipeline, table_id)
        self._stop = stop or threading.Event()
        self._meter = meter
        self._report = on_progress
        self._control = SourceControl(
            config.source,
            application_name=f"etl_dagster sync control {config.pipeline} {table_id}",
            verify=Origin(config, store).look,
        )
        self._clock, self._timing = clock, timing
        self._parts = WorkerParts(
            config, store, destination, self._control, self._stop, clock, timing
        )
        self._plan: CopyPlan | None = None
        self._finished: dict[int, FinishedChunk] = {}
        self._is_resumed = False
        self._reporting = threading.Lock()
        #: Failures in a row, this worker's own to come included; a finished chunk ends the row.
        self._attempt = 1
        #: As this worker found it or made it; another one in the store is somebody else's doing.
        self._state: TableState | None = None

    def run(self) -> TableSyncResult | None:
        """Work until the hand-over; None when it was told to stop before.

        Needs the pipeline's apply worker to run somewhere: without it the copy is made, and the
        hand-over waits, for some minutes.

        Raises:
            HandoverTimeout: no process ran the pipeline in that time. The copy is given up, its
                slot is dropped, and the next start of the pipeline copies the table again.
            EtlError: the table can't be copied; its state is `Errored` by then.
            LeaseLost: another worker has the table.
            InvalidState: the table is streamed already; ask for a copy first.
            DestinationReplaced, SourceReplaced, ...: the pipeline has another source or
                destination (`MISMATCHES`). The table's state stays as it was.
        """
        lease = self._store.acquire_lease(f"table:{self._table_id}")
        if lease is None:
            raise LeaseLost(f"another worker has table {self._table_id}")
        try:
            return self._run_until_current(lease)
        except Stopped:
            return None
        except (LeaseLost, InvalidState, *MISMATCHES):
            raise
        except Exception as error:
            if self._stop.is_set() and isinstance(error, EtlError) and error.retryable:
                return None  # what was under way was interrupted
            # The stream may have much to read before it comes to the new name of another table.
            attempt = 1 if isinstance(error, TableNameTaken) else self._attempt
            state = errored_state(error, self._config.retry, attempt)
            _log.error("table %s: %s", self._table_id, state.reason)
            if self._fail(state, lease) and isinstance(error, HandoverTimeout):
                self._give_up()
            raise
        finally:
            self._control.close()
            lease.release()

    def _run_until_current(self, lease: Lease) -> TableSyncResult:
        """Copy until the copy can follow the stream: a table may be altered meanwhile."""
        while True:
            try:
                return self._run(lease)
            except CopyOutdated as error:
                if self._stop.is_set():
                    raise Stopped from None
                if not self._is_ours(lease):
                    raise LeaseLost(f"another worker has table {self._table_id}") from error
                _log.warning("%s; it is copied again", error.reason)
                self._store.request_copy(self._table_id)

    def _is_ours(self, lease: Lease) -> bool:
        """Whether the table's state is still this worker's doing."""
        current = self._store.get_table_replication_state(self._table_id)
        return lease.is_held and (current == self._state or isinstance(current, SyncWait | Catchup))

    def _fail(self, state: Errored, lease: Lease) -> bool:
        """Show the failure, unless another process has changed the table's state; whether it is
        shown."""
        current = self._store.get_table_replication_state(self._table_id)
        if current is None or not self._is_ours(lease):
            return False
        return self._store.transition_table_state(self._table_id, current, state)

    def _give_up(self) -> None:
        """Drop the slot of a copy that no process took over. The next worker starts over."""
        self._control.ask("dropping the slot", drop_slot, self._slot)
        self._store.delete_replication_progress(self._worker)

    def _move(self, expected: TableState | None, new: TableState) -> None:
        """Change the table's state.

        Raises:
            LeaseLost: somebody else did, for example by asking for another copy.
        """
        check_transition(expected, new)
        if expected is None:
            self._store.update_table_replication_states([(self._table_id, new)])
        elif not self._store.transition_table_state(self._table_id, expected, new):
            raise LeaseLost(f"somebody else changed the state of table {self._table_id}")
        self._state = new

    def _run(self, lease: Lease) -> TableSyncResult:
        state = self._state = self._store.get_table_replication_state(self._table_id)
        if isinstance(state, Ready | SyncDone):
            raise InvalidState(
                f"table {self._table_id} is {state_name(state)}: it is streamed already",
                solution="Ask for a new copy first: `etl-dagster reset`.",
            )
        if isinstance(state, Errored) and isinstance(state.retry, TimedRetry):
            self._attempt = state.retry.attempt + 1
        self._belonging.require_known()
        table = self._fetch_table()
        started = self._clock.now_s()
        with self._prepared(table, state) as (table, plan, snapshot_name):
            self._plan, self._finished = plan, dict(plan.finished)
            copied = self._copy(table, plan, snapshot_name, lease)
        copy_seconds = self._clock.now_s() - started
        handover = self._catch_up(table.schema, plan, copied, lease)
        return TableSyncResult(
            schema=table.schema,
            copy_id=plan.copy_id,
            row_count=copied.row_count,
            byte_count=copied.byte_count,
            chunk_count=copied.chunk_count,
            resumed_chunks=copied.resumed_chunks,
            copy_seconds=copy_seconds,
            catchup_seconds=self._clock.now_s() - started - copy_seconds,
            snapshot_lsn=plan.slot_lsn,
            handover_lsn=handover,
        )

    def _fetch_table(self) -> PublishedTable:
        publication = self._config.source.publication
        tables = self._control.ask(
            "reading the publication", fetch_published_tables, publication, [self._table_id]
        )
        if not tables:
            raise SourceError(
                f"table {self._table_id} is not in publication {publication!r}",
                solution="Add it to the publication again, or restart the pipeline to forget it.",
            )
        unidentified = self._control.ask("looking at partitions", find_unidentified, tables)
        if unidentified:
            raise unidentified[self._table_id]
        [table] = chosen_tables(tables, self._config)
        refused = refused_shapes([table.schema], self._store, self._config)
        if refused:
            raise refused[self._table_id]
        self._require_free_name(table)
        return table

    def _require_free_name(self, table: PublishedTable) -> None:
        """Wait for the stream to tell the destination the new name of a table that had this name:
        its rows are under the old one until then."""
        deadline = self._clock.now_s() + self._timing.name_wait_s
        name = str(table.schema.target)
        while (holder := self._holder_of(name)) is not None:
            if self._clock.now_s() > deadline:
                raise TableNameTaken(name, holder)
            if self._clock.wait(self._stop, _NAME_POLL_S):
                raise Stopped
            self._store.load_destination_tables_metadata()

    def _holder_of(self, name: str) -> str | None:
        """The table that has the name at the destination, and another one in the source.

        Upper and lower case count as one: to some destinations they are.
        """
        # One question for all versions of all tables, instead of one for each table.
        namesakes = {
            schema.id
            for schema in self._store.get_table_schemas()
            if str(schema.target).lower() == name.lower() and schema.id != self._table_id
        }
        if not namesakes:
            return None
        states = self._store.get_table_replication_states()
        holders = []
        for other_id in namesakes:
            metadata = self._store.get_destination_table_metadata(other_id)
            # What is copied again gives up its rows, and its name with them.
            is_kept = isinstance(
                states.get(other_id), FinishedCopy | SyncWait | Catchup | SyncDone | Ready
            )
            if metadata and is_kept and metadata.destination_table_id.lower() == name.lower():
                holders.append(other_id)
        if not holders:
            return None
        publication = self._config.source.publication
        published = self._control.ask(
            "reading the publication",
            fetch_published_tables,
            publication,
            holders,
            with_filters=False,
        )
        now = (str(other.schema.target) for other in chosen_tables(published, self._config))
        return next((other for other in now if other.lower() != name.lower()), None)

    # -- beginning, or going on ----------------------------------------------------------------

    @contextlib.contextmanager
    def _prepared(
        self, table: PublishedTable, state: object
    ) -> Iterator[tuple[PublishedTable, CopyPlan, str | None]]:
        """The table as it is copied, the plan, and the snapshot while it lasts."""
        plan = self._store.get_copy_plan(self._table_id)
        if plan is not None and not isinstance(state, Init | None):
            known = self._resumable(table, plan)
            if known is not None:
                _log.info("the copy of %s goes on", known.schema.name)
                self._is_resumed = True
                yield known, plan, None
                return
        self._is_resumed = False
        with self._new_copy(table) as (table, plan, snapshot_name):
            yield table, plan, snapshot_name

    def _resumable(self, table: PublishedTable, plan: CopyPlan) -> PublishedTable | None:
        """The table as the earlier worker copied it, where its work can be gone on with."""
        slot = self._control.ask("looking at the slot", fetch_slot, self._slot)
        schema = self._store.get_table_schema(self._table_id, LSN_ZERO)
        if slot is None or slot.is_lost or slot.plugin != "pgoutput" or schema is None:
            return None
        durable = max(self._store.get_replication_progress(self._worker) or LSN_ZERO, plan.slot_lsn)
        if slot.confirmed_flush_lsn is None or slot.confirmed_flush_lsn > durable:
            return None  # somebody else made it, or moved it past what is durable
        is_complete = self._is_copied(plan)
        if not self._belonging.has_finished(self._table_id, plan, is_complete=is_complete):
            _log.warning("the destination lacks what was copied of %s", schema.name)
            return None
        if is_complete:
            return replace(table, schema=schema)
        if not table.can_resume_copy or not table.schema.describes_same_columns(schema):
            return None
        if table.schema.mode != schema.mode:
            return None
        leaves = self._control.ask("measuring the table", fetch_leaves, self._table_id)
        planned = {(chunk.relation_id, chunk.file_node) for chunk in plan.chunks}
        there = {(leaf.relation_id, leaf.file_node) for leaf in leaves}
        return table if planned <= there else None  # rewritten rows are at other places

    def _is_copied(self, plan: CopyPlan) -> bool:
        """Whether an earlier worker finished the plan's copy at the destination.

        An apply worker that has not heard of the copy yet may describe the table as it was before.
        """
        metadata = self._store.get_destination_table_metadata(self._table_id)
        if metadata is None or plan.remaining:
            return False
        return metadata.snapshot_id == LSN_ZERO or metadata.snapshot_id >= plan.slot_lsn

    @contextlib.contextmanager
    def _new_copy(
        self, table: PublishedTable
    ) -> Iterator[tuple[PublishedTable, CopyPlan, str | None]]:
        # First: of a table in a later state, the destination is expected to have the copy.
        self._move(self._state, DataSync())
        # Of an earlier copy the destination knows the table as it was then.
        known = self._store.get_table_schema(self._table_id, LSN_MAX)
        self._destination.drop_table_for_copy(known or table.schema)
        self._control.ask("dropping the earlier slot", drop_slot, self._slot)
        self._store.clear_table_copy_state(self._table_id)
        # The snapshot lasts as long as the connection that made the slot does nothing else.
        connection = connect(
            self._config.source,
            application_name=f"etl_dagster slot {self._config.pipeline} {self._table_id}",
            replication=True,
            lock_timeout_s=_SLOT_LOCK_TIMEOUT_S,
        )
        partitions = self._partitions(table)
        with contextlib.closing(connection):
            started_at = self._control.ask("reading the clock", fetch_clock)
            slot = make_slot(
                self._control,
                connection,
                self._slot,
                export_snapshot=not table.can_resume_copy,
                stop=self._stop,
            )
            # The slot keeps every change from here on, also of the table's columns. Were they
            # others before, the first changes would take the new ones away again.
            before, table = table, self._fetch_table()
            if not table.schema.describes_same_columns(before.schema):
                raise TableRewritten(f"{table.schema.name} was altered while its copy was prepared")
            self._store.store_table_schema(table.schema)
            copy_id = str(uuid.uuid4())
            if self._partitions(table) != partitions:
                raise TableRewritten(
                    f"partitions of {table.schema.name} changed while its copy was prepared"
                )
            if table.is_partitioned:
                # One that is attached from now on is added later.
                note_copied_partitions(self._store, self._table_id, copy_id, partitions)
            plan = CopyPlan(
                copy_id=copy_id,
                chunks=self._chunks(table),
                finished={},
                slot_lsn=slot.consistent_point,
                started_at=started_at,
            )
            self._store.store_copy_plan(self._table_id, plan)
            self._store.upsert_replication_progress(self._worker, plan.slot_lsn)
            count = len(plan.chunks)
            _log.info(
                "copying %s: %d %s", table.schema.name, count, "chunk" if count == 1 else "chunks"
            )
            yield table, plan, slot.snapshot_name

    def _partitions(self, table: PublishedTable) -> Mapping[int, Partition]:
        if not table.is_partitioned:
            return {}
        found = self._control.ask("looking at partitions", fetch_partitions, [self._table_id])
        return found[self._table_id]

    def _chunks(self, table: PublishedTable) -> tuple[CopyChunk, ...]:
        if not self._config.table(table.schema.name).copy_rows:
            return ()
        leaves = self._control.ask("measuring the table", fetch_leaves, self._table_id)
        return plan_chunks(leaves, self._config.copy_tables.chunk_rows)

    # -- the copy --------------------------------------------------------------------------------

    def _copy(
        self, table: PublishedTable, plan: CopyPlan, snapshot_name: str | None, lease: Lease
    ) -> CopySummary:
        if self._is_resumed and self._is_copied(plan):
            return CopySummary.of(plan)
        self._move(self._state, DataSync())
        self._progressed("data_sync")

        def chunk_done(chunk: FinishedChunk) -> None:
            if not lease.is_held:
                raise LeaseLost(f"the lease of {table.schema.name} ended while it was copied")
            if self._store.get_table_replication_state(self._table_id) != self._state:
                raise LeaseLost(f"another copy of {table.schema.name} was asked for")
            self._attempt = 1
            with self._reporting:
                self._finished[chunk.index] = chunk
            self._progressed("data_sync")

        summary = TableCopy(
            self._config,
            self._store,
            self._destination,
            table,
            plan,
            snapshot_name=snapshot_name,
            stop=self._stop,
            on_chunk=chunk_done,
            meter=self._meter,
        ).run()
        self._store.store_destination_table_metadata(
            self._table_id, destination_metadata(table.schema, "applied")
        )
        return summary

    # -- the hand-over ---------------------------------------------------------------------------

    def _catch_up(
        self, schema: TableSchema, plan: CopyPlan, copied: CopySummary, lease: Lease
    ) -> Lsn:
        self._move(self._state, FinishedCopy())
        self._progressed("finished_copy")
        progress = self._store.get_replication_progress(self._worker)
        handovers = CatchUp(
            self._parts,
            [schema],
            lease,
            open_stream=stream_of_slot(
                self._config.source,
                self._slot,
                max(progress or LSN_ZERO, plan.slot_lsn),
                application_name=f"etl_dagster sync {self._config.pipeline} {self._table_id}",
            ),
            worker=self._worker,
            replay_from=plan.slot_lsn,
            must_reach=max(copied.newest_read_lsn, plan.slot_lsn),
            on_state=self._progressed,
        ).run()
        self._progressed("sync_done")
        self._control.ask("dropping the slot", drop_slot, self._slot)
        self._store.delete_replication_progress(self._worker)
        return handovers[self._table_id]

    def _progressed(self, state: str) -> None:
        assert self._plan is not None
        with self._reporting:
            done = list(self._finished.values())
            self._report(
                CopyProgress(
                    state=state,
                    chunks_done=len(done),
                    chunks_total=len(self._plan.chunks),
                    rows_done=sum(chunk.row_count for chunk in done),
                    bytes_done=sum(chunk.byte_count for chunk in done),
                    rows_estimated=sum(chunk.estimated_rows for chunk in self._plan.chunks),
                )
            )
