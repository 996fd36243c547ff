"""The copy of one table: its chunks, several at a time, each durable before it is recorded."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import psycopg

from etl_dagster.backoff import Backoff
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, TableRewritten
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import ChunkId, CopiedRows, TableRows
from etl_dagster.model.stores import CoordinatingStore, CopyChunk, CopyPlan, FinishedChunk
from etl_dagster.pg.encodings import stored_encoding
from etl_dagster.runtime.durable import Stopped, wait_durable
from etl_dagster.runtime.failures import of_destination
from etl_dagster.runtime.retry import backoff
from etl_dagster.runtime.showing.metrics import CopyMeter
from etl_dagster.runtime.tables.odd_counts import CopyOddCounts
from etl_dagster.runtime.tables.odd_policies import OddPolicies, log_odd
from etl_dagster.source.catalog import (
    PublishedTable,
    fetch_file_node,
    fetch_insert_lsn,
)
from etl_dagster.source.connection import connect, translate
from etl_dagster.source.copy import ChunkReader
from etl_dagster.source.partitions import fetch_read_from

_log = logging.getLogger(__name__)

_STOP_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class CopySummary:
    """A finished copy, with what earlier workers had done of it."""

    row_count: int
    byte_count: int
    chunk_count: int
    resumed_chunks: int
    #: The newest of the chunks' snapshots lies before.
    newest_read_lsn: Lsn

    @classmethod
    def of(cls, plan: CopyPlan, finished: Mapping[int, FinishedChunk] | None = None) -> CopySummary:
        """The sum over the finished chunks; those of the plan were finished before."""
        chunks = list((plan.finished if finished is None else finished).values())
        return cls(
            row_count=sum(chunk.row_count for chunk in chunks),
            byte_count=sum(chunk.byte_count for chunk in chunks),
            chunk_count=len(plan.chunks),
            resumed_chunks=len(plan.finished),
            newest_read_lsn=max((chunk.read_lsn for chunk in chunks), default=LSN_ZERO),
        )


class TableCopy:
    """Copies the chunks of a plan that aren't finished."""

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        destination: Destination,
        table: PublishedTable,
        plan: CopyPlan,
        *,
        snapshot_name: str | None,
        stop: threading.Event,
        on_chunk: Callable[[FinishedChunk], None],
        meter: CopyMeter | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._destination = destination
        self._table = table
        self._plan = plan
        self._snapshot_name = snapshot_name
        self._stop = stop
        self._on_chunk = on_chunk
        self._meter = meter or CopyMeter()
        self._odd = CopyOddCounts(store, destination)
        #: Set when one worker failed: the others end after their chunk.
        self._failed = threading.Event()
        self._readers: set[ChunkReader] = set()

    def run(self) -> CopySummary:
        """Copy until every chunk is durable, and finish the copy at the destination.

        Raises:
            Stopped: told to stop; finished chunks are recorded.
            EtlError: what the source, the store or the destination failed with.
        """
        self._meter.begin(self._table.schema.id)
        todo: queue.SimpleQueue[CopyChunk] = queue.SimpleQueue()
        for chunk in self._plan.remaining:
            todo.put(chunk)
        finished = dict(self._plan.finished)
        workers = min(self._config.copy_tables.max_connections_per_table, todo.qsize())
        if workers:
            with ThreadPoolExecutor(workers, f"copy {self._table.schema.name}") as pool:
                jobs = [pool.submit(self._work, todo, finished) for _ in range(workers)]
                while wait(jobs, timeout=_STOP_POLL_S).not_done:
                    if self._stop.is_set():
                        self._cancel_reading()
            failures = [error for job in jobs if (error := job.exception()) is not None]
            if failures:
                # What a worker failed with says more than that the others then stopped.
                raise next((e for e in failures if not isinstance(e, Stopped)), failures[0])
        self._finish()
        return CopySummary.of(self._plan, finished)

    def _cancel_reading(self) -> None:
        """A server that keeps a worker waiting, for example for a lock, keeps it no longer."""
        for reader in list(self._readers):
            try:
                reader.cancel()
            except Exception as error:
                _log.debug("a copy can't be cancelled: %s", type(error).__name__)

    def _finish(self) -> None:
        """The end of the copy: the destination makes it the table, durable as a whole."""
        plan = self._plan
        end = TableRows(plan.copy_id, replay_from=plan.slot_lsn, copied_at_us=plan.started_at_us)
        wait_durable(self._destination.write_table_rows(self._table.schema, end), self._stop)

    def _work(self, todo: queue.SimpleQueue[CopyChunk], finished: dict[int, FinishedChunk]) -> None:
        pauses = backoff(self._config.retry)
        reader: ChunkReader | None = None
        control: psycopg.Connection | None = None
        chunk: CopyChunk | None = None
        try:
            while True:
                if self._stop.is_set() or self._failed.is_set():
                    raise Stopped
                if chunk is None:
                    try:
                        chunk = todo.get_nowait()
                    except queue.Empty:
                        return
                try:
                    if reader is None or control is None:
                        control, reader = self._connect()
                    done = self._copy(chunk, reader, control)
                except Stopped:
                    raise
                except Exception as raised:
                    if self._stop.is_set():
                        raise Stopped from None
                    error = self._known(raised, pauses)
                    # A snapshot ends with the connection that exported it; only a new copy helps.
                    is_lost = self._snapshot_name is not None or isinstance(error, TableRewritten)
                    if not error.retryable or is_lost or pauses.is_exhausted:
                        raise error from error.__cause__
                    delay_s = pauses.next_delay_s()
                    _log.warning(
                        "chunk %d of %s failed (%s); again in %.1f s",
                        chunk.index,
                        self._table.schema.name,
                        error.reason,
                        delay_s,
                    )
                    self._close(reader, control)
                    reader = control = None
                    self._stop.wait(delay_s)
                    continue
                pauses.reset()
                finished[chunk.index] = done
                self._on_chunk(done)
                chunk = None
        except BaseException:
            self._failed.set()
            raise
        finally:
            self._close(reader, control)

    def _known(self, raised: Exception, pauses: Backoff) -> EtlError:
        """The error in our own vocabulary; what is nobody's is tried again, as in the stream."""
        if isinstance(raised, psycopg.Error):
            return translate(raised, "copying")
        return of_destination(raised, self._destination.name, pauses.attempt, _log)

    def _connect(self) -> tuple[psycopg.Connection, ChunkReader]:
        name = f"etl_dagster copy {self._config.pipeline} {self._table.schema.id}"
        control = connect(self._config.source, application_name=name)
        try:
            reader = ChunkReader(
                self._config.source,
                self._table.schema,
                row_filter=self._table.row_filter,
                snapshot_name=self._snapshot_name,
                application_name=name,
                encoding=stored_encoding(control),
                shape=OddPolicies(self._config).copied(self._table.schema),
            )
        except BaseException:
            control.close()
            raise
        self._readers.add(reader)
        return control, reader

    def _close(self, reader: ChunkReader | None, control: psycopg.Connection | None) -> None:
        if reader is not None:
            self._readers.discard(reader)
            reader.close()
        if control is not None:
            control.close()

    def _copy(
        self, chunk: CopyChunk, reader: ChunkReader, control: psycopg.Connection
    ) -> FinishedChunk:
        started = time.monotonic()
        reader.replaced.clear()
        source = fetch_read_from(control, self._table.schema.id, chunk.relation_id)
        counted = _Counted(
            reader.read(chunk, source) if source else iter(()),
            self._stop,
            lambda rows: self._meter.read(self._table.schema.id, chunk.index, rows),
        )
        rows = TableRows(
            self._plan.copy_id,
            counted,
            ChunkId(self._plan.copy_id, chunk.index),
            replay_from=self._plan.slot_lsn,
        )
        wait_durable(self._destination.write_table_rows(self._table.schema, rows), self._stop)
        # Whoever writes the rows anew waits for our reading to end, so asking afterwards is enough.
        if chunk.file_node and fetch_file_node(control, chunk.relation_id) != chunk.file_node:
            raise TableRewritten(f"{self._table.schema.name} was rewritten while it was copied")
        done = FinishedChunk(
            chunk.index,
            counted.row_count,
            counted.byte_count,
            fetch_insert_lsn(control),
            time.monotonic() - started,
        )
        # Before it counts as finished: a chunk that is copied once more is counted once.
        table_id = self._table.schema.id
        self._odd.add_chunk(table_id, self._plan.slot_lsn, chunk.index, reader.replaced)
        self._store.finish_chunk(table_id, self._plan.copy_id, done)
        log_odd(self._table.schema, reader.replaced)
        return done


class _Counted:
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
