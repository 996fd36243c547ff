"""One step's copy of one table up to its hand-over, and what the step reports about it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from dagster import (
    AssetExecutionContext,
    AssetKey,
    DagsterRun,
    DagsterRunStatus,
    MaterializeResult,
    OpExecutionContext,
    RunsFilter,
)

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import InvalidState, LeaseLost
from etl_dagster.integrations.dagster.copies.copy_ending import HELPING, Endable, end_copy
from etl_dagster.integrations.dagster.copies.presence import ReplicatorAbsent
from etl_dagster.integrations.dagster.copies.run_log import CopyPace, engine_warnings
from etl_dagster.integrations.dagster.outcome import Outcome
from etl_dagster.integrations.dagster.tables.metadata import (
    copy_metadata,
    odd_metadata,
    state_metadata,
    state_tags,
    table_metadata,
)
from etl_dagster.integrations.dagster.tables.storage import storage_of
from etl_dagster.integrations.dagster.tables.translator import (
    REQUEST_TAG,
    STATE_ID,
    request_prefix,
)
from etl_dagster.integrations.dagster.timing import DAGSTER_TIMING, DagsterTiming
from etl_dagster.integrations.meltano.positions.bookmarks import TablePosition
from etl_dagster.integrations.meltano.positions.tables import Positions
from etl_dagster.lsn import LSN_MAX
from etl_dagster.model.coordination import FinishedChunk
from etl_dagster.model.destination import (
    CountsOddValues,
    CountsQuarantinedRows,
    CountsRows,
    Destination,
    EstimatedCount,
    Interruptible,
    offered,
)
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Errored, Ready, SyncDone, TimedRetry
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.table_name import TableName

if TYPE_CHECKING:
    # Its drivers cost as much to import as Dagster; every process of Dagster imports this module.
    from etl_dagster.runtime.copying.table_sync import CopyProgress, TableSyncResult

_Result = TypeVar("_Result")
#: The context of an asset's step, or of an op's.
StepContext: TypeAlias = AssetExecutionContext | OpExecutionContext

_LOG_EVERY_S = 5.0
_POLL_S = 0.2


def is_asked_for_by_person(context: StepContext) -> bool:
    """Whether a person started the run, so that a table that is streamed already is copied again.

    A run that a person executes again has the tags of the first run, although the sensor requested
    only one copy. An automatic retry by Dagster counts as the run that it retries.
    """
    return _is_asked_for(context, _first_try(context))


def _is_asked_for(context: StepContext, run: DagsterRun | None) -> bool:
    """As `is_asked_for_by_person`, for a run whose first try is known."""
    if run is None:
        return False
    tags = run.tags
    request_id = tags.get(REQUEST_TAG)
    if request_id is None or "dagster/parent_run_id" in tags:
        return True
    if not request_id.startswith(request_prefix(tags.get(STATE_ID, ""))):
        return True  # another sensor's request
    done = RunsFilter(tags={REQUEST_TAG: request_id}, statuses=[DagsterRunStatus.SUCCESS])
    own = {run.run_id, context.run.run_id}
    return any(other.run_id not in own for other in context.instance.get_runs(done))


def _first_try(context: StepContext) -> DagsterRun | None:
    """The run itself, or, for an automatic retry by Dagster, the run that it retries.

    None if that run has been deleted.
    """
    run: DagsterRun | None = context.run
    while run is not None and "dagster/retry_number" in run.tags:
        run = context.instance.get_run_by_id(run.tags.get("dagster/parent_run_id", ""))
    return run


class StepWatch(Protocol):
    """What a step checks while it works."""

    def check(self) -> None:
        """Raise if continuing is useless; called often."""
        ...


class StepCopy:
    """One step's work on one table."""

    def __init__(
        self,
        context: StepContext,
        config: PipelineConfig,
        store: CoordinatingStore,
        destination: Destination,
        watch: StepWatch,
        table_name: str,
        *,
        timing: DagsterTiming = DAGSTER_TIMING,
    ) -> None:
        self._timing = timing
        #: Whether a thread of this copy was left waiting for a server.
        self.is_abandoned = False
        self._context = context
        self._config = config
        self._store = store
        self._destination = destination
        self._watch = watch
        self._name = table_name
        self._log = context.log
        self._logged_at = 0.0
        self._logged: CopyProgress | None = None
        self._pace = CopyPace()

    def materialize(self, key: AssetKey) -> MaterializeResult[Any]:
        """Copy the table up to its hand-over.

        Raises:
            EtlError: the copy failed, or the step may not continue.
        """
        self._tag_run({STATE_ID: self._config.state_id(self._name)})
        schema = self.find()
        self.prepare(schema.id)
        metadata = self.metadata(schema, self._run(schema.id))
        self._tag_run(state_tags(self._position(schema.id).to_state()))
        return MaterializeResult(asset_key=key, metadata=metadata)

    def metadata(self, schema: TableSchema, result: TableSyncResult | None) -> dict[str, Any]:
        """The metadata of the materialization.

        Args:
            result: of this step's worker; None if another worker handed the table over.
        """
        state_id = self._config.state_id(self._name)
        name = self._name_there(schema)
        full_name = storage_of(self._config.destination).table_name(name)
        row_count, quarantined = self._count(name)
        if result is None:
            metadata = table_metadata(full_name, state_id, row_count)
            metadata |= {"copied_by": "another worker"}
        else:
            if row_count is None or isinstance(row_count, EstimatedCount):
                row_count = result.row_count
            metadata = table_metadata(full_name, state_id, row_count) | copy_metadata(result)
        metadata |= odd_metadata(self._count_odd(schema.id, name), quarantined)
        return metadata | state_metadata(self._position(schema.id))

    def _tag_run(self, tags: Mapping[str, str]) -> None:
        """Tag the run with its table's state, as the sensor tags the runs that it requests; a run
        of several tables has no single state."""
        run = self._context.run
        if len(run.asset_selection or ()) == 1:
            self._context.instance.add_run_tags(run.run_id, dict(tags))

    def _position(self, table_id: TableId) -> TablePosition:
        state = self._store.get_table_replication_state(table_id)
        positions = Positions(self._config, self._store)
        return positions.position(self._name, table_id, state, None)

    def find(self) -> TableSchema:
        """The table in the source that has the asset's table name now.

        It asks on a thread, since a lock on any published table may hold up the catalog's answer
        for up to a minute.
        """
        outcome = Outcome(self._ask_source)
        while not outcome.wait(_POLL_S):
            self._watch.check()
        return outcome.result()

    def _ask_source(self) -> TableSchema:
        from etl_dagster.source.catalog import fetch_published_tables, fetch_table_id
        from etl_dagster.source.control import SourceControl

        publication = self._config.source.publication
        name = TableName.parse(self._name)
        control = SourceControl(self._config.source, application_name="etl_dagster copy")
        with contextlib.closing(control):
            doing = f"looking for {self._name}"
            table_id = control.ask(doing, fetch_table_id, name.schema_name, name.table_name)
            if table_id is not None:
                for table in control.ask(
                    doing, fetch_published_tables, publication, [table_id], with_filters=False
                ):
                    return table.schema
        raise InvalidState(
            f"{self._name} is not in publication {publication!r}",
            solution="Add it to the publication, or reload the code location to forget the asset.",
        )

    def prepare(self, table_id: TableId) -> None:
        """Request a new copy if the table has one already, and a person started the run.

        It does so once for all tries of a run: one that failed before it came here has requested
        nothing.
        """
        state = self._store.get_table_replication_state(table_id)
        first = _first_try(self._context)
        key, run = f"prepared by run:{table_id}", {"run_id": first.run_id if first else ""}
        is_due = _is_asked_for(self._context, first) and self._store.get_note(key) != run
        match state:
            case Ready() | SyncDone() if is_due:
                self._log.info(f"{self._name} is streamed; copying it again from the beginning")
                self._store.request_copy(table_id)
            case Errored(retry=retry) if not isinstance(retry, TimedRetry):
                # A person looked at it and decided to continue.
                self._log.info(f"{self._name} had stopped ({state.reason}); trying again")
            case None:
                self._log.info(f"{self._name} is new; the replicator has not seen it yet")
            case _:
                pass
        if is_due:
            self._store.put_note(key, run)

    # -- the worker, on a thread so that a termination of the run is noticed at once ---------------

    def _run(self, table_id: TableId) -> TableSyncResult | None:
        """Work up to the hand-over; None if another process has handed the table over."""
        while True:
            state = self._store.get_table_replication_state(table_id)
            if isinstance(state, Ready | SyncDone):
                return None
            try:
                result = self.lead(table_id)
            except LeaseLost:
                self._log.info(f"another worker copies {self._name}; waiting for it")
                self._wait_for_other(table_id)
                self.require_wanted(table_id)
                continue
            if result is None:
                raise LeaseLost(f"the copy of {self._name} was stopped")
            return result

    def require_wanted(self, table_id: TableId) -> None:
        """Require that the table has not stopped meanwhile, as by `etl-dagster resync --cancel`.

        Raises:
            InvalidState: it has stopped, and won't be retried before a person decides so.
        """
        state = self._store.get_table_replication_state(table_id)
        if isinstance(state, Errored) and not isinstance(state.retry, TimedRetry):
            raise InvalidState(f"{self._name} stopped: {state.reason}", solution=state.solution)

    def lead(
        self,
        table_id: TableId,
        on_chunk: Callable[[FinishedChunk], None] = lambda chunk: None,
        on_begin: Callable[[], None] = lambda: None,
    ) -> TableSyncResult | None:
        """Be the table's worker up to its hand-over; returns None if told to stop.

        Args:
            on_chunk: called with each chunk that this step has finished, on any thread.
            on_begin: called once this step has the table's lease.

        Raises:
            LeaseLost: another worker has the table, or has just handed it over.
            EtlError: the copy failed.
        """
        from etl_dagster.runtime.copying.table_sync import TableSync

        stop = threading.Event()
        progress: list[CopyProgress] = []
        worker = TableSync(
            self._config,
            self._store,
            self._destination,
            table_id,
            stop=stop,
            on_progress=progress.append,
            on_chunk=on_chunk,
        )

        has_begun = False

        def show() -> None:
            nonlocal has_begun
            if progress:
                if not has_begun:
                    on_begin()
                    self._show_resumed(progress[0])
                has_begun = True
                self._show(progress[-1])
                del progress[:-1]

        try:
            return self._attend(worker.run, stop, show, worker)
        except InvalidState as error:
            state = self._store.get_table_replication_state(table_id)
            if has_begun or not isinstance(state, Ready | SyncDone):
                raise
            raise LeaseLost(f"another worker has handed over {self._name}") from error

    def help(
        self,
        table_id: TableId,
        on_chunk: Callable[[FinishedChunk], None],
        show: Callable[[], None],
    ) -> bool:
        """Copy the free chunks of another worker's copy; returns whether there were any.

        Args:
            on_chunk: called with each chunk that this step has finished, on any thread.
            show: called often meanwhile.

        Raises:
            LeaseLost: that copy was given up.
            EtlError: a chunk failed; it is free again.
        """
        from etl_dagster.runtime.copying.copy_helper import CopyHelper

        stop = threading.Event()
        helper = CopyHelper(
            self._config, self._store, self._destination, table_id, stop=stop, on_chunk=on_chunk
        )
        return self._attend(helper.run, stop, show)

    def _attend(
        self,
        work: Callable[[], _Result],
        stop: threading.Event,
        show: Callable[[], None],
        worker: Endable = HELPING,
    ) -> _Result:
        with engine_warnings() as warnings:

            def report() -> None:
                for text in warnings.take():
                    self._log.warning(text)
                show()

            outcome = Outcome(work)
            try:
                while not outcome.wait(_POLL_S):
                    self._watch.check()
                    report()
            except BaseException as reason:
                # The run is terminated, or has no replicator. What is finished stays, and the next
                # run continues from there.
                stop.set()
                self._store.wake()
                if (destination := offered(self._destination, Interruptible)) is not None:
                    destination.interrupt()
                self.is_abandoned = not end_copy(
                    self._name,
                    worker,
                    outcome,
                    self._timing,
                    is_orphan=isinstance(reason, ReplicatorAbsent),
                )
                raise
            report()
            return outcome.result()

    def _wait_for_other(self, table_id: TableId) -> None:
        while self._store.is_leased(f"table:{table_id}"):
            self._watch.check()
            self._store.wait_for_change(1.0)

    # -- what the run's log says -------------------------------------------------------------------

    def _show_resumed(self, first: CopyProgress) -> None:
        """Log what an earlier run had copied; the worker reports that before anything else."""
        if first.state == "data_sync" and first.chunks_done:
            self._log.info(
                f"{self._name}: resuming its copy: {first.chunks_done} of {first.chunks_total} "
                f"chunks, {first.rows_done:,} rows, were copied before"
            )

    def _show(self, progress: CopyProgress) -> None:
        now = time.monotonic()
        before = self._logged
        is_news = before is None or before.state != progress.state
        is_due = progress != before and now - self._logged_at >= _LOG_EVERY_S
        if is_news or is_due:
            self._logged, self._logged_at = progress, now
            self._log.info(self._line(progress))

    def _line(self, progress: CopyProgress) -> str:
        if progress.state != "data_sync":
            meaning = _MEANINGS.get(progress.state, progress.state)
            return f"{self._name}, {progress.rows_done:,} rows: {meaning}"
        return self._pace.line(self._name, progress)

    def _name_there(self, schema: TableSchema) -> str:
        """The table's name at the destination."""
        return str((self._store.get_table_schema(schema.id, LSN_MAX) or schema).target)

    def _count(self, name: str) -> tuple[int | None, int]:
        """The rows of the destination's table, None if they can't be counted; and the rows in
        quarantine."""
        rows, held = None, 0
        if (counting := offered(self._destination, CountsRows)) is not None:
            rows = counting.count_rows().get(name)
        if (holding := offered(self._destination, CountsQuarantinedRows)) is not None:
            held = holding.count_quarantined_rows().get(name, 0)
        return rows, held

    def _count_odd(self, table_id: TableId, name: str) -> Mapping[str, int]:
        """How many values the columns' types can't hold, by column.

        Those that the destination counts; if it can't count them, those that the copy brought.
        """
        destination = offered(self._destination, CountsOddValues)
        if destination is not None:
            return destination.count_odd_values().get(name, {})
        from etl_dagster.runtime.tables.odd_counts import copied_odd

        plan = self._store.get_copy_plan(table_id)
        return {} if plan is None else copied_odd(self._store, table_id, plan)


_MEANINGS: Mapping[str, str] = {
    "finished_copy": "all copied; applying what changed meanwhile",
    "sync_wait": "caught up; asking the replicator to take over",
    "catchup": "applying the last changes before the hand-over",
    "sync_done": "handed over to the stream",
}
