"""One of several steps that copy tables together: it takes whatever work is left, no fixed part.

Every step runs the same code. One takes the lease of a table and leads its copy: it makes the plan,
finishes the copy and hands the table over. The others claim chunks of the plan in the state store.
If the leader is killed, the next step that looks takes the lease. If a helper is killed, its chunk
is free again. So a single step that is left completes every table, and no step waits for one that
never started.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetKey,
    AssetMaterialization,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    Failure,
    OpExecutionContext,
)

from etl_dagster.backoff import Backoff
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, InvalidState, LeaseLost
from etl_dagster.integrations.dagster.copies.presence import ReplicatorAbsent, ReplicatorWatch
from etl_dagster.integrations.dagster.copies.step_copy import StepCopy
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.model.coordination import FinishedChunk
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Ready, SyncDone
from etl_dagster.model.stores import CoordinatingStore

if TYPE_CHECKING:
    from etl_dagster.runtime.copying.table_sync import TableSyncResult

#: A step looks for work this often, and whether its run is being canceled.
_LOOK_EVERY_S = 1.0
_LOG_EVERY_S = 5.0
_MAX_RETRIES, _FIRST_RETRY_S, _LONGEST_RETRY_S = 3, 10, 60
_ENDING = (
    DagsterRunStatus.CANCELING,
    DagsterRunStatus.CANCELED,
    DagsterRunStatus.FAILURE,
    DagsterRunStatus.SUCCESS,
)


class RunEnds(EtlError):
    """The step's run is being canceled, or is over."""

    solution = (
        "No action needed: finished chunks are kept. To resume, execute the run again from "
        "failure, or materialize the table's asset."
    )


class RunWatch:
    """Whether a step may continue: its run is not being ended, and a replicator runs.

    Not every executor interrupts its steps when the run is terminated: Celery's doesn't.
    """

    def __init__(self, context: OpExecutionContext, replicator: ReplicatorWatch) -> None:
        self._context = context
        self._replicator = replicator
        self._look_at = 0.0

    def check(self) -> None:
        """Require both; called often.

        Raises:
            RunEnds: the run is being canceled, or is over.
            ReplicatorAbsent: there has been no replicator for too long.
        """
        self._replicator.check()
        self.check_run()

    def check_run(self) -> None:
        """Require that the run continues.

        Raises:
            RunEnds: the run is being canceled, or is over.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        run = self._context.instance.get_run_by_id(self._context.run_id)
        if run is None or run.status in _ENDING:
            raise RunEnds("the run is being canceled, or is over")


class StepTally:
    """What this step has copied of a table; published in the store for the other steps."""

    def __init__(self, store: CoordinatingStore, table_id: TableId, worker: str) -> None:
        self._store = store
        self._table_id = table_id
        self._worker = worker
        self._lock = threading.Lock()
        self._copy_id: str | None = None
        self._chunks = self._rows = self._bytes = 0

    def add(self, chunk: FinishedChunk) -> None:
        """Count a chunk of the copy under way."""
        plan = self._store.get_copy_plan(self._table_id)
        copy_id = None if plan is None else plan.copy_id
        with self._lock:
            if copy_id != self._copy_id:
                self._copy_id = copy_id
                self._chunks = self._rows = self._bytes = 0
            self._chunks += 1
            self._rows += chunk.row_count
            self._bytes += chunk.byte_count
            shown = {
                "copy_id": copy_id,
                "host": socket.gethostname(),
                "chunks": self._chunks,
                "rows": self._rows,
                "bytes": self._bytes,
            }
            self._store.publish_status(_tally_key(self._table_id, self._worker), shown)

    @property
    def chunks(self) -> int:
        """How many chunks of the copy under way this step has copied."""
        with self._lock:
            return self._chunks

    @property
    def rows(self) -> int:
        """How many rows of the copy under way this step has copied."""
        with self._lock:
            return self._rows


def tallies(
    store: CoordinatingStore, table_id: TableId, copy_id: str, workers: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    """What each worker has copied; workers that copied nothing are left out."""
    found: dict[str, Mapping[str, Any]] = {}
    for worker in workers:
        shown = store.get_status(_tally_key(table_id, worker))
        if shown is not None and shown.get("copy_id") == copy_id:
            found[worker] = {key: shown[key] for key in ("host", "chunks", "rows", "bytes")}
    return found


def _tally_key(table_id: TableId, worker: str) -> str:
    return f"shared_copy:{table_id}:{worker}"


@dataclass
class _Table:
    """A table of the step that isn't handed over yet."""

    copy: StepCopy
    schema: TableSchema
    tally: StepTally
    #: Failures in a row, and when the table is tried again, in seconds of a monotonic clock.
    failures: int = 0
    again_at: float = 0.0
    #: What was logged last: what the step does for the table, and how many chunks it has copied.
    role: str = ""
    shown: int = 0
    shown_at: float = 0.0


class SharedCopies:
    """Brings tables to their hand-over, together with other steps that do the same.

    Args:
        keys: the assets of the tables, by name.
        worker: this step's name among `workers`.
    """

    def __init__(
        self,
        context: OpExecutionContext,
        config: PipelineConfig,
        store: CoordinatingStore,
        destination: Destination,
        watch: RunWatch,
        keys: Mapping[str, AssetKey],
        *,
        worker: str,
        workers: Sequence[str],
    ) -> None:
        self._context = context
        self._config = config
        self._store = store
        self._watch = watch
        self._keys = keys
        self._worker = worker
        self._workers = workers
        self._tables: dict[str, _Table] = {}
        for name in keys:
            copy = StepCopy(context, config, store, destination, watch, name)
            schema = copy.find()
            self._tables[name] = _Table(copy, schema, StepTally(store, schema.id, worker))

    def run(self) -> None:
        """Work until every table is handed over, by this step or another.

        Raises:
            Failure: a table has stopped; the others are handed over.
            RunEnds, ReplicatorAbsent: continuing is useless.
        """
        pending = dict(self._tables)
        stopped: list[str] = []
        while pending:
            did_some = False
            for name, table in list(pending.items()):
                try:
                    is_over, did = self._work_on(name, table)
                except (RunEnds, ReplicatorAbsent):
                    raise
                except EtlError as error:
                    if error.retryable and table.failures < _MAX_RETRIES:
                        self._pause(name, table, error)
                        continue
                    stopped.append(with_solution(f"{name}: {error.reason}", error.solution))
                    is_over, did = True, False
                if is_over:
                    del pending[name]
                did_some |= did
                if did:
                    break  # the first table that has work left comes first
            if pending and not did_some:
                self._watch.check()
                self._store.wait_for_change(_LOOK_EVERY_S)
        if stopped:
            raise Failure("\n\n".join(stopped), allow_retries=False)

    def _pause(self, name: str, table: _Table, error: EtlError) -> None:
        delay_s = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S).delay_s(table.failures)
        table.failures += 1
        table.again_at = time.monotonic() + delay_s
        self._context.log.warning(f"{name}: {error.reason}. Trying again in {delay_s:.0f} s.")

    def _work_on(self, name: str, table: _Table) -> tuple[bool, bool]:
        """Lead or help; returns whether the table is handed over, and whether this step worked."""
        table_id = table.schema.id
        if isinstance(self._store.get_table_replication_state(table_id), Ready | SyncDone):
            return True, False
        if time.monotonic() < table.again_at:
            return False, False
        if not self._store.is_leased(f"table:{table_id}"):
            table.copy.require_wanted(table_id)
            try:
                result = table.copy.lead(
                    table_id, table.tally.add, lambda: self._say(name, table, "leads the copy")
                )
            except LeaseLost:
                return False, False
            if result is None:
                raise RunEnds(f"the copy of {name} was stopped")
            self._materialize(name, table, result)
            return True, True
        try:
            did = table.copy.help(table_id, table.tally.add, lambda: self._show(name, table))
        except LeaseLost as lost:
            self._context.log.info(f"{name}: {lost.reason}")
            return False, False
        if did:
            table.failures = 0
            self._show(name, table, is_last=True)
        return False, did

    def _show(self, name: str, table: _Table, *, is_last: bool = False) -> None:
        """Log what this step has copied as a helper, from time to time."""
        now, chunks = time.monotonic(), table.tally.chunks
        if chunks != table.shown and (is_last or now - table.shown_at >= _LOG_EVERY_S):
            table.shown, table.shown_at = chunks, now
            self._say(name, table, "helps with the copy")
            rows = table.tally.rows
            self._context.log.info(
                f"{name}: {self._worker} has copied {chunks} of its chunks, {rows:,} rows"
            )

    def _say(self, name: str, table: _Table, role: str) -> None:
        if table.role != role:
            table.role = role
            self._context.log.info(f"{name}: {self._worker} on {socket.gethostname()} {role}")

    def _materialize(self, name: str, table: _Table, result: TableSyncResult) -> None:
        """Materialize the asset at once, so that it doesn't depend on a later step to start."""
        metadata = table.copy.metadata(table.schema, result)
        by_worker = tallies(self._store, table.schema.id, result.copy_id, self._workers)
        metadata["table_copy_workers"] = max(len(by_worker), 1)
        metadata["table_copy_by_worker"] = by_worker
        self._context.log_event(AssetMaterialization(self._keys[name], metadata=metadata))


def materialize_missing(
    context: OpExecutionContext,
    config: PipelineConfig,
    store: CoordinatingStore,
    destination: Destination,
    watch: RunWatch,
    keys: Mapping[str, AssetKey],
) -> None:
    """Materialize the tables that another process than the run's steps has handed over.

    Raises:
        InvalidState: a table has no copy, though every step has ended.
    """
    done = materialized_by_run(context.instance, context.run_id)
    for name, key in keys.items():
        if key in done:
            continue
        copy = StepCopy(context, config, store, destination, watch, name)
        schema = copy.find()
        copy.require_wanted(schema.id)
        if not isinstance(store.get_table_replication_state(schema.id), Ready | SyncDone):
            raise InvalidState(
                f"{name} was asked to be copied again while this run copied it",
                solution="No action needed: the sensor requests that copy, or another run makes "
                "it.",
            )
        context.log_event(AssetMaterialization(key, metadata=copy.metadata(schema, None)))


def materialized_by_run(instance: DagsterInstance, run_id: str) -> set[AssetKey]:
    """The assets that a run has materialized, also where the stream has reported them since."""
    logged = instance.all_logs(run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION)
    events = (entry.dagster_event for entry in logged)
    return {event.asset_key for event in events if event is not None and event.asset_key}
