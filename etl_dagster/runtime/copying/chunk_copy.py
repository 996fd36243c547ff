"""One chunk of a table, from the source to durable and recorded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from etl_dagster.errors import TableRewritten
from etl_dagster.model.coordination import CopyChunk, CopyPlan, FinishedChunk
from etl_dagster.model.events import ChunkId, CopiedRows, TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.copy_source import ReadsChunks
from etl_dagster.runtime.durable import Stopped, wait_durable
from etl_dagster.runtime.showing.metrics import CopyMeter
from etl_dagster.runtime.tables.odd_counts import CopyOddCounts
from etl_dagster.runtime.tables.odd_policies import log_odd
from etl_dagster.runtime.worker_parts import WorkerParts


class ChunkCopy:
    """Copies chunks of one copy of a table; from any thread, each with a reader of its own."""

    def __init__(
        self, parts: WorkerParts, schema: TableSchema, plan: CopyPlan, meter: CopyMeter
    ) -> None:
        self._store = parts.store
        self._destination = parts.destination
        self._clock = parts.clock
        self._stop = parts.stop
        self._schema = schema
        self._plan = plan
        self._meter = meter
        self._odd = CopyOddCounts(parts.store, parts.destination)

    def copy(self, chunk: CopyChunk, reader: ReadsChunks) -> FinishedChunk:
        """Have the destination keep a chunk's rows, then record that it has them.

        Raises:
            Stopped: told to stop.
            TableRewritten: its rows are at other places by now; the chunk may lack some.
            Exception: what the source, the store or the destination failed with.
        """
        started, table_id = self._clock.now_s(), self._schema.id
        counted = CountedBatches(
            reader.read(chunk),
            self._stop,
            lambda rows: self._meter.read(table_id, chunk.index, rows),
        )
        rows = TableRows(
            self._plan.copy_id,
            counted,
            ChunkId(self._plan.copy_id, chunk.index),
            replay_from=self._plan.slot_lsn,
            copied_at_us=self._plan.started_at_us,
        )
        wait_durable(self._destination.write_table_rows(self._schema, rows), self._stop)
        # What rewrites the rows waits for our reading to end, so asking afterwards is enough.
        if chunk.file_node and reader.file_node(chunk.relation_id) != chunk.file_node:
            raise TableRewritten(f"{self._schema.name} was rewritten while it was copied")
        done = FinishedChunk(
            chunk.index,
            counted.row_count - rows.left_out,
            counted.byte_count,
            reader.insert_lsn(),
            self._clock.now_s() - started,
        )
        # Before it counts as finished: a chunk that is copied again is counted once.
        self._odd.add_chunk(table_id, self._plan.slot_lsn, chunk.index, reader.replaced)
        self._store.finish_chunk(table_id, self._plan.copy_id, done)
        log_odd(self._schema, reader.replaced)
        return done


class CountedBatches:
    """An iterator over record batches that counts what passes, and ends with a stop.

    Args:
        on_rows: called with the number of rows that have passed, at first with 0.
    """

    def __init__(
        self,
        batches: Iterator[CopiedRows],
        stop: threading.Event,
        on_rows: Callable[[int], None],
    ) -> None:
        self._batches = batches
        self._stop = stop
        self._on_rows = on_rows
        self.row_count = 0
        self.byte_count = 0
        on_rows(0)

    def __iter__(self) -> Iterator[CopiedRows]:
        return self

    def __next__(self) -> CopiedRows:
        if self._stop.is_set():
            raise Stopped
        batch = next(self._batches)
        self.row_count += batch.num_rows
        self.byte_count += batch.nbytes
        self._on_rows(self.row_count)
        return batch
