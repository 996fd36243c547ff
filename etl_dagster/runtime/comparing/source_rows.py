"""Reads all rows of one table from the source, with a few connections under one snapshot."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import TableRewritten
from etl_dagster.model.coordination import CopyChunk
from etl_dagster.model.events import CopiedRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.read_ahead import ReadAhead
from etl_dagster.runtime.copy_source import CopySource, ReadsChunks
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.tables.odd_policies import OddPolicies
from etl_dagster.source.catalog import PublishedTable, fetch_leaves
from etl_dagster.source.connection import translate
from etl_dagster.source.control import SourceControl
from etl_dagster.source.copy import plan_chunks

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
    schema = table.schema

    @contextlib.contextmanager
    def opened() -> Iterator[_Chunks[_Made]]:
        shape = OddPolicies(config).copied(schema)
        reader = source.open_reader(table, shape, snapshot_name=snapshot_name)
        try:
            yield _Chunks(reader, schema, make)
        finally:
            reader.close()

    def require_wanted() -> None:
        if stop.is_set():
            raise Stopped

    leaves = control.ask("reading the table's size", fetch_leaves, schema.id)
    reading = ReadAhead(
        plan_chunks(leaves, config.copy_tables.chunk_rows),
        opened,
        count=config.repair.max_connections,
        name=f"compare {schema.name}",
        require_wanted=require_wanted,
    )
    try:
        yield from reading.made()
    except psycopg.Error as error:
        raise translate(error, "reading rows") from None


class _Chunks(Generic[_Made]):
    """Reads chunks with one reader."""

    def __init__(
        self, reader: ReadsChunks, schema: TableSchema, make: Callable[[CopiedRows], _Made]
    ) -> None:
        self._reader = reader
        self._schema = schema
        self._make = make

    def read(self, chunk: CopyChunk) -> Generator[_Made, None, None]:
        for rows in self._reader.read(chunk):
            yield self._make(rows)
        file_node = chunk.file_node
        if file_node and self._reader.file_node(chunk.relation_id) != file_node:
            raise TableRewritten(f"{self._schema.name} was rewritten while it was compared")

    def cancel(self) -> None:
        self._reader.cancel()
