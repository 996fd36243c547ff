"""Helps with the copy of a table that another process leads: copies chunks of it, and no more."""

from __future__ import annotations

import threading
from collections.abc import Callable

from etl_dagster.config import PipelineConfig
from etl_dagster.model.coordination import CopyPlan, FinishedChunk
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import DataSync
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.checking.belonging import Belonging
from etl_dagster.runtime.checking.origin import OriginCheck
from etl_dagster.runtime.clock import SYSTEM_CLOCK, Clock
from etl_dagster.runtime.copy_source import CopySource, PostgresSource
from etl_dagster.runtime.copying.chunk_queue import SharedChunks
from etl_dagster.runtime.copying.preparing import Preparation
from etl_dagster.runtime.copying.sharing import is_shared
from etl_dagster.runtime.copying.table_copy import TableCopy
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.memory import MemoryBudget
from etl_dagster.runtime.tables.shaped import shaping
from etl_dagster.runtime.timing import TIMING, Timing
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.control import SourceControl


class CopyHelper:
    """Takes chunks of a shared copy for as long as some are free.

    The table stays the leader's: it made the plan and the slot, it finishes the copy and hands the
    table over. A helper never changes the table's state, and what it fails with stays its own: its
    chunk is free again.

    Args:
        on_chunk: called with each chunk that this helper has finished.
        control, source: of the table; by default, connections to `config.source`.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        destination: Destination,
        table_id: TableId,
        *,
        stop: threading.Event | None = None,
        on_chunk: Callable[[FinishedChunk], None] = lambda chunk: None,
        clock: Clock = SYSTEM_CLOCK,
        timing: Timing = TIMING,
        control: SourceControl | None = None,
        source: CopySource | None = None,
        memory: MemoryBudget | None = None,
    ) -> None:
        destination = shaping(destination, config)
        self._store = store
        self._table_id = table_id
        self._on_chunk = on_chunk
        self._belonging = Belonging(config, store, destination)
        self._control = control or SourceControl(
            config.source,
            application_name=f"etl_dagster helper control {config.pipeline} {table_id}",
            verify=OriginCheck(config, store).look,
        )
        self._parts = WorkerParts(
            config,
            store,
            destination,
            self._control,
            stop or threading.Event(),
            clock,
            timing,
            memory=memory or MemoryBudget.of(config),
        )
        self._source = source or PostgresSource(config, table_id)

    def run(self) -> bool:
        """Copy chunks until none is free; whether there was any.

        Raises:
            Stopped: told to stop; finished chunks are recorded.
            LeaseLost: another copy of the table has begun.
            EtlError: what the source, the store or the destination failed with.
        """
        try:
            plan = self._shared_plan()
            if plan is None:
                return False
            queue = SharedChunks(self._store, self._table_id, plan, waits=False)
            if not queue.has_free():
                return False
            self._belonging.require_known()
            preparation = Preparation(self._parts, self._source, self._belonging, self._table_id)
            table = preparation.fetch_table()
            # The leader sees the same, and begins another copy.
            if not preparation.fits(table, plan):
                return False
            TableCopy(
                self._parts,
                self._source,
                table,
                plan,
                snapshot_name=None,
                on_chunk=self._on_chunk,
                queue=queue,
            ).copy_chunks()
        finally:
            self._control.close()
        return True

    def _shared_plan(self) -> CopyPlan | None:
        if self._parts.stop.is_set():
            raise Stopped
        state = self._store.get_table_replication_state(self._table_id)
        plan = self._store.get_copy_plan(self._table_id)
        if plan is None or not isinstance(state, DataSync):
            return None
        if not plan.remaining or not is_shared(self._store, self._table_id, plan):
            return None
        return plan
