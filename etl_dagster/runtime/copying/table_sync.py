"""The table sync worker: prepares the copy of one table, copies it, and hands it over."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import (
    CopyOutdated,
    EtlError,
    HandoverTimeout,
    InvalidState,
    LeaseLost,
    MoveNotFinished,
    SlotInvalidated,
    SlotMissing,
    TableNameTaken,
)
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.coordination import CopyPlan, FinishedChunk
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import (
    Catchup,
    DataSync,
    Errored,
    FinishedCopy,
    Ready,
    SyncDone,
    SyncWait,
    TimedRetry,
    state_name,
)
from etl_dagster.model.stores import CoordinatingStore, TableSyncWorker
from etl_dagster.runtime.checking.belonging import MISMATCHES, Belonging
from etl_dagster.runtime.checking.origin import OriginCheck
from etl_dagster.runtime.clock import SYSTEM_CLOCK, Clock
from etl_dagster.runtime.copy_source import CopySource, PostgresSource
from etl_dagster.runtime.copying.chunk_queue import SharedChunks
from etl_dagster.runtime.copying.claim import Claim
from etl_dagster.runtime.copying.preparing import Preparation, Prepared
from etl_dagster.runtime.copying.sharing import begin_sharing, end_sharing
from etl_dagster.runtime.copying.slot_watch import SlotWatch
from etl_dagster.runtime.copying.table_copy import CopySummary, TableCopy
from etl_dagster.runtime.copying.table_repair import TableRepair
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.ending import Calls
from etl_dagster.runtime.memory import MemoryBudget
from etl_dagster.runtime.moved import find_move, forget_move, require_let_go
from etl_dagster.runtime.retry import errored_state
from etl_dagster.runtime.showing.metrics import CopyMeter
from etl_dagster.runtime.streaming.catchup import CatchUp
from etl_dagster.runtime.tables.schemas import destination_metadata
from etl_dagster.runtime.tables.shaped import shaping
from etl_dagster.runtime.timing import TIMING, Timing
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import drop_slot

_log = logging.getLogger(__name__)


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
    """One table's worker; it may run in a thread of the pipeline or in a process of its own.

    Args:
        on_progress: called with how far the copy is, by all workers together.
        on_chunk: called with each chunk that this worker has finished.
        clock, timing: the time, and how long to wait for other workers.
        control, source: of the table; by default, connections to `config.source`.
        make_control: makes the one for questions.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        destination: Destination,
        table_id: TableId,
        *,
        stop: threading.Event | None = None,
        on_progress: Callable[[CopyProgress], None] = lambda progress: None,
        on_chunk: Callable[[FinishedChunk], None] = lambda chunk: None,
        meter: CopyMeter | None = None,
        clock: Clock = SYSTEM_CLOCK,
        timing: Timing = TIMING,
        control: SourceControl | None = None,
        source: CopySource | None = None,
        memory: MemoryBudget | None = None,
        make_control: Callable[..., SourceControl] = SourceControl,
    ) -> None:
        self._config = config
        self._store = store
        self._calls = Calls()
        destination = shaping(destination, config, self._calls)
        self._belonging = Belonging(config, store, destination)
        self._table_id = table_id
        self._worker = TableSyncWorker(table_id)
        self._stop = stop or threading.Event()
        self._meter = meter
        self._clock = clock
        self._control = control or make_control(
            config.source,
            application_name=f"etl_dagster sync control {config.pipeline} {table_id}",
            verify=OriginCheck(config, store).look,
        )
        self._parts = WorkerParts(
            config,
            store,
            destination,
            self._control,
            self._stop,
            clock,
            timing,
            memory=memory or MemoryBudget.of(config),
        )
        self._source = source or PostgresSource(config, table_id)
        self._report = on_progress
        self._on_chunk = on_chunk
        self._plan: CopyPlan | None = None
        self._finished: Mapping[int, FinishedChunk] = {}
        self._reporting = threading.Lock()
        #: Failures in a row, this worker's own to come included; a finished chunk ends the row.
        self._attempt = 1
        #: Whether a slot of the table's own kept its changes since it was set aside.
        self._is_resumed = False

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
        claim = Claim(self._store, self._table_id)
        try:
            return self._run_until_current(claim)
        except Stopped:
            return None
        except (LeaseLost, InvalidState, *MISMATCHES):
            raise
        except Exception as error:
            if self._stop.is_set() and isinstance(error, EtlError) and error.retryable:
                return None  # what was under way was interrupted
            # The stream may have much to read before it comes to the new name of another table.
            waits = isinstance(error, TableNameTaken | MoveNotFinished)
            attempt = 1 if waits else self._attempt
            gives_up = isinstance(error, HandoverTimeout) and not self._is_resumed
            state = errored_state(error, self._config.retry, attempt)
            if not gives_up:
                state = self._with_kept(state, claim, error)
                if isinstance(error, HandoverTimeout):
                    state = replace(state, solution="Start the pipeline: it resumes the table.")
            _log.error("table %s: %s", self._table_id, state.reason)
            if claim.fail(state) and gives_up:
                # The next worker starts over.
                self._drop_slot()
            raise
        finally:
            self._control.close()
            claim.release()

    @property
    def is_writing(self) -> bool:
        """Whether the destination has something in its hands, which ends by itself."""
        return self._calls.are_under_way

    def give_up(self) -> None:
        """Wait for no answer of the source any more; after it was told to stop. From any thread."""
        self._control.end()

    def _with_kept(self, errored: Errored, claim: Claim, error: BaseException) -> Errored:
        """With how far the table is, and whether its slot keeps what follows.

        Once the copy is the table, nothing but its changes is missing.
        """
        match claim.state:
            case Errored(lsn=lsn, is_kept=is_kept):
                pass
            case FinishedCopy() | SyncWait() | Catchup():
                lsn = self._store.get_replication_progress(self._worker)
                is_kept = not isinstance(error, SlotInvalidated | SlotMissing)
            case _:
                return errored
        return replace(errored, lsn=lsn, is_kept=is_kept)

    def _run_until_current(self, claim: Claim) -> TableSyncResult:
        """Copy until the copy can follow the stream: a table may be altered meanwhile."""
        while True:
            try:
                return self._run(claim)
            except CopyOutdated as error:
                if self._stop.is_set():
                    raise Stopped from None
                if not claim.is_ours:
                    raise LeaseLost(f"another worker has table {self._table_id}") from error
                _log.warning("%s; it is copied again", error.reason)
                self._store.request_copy(self._table_id)

    def _run(self, claim: Claim) -> TableSyncResult:
        state = claim.look()
        if isinstance(state, Ready | SyncDone):
            raise InvalidState(
                f"table {self._table_id} is {state_name(state)}: it is streamed already",
                solution="To copy it again: `etl-dagster resync TABLE`.",
            )
        if isinstance(state, Errored):
            self._is_resumed = state.is_kept
            if isinstance(state.retry, TimedRetry):
                self._attempt = state.retry.attempt + 1
        self._belonging.require_known()
        preparation = Preparation(self._parts, self._source, self._belonging, self._table_id)
        table = preparation.fetch_table()
        require_let_go(self._config, self._store, self._table_id, table.schema.name)
        started = self._clock.now_s()
        repair = TableRepair(self._parts, self._source, self._table_id, preparation.fetch_table)
        prepared = repair.run(table, claim)
        if prepared is not None:
            copied = self._copy(prepared, claim)
        else:
            with preparation.begin(table, claim, claim.state or state) as prepared:
                copied = self._copy(prepared, claim)
        copy_seconds = self._clock.now_s() - started
        handover = self._hand_over(prepared, copied, claim)
        return TableSyncResult(
            schema=prepared.table.schema,
            copy_id=prepared.plan.copy_id,
            row_count=copied.row_count,
            byte_count=copied.byte_count,
            chunk_count=copied.chunk_count,
            resumed_chunks=copied.resumed_chunks,
            copy_seconds=copy_seconds,
            catchup_seconds=self._clock.now_s() - started - copy_seconds,
            snapshot_lsn=prepared.plan.slot_lsn,
            handover_lsn=handover,
        )

    def _copy(self, prepared: Prepared, claim: Claim) -> CopySummary:
        table, plan = prepared.table, prepared.plan
        finished = dict(plan.finished)
        self._plan, self._finished = plan, finished
        if prepared.is_copied:
            return CopySummary.of(plan)
        claim.move(DataSync())
        self._progressed("data_sync")

        def chunk_done(chunk: FinishedChunk) -> None:
            claim.require(table.schema.name)
            self._attempt = 1
            with self._reporting:
                finished[chunk.index] = chunk
            self._on_chunk(chunk)
            self._progressed("data_sync")

        def seen(others: Mapping[int, FinishedChunk]) -> None:
            with self._reporting:
                is_news = not others.keys() <= finished.keys()
                finished.update(others)
            if is_news:
                self._progressed("data_sync")

        queue: SharedChunks | None = None
        if prepared.snapshot_name is None and begin_sharing(self._store, self._table_id, plan):
            queue = SharedChunks(
                self._store,
                self._table_id,
                plan,
                waits=True,
                check=lambda: claim.require(table.schema.name),
                on_seen=seen,
            )
        name = str(table.schema.name)
        slot = SlotWatch(self._control, self._source.slot_name, self._clock, what=name, retry=name)
        summary = TableCopy(
            self._parts,
            self._source,
            table,
            plan,
            snapshot_name=prepared.snapshot_name,
            on_chunk=chunk_done,
            watch=slot.require,
            meter=self._meter,
            queue=queue,
        ).run()
        self._store.store_destination_table_metadata(
            self._table_id, destination_metadata(table.schema, "applied")
        )
        return summary

    def _hand_over(self, prepared: Prepared, copied: CopySummary, claim: Claim) -> Lsn:
        """Stream until the apply worker can continue; returns `SyncDone.lsn`."""
        plan = prepared.plan
        claim.move(FinishedCopy())
        self._progressed("finished_copy")
        progress = self._store.get_replication_progress(self._worker)
        # The hand-over is asked for past a marker of this worker's, which has seen the table in
        # the publication that it is in now.
        moved = find_move(self._store, self._table_id)
        handovers = CatchUp(
            self._parts,
            [prepared.table.schema],
            claim.lease,
            open_stream=self._source.open_stream(
                max(progress or LSN_ZERO, plan.slot_lsn),
                () if moved is None else (moved.publication,),
            ),
            worker=self._worker,
            replay_from=plan.slot_lsn,
            must_reach=max(copied.newest_read_lsn, plan.slot_lsn),
            on_state=self._progressed,
        ).run()
        self._progressed("sync_done")
        end_sharing(self._store, self._table_id)
        forget_move(self._store, self._table_id)
        self._drop_slot()
        return handovers[self._table_id]

    def _drop_slot(self) -> None:
        self._control.ask("dropping the slot", drop_slot, self._source.slot_name)
        self._store.delete_replication_progress(self._worker)

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
