"""The copy of one table: its chunks, several at a time, each durable before it is recorded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import psycopg

from etl_dagster.backoff import Backoff
from etl_dagster.errors import EtlError, LeaseLost, TableRewritten
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.coordination import CopyChunk, CopyPlan, FinishedChunk
from etl_dagster.model.events import TableRows
from etl_dagster.runtime.copy_source import CopySource, ReadsChunks
from etl_dagster.runtime.copying.chunk_copy import ChunkCopy
from etl_dagster.runtime.copying.chunk_queue import ChunkQueue, OwnChunks
from etl_dagster.runtime.durable import Stopped, wait_durable
from etl_dagster.runtime.failures import of_destination
from etl_dagster.runtime.retry import backoff
from etl_dagster.runtime.showing.metrics import CopyMeter
from etl_dagster.runtime.tables.odd_policies import OddPolicies
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.source.connection import translate

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
        parts: WorkerParts,
        source: CopySource,
        table: PublishedTable,
        plan: CopyPlan,
        *,
        snapshot_name: str | None,
        on_chunk: Callable[[FinishedChunk], None],
        watch: Callable[[], None] = lambda: None,
        meter: CopyMeter | None = None,
        queue: ChunkQueue | None = None,
    ) -> None:
        """Args:
        watch: called all the time while rows are copied; raises where that is useless.
        queue: gives the chunks out; by default all of them to this process.
        """
        self._config = parts.config
        self._destination = parts.destination
        self._stop = parts.stop
        self._clock = parts.clock
        self._source = source
        self._table = table
        self._plan = plan
        self._snapshot_name = snapshot_name
        self._on_chunk = on_chunk
        self._watch = watch
        self._meter = meter or CopyMeter()
        self._shape = OddPolicies(parts.config).copied
        self._memory = parts.memory
        self._chunks = ChunkCopy(parts, table.schema, plan, self._meter)
        self._queue = queue or OwnChunks(plan)
        #: Set when one worker failed: the others end after their chunk.
        self._failed = threading.Event()
        self._readers: set[ReadsChunks] = set()

    def run(self) -> CopySummary:
        """Copy until every chunk is durable, and finish the copy at the destination.

        Raises:
            Stopped: told to stop; finished chunks are recorded.
            EtlError: what the source, the store or the destination failed with.
        """
        self.copy_chunks()
        self._finish()
        return CopySummary.of(self._plan, self._queue.finished)

    def copy_chunks(self) -> None:
        """Copy until no chunk is left for this process.

        Raises: as `run`.
        """
        self._meter.begin(self._table.schema.id)
        workers = min(self._config.copy_tables.max_connections_per_table, len(self._plan.remaining))
        if not workers:
            return
        with ThreadPoolExecutor(workers, f"copy {self._table.schema.name}") as pool:
            jobs = [pool.submit(self._work) for _ in range(workers)]
            in_vain: EtlError | None = None
            while wait(jobs, timeout=_STOP_POLL_S).not_done:
                if self._stop.is_set() or in_vain is not None:
                    self._cancel_reading()
                    continue
                try:
                    self._watch()
                except EtlError as found:
                    in_vain = found
                    self._failed.set()
        if in_vain is not None and not self._stop.is_set():
            raise in_vain
        failures = [error for job in jobs if (error := job.exception()) is not None]
        if failures:
            # What a worker failed with says more than that the others then stopped.
            raise next((e for e in failures if not isinstance(e, Stopped)), failures[0])

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

    def _work(self) -> None:
        pauses = backoff(self._config.retry)
        reader: ReadsChunks | None = None
        chunk: CopyChunk | None = None
        try:
            while True:
                if self._is_over():
                    raise Stopped
                try:
                    if chunk is None and (chunk := self._queue.take(self._is_over)) is None:
                        return
                    with self._memory.chunk(self._stop):
                        if reader is None:
                            reader = self._connect()
                        done = self._chunks.copy(chunk, reader)
                except (Stopped, LeaseLost):
                    raise
                except Exception as raised:
                    if self._is_over():
                        raise Stopped from None
                    error = self._known(raised, pauses)
                    # A snapshot ends with the connection that exported it; only a new copy helps.
                    is_lost = self._snapshot_name is not None or isinstance(error, TableRewritten)
                    if not error.retryable or is_lost or pauses.is_exhausted:
                        raise error from error.__cause__
                    delay_s = pauses.next_delay_s()
                    _log.warning(
                        "%s of %s failed (%s); again in %.1f s",
                        "the search for chunks" if chunk is None else f"chunk {chunk.index}",
                        self._table.schema.name,
                        error.reason,
                        delay_s,
                    )
                    self._close(reader)
                    reader = None
                    self._clock.wait(self._stop, delay_s)
                    continue
                pauses.reset()
                self._queue.done(done)
                chunk = None
                self._on_chunk(done)
        except BaseException:
            self._failed.set()
            raise
        finally:
            if chunk is not None:
                self._queue.put_back(chunk)
            self._close(reader)

    def _is_over(self) -> bool:
        return self._stop.is_set() or self._failed.is_set()

    def _known(self, raised: Exception, pauses: Backoff) -> EtlError:
        """The error as one of ours; an unknown one is tried again, as in the stream."""
        if isinstance(raised, psycopg.Error):
            return translate(raised, "copying")
        return of_destination(raised, self._destination.name, pauses.attempt, _log)

    def _connect(self) -> ReadsChunks:
        reader = self._source.open_reader(
            self._table, self._shape(self._table.schema), snapshot_name=self._snapshot_name
        )
        self._readers.add(reader)
        return reader

    def _close(self, reader: ReadsChunks | None) -> None:
        if reader is not None:
            self._readers.discard(reader)
            reader.close()
