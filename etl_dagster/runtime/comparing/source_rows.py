"""Reads all rows of one table from the source, with a few connections under one snapshot."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import TableRewritten
from etl_dagster.model.coordination import CopyChunk
from etl_dagster.model.events import CopiedRows
from etl_dagster.runtime.copy_source import CopySource, ReadsChunks
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.tables.odd_policies import OddPolicies
from etl_dagster.source.catalog import PublishedTable, fetch_leaves
from etl_dagster.source.connection import translate
from etl_dagster.source.control import SourceControl
from etl_dagster.source.copy import plan_chunks
from etl_dagster.threads import Background

_TURN_S: Final = 0.2

_Made = TypeVar("_Made")


def read_source(
    config: PipelineConfig,
    control: SourceControl,
    source: CopySource,
    table: PublishedTable,
    make: Callable[[CopiedRows], _Made],
    *,
    snapshot_name: str,
    stop: threading.Event,
) -> Iterator[_Made]:
    """What is made of the rows, in any order; `repair.max_connections` are read at a time.

    Args:
        make: called with each batch by the thread that reads it, which is a few batches ahead.

    Raises:
        Stopped: told to stop.
        TableRewritten: its rows are at other places by now; some may have been passed over.
        EtlError: the source can't be read.
    """
    leaves = control.ask("reading the table's size", fetch_leaves, table.schema.id)
    chunks = plan_chunks(leaves, config.copy_tables.chunk_rows)
    count = max(min(config.repair.max_connections, len(chunks)), 1)
    reading = _Reading(config, source, table, make, chunks, snapshot_name, count)
    try:
        yield from reading.made(stop)
    except psycopg.Error as error:
        raise translate(error, "reading rows") from None
    finally:
        reading.end()


class _Reading(Generic[_Made]):
    """Threads that read chunks, and the queue in which what they make of the rows arrives."""

    def __init__(
        self,
        config: PipelineConfig,
        source: CopySource,
        table: PublishedTable,
        make: Callable[[CopiedRows], _Made],
        chunks: Sequence[CopyChunk],
        snapshot_name: str,
        count: int,
    ) -> None:
        self._config = config
        self._source = source
        self._table = table
        self._make = make
        self._snapshot_name = snapshot_name
        self._todo: queue.SimpleQueue[CopyChunk] = queue.SimpleQueue()
        for chunk in chunks:
            self._todo.put(chunk)
        #: None: a thread has read all there was.
        self._arrived: queue.Queue[_Made | BaseException | None] = queue.Queue(2 * count)
        self._over = threading.Event()
        self._readers: set[ReadsChunks] = set()
        name = f"compare {table.schema.name}"
        self._threads = [Background(self._work, name=name) for _ in range(count)]

    def made(self, stop: threading.Event) -> Iterator[_Made]:
        for thread in self._threads:
            thread.start()
        left = len(self._threads)
        while left:
            if stop.is_set():
                raise Stopped
            try:
                item = self._arrived.get(timeout=_TURN_S)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item

    def end(self) -> None:
        """Wait until no thread reads any more; what is under way is cancelled."""
        self._over.set()
        for reader in list(self._readers):
            with contextlib.suppress(Exception):
                reader.cancel()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _work(self) -> None:
        try:
            self._read()
        except BaseException as error:
            self._put(error)
        else:
            self._put(None)

    def _read(self) -> None:
        schema = self._table.schema
        shape = OddPolicies(self._config).copied(schema)
        reader = self._source.open_reader(self._table, shape, snapshot_name=self._snapshot_name)
        self._readers.add(reader)
        try:
            while not self._over.is_set():
                try:
                    chunk = self._todo.get_nowait()
                except queue.Empty:
                    return
                for rows in reader.read(chunk):
                    self._put(self._make(rows))
                    if self._over.is_set():
                        return
                if chunk.file_node and reader.file_node(chunk.relation_id) != chunk.file_node:
                    raise TableRewritten(f"{schema.name} was rewritten while it was compared")
        finally:
            self._readers.discard(reader)
            reader.close()

    def _put(self, item: _Made | BaseException | None) -> None:
        while not self._over.is_set():
            with contextlib.suppress(queue.Full):
                self._arrived.put(item, timeout=_TURN_S)
                return
