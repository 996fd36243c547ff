"""The rows of a table on both sides, each with the hash of its key and that of the whole."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import pyarrow as pa

from etl_dagster.config import PipelineConfig
from etl_dagster.model.destination import HashesRows, ReadsRows, offered
from etl_dagster.model.events import CopiedRows
from etl_dagster.runtime.comparing.source_rows import read_source
from etl_dagster.runtime.copy_source import CopySource
from etl_dagster.runtime.durable import Stopped
from etl_dagster.shaping.rows import Shaper
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.source.control import SourceControl
from etl_dagster.values.digest import Hashes, RowHashes, hash_rows

Side: TypeAlias = Literal["source", "destination"]
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Hashed:
    """Some rows of one side; all of the same length."""

    keys: Hashes
    hashes: Hashes
    #: Of the source as the destination is given them, of the destination as it gives them back.
    rows: CopiedRows

    @property
    def row_hashes(self) -> RowHashes:
        return RowHashes(self.keys, self.hashes)


class Sides:
    """Reads either side as often as one likes; belongs to one thread.

    Both are hashed by the same code, and the source's rows come by the decoding and shaping of a
    copy, so no two databases have to print or to hash a value in the same way.

    Args:
        table: as it is published, with the schema that the store has of it.
        on_rows: called with a side and how many of its rows were read since the last call.
    """

    def __init__(
        self,
        config: PipelineConfig,
        control: SourceControl,
        source: CopySource,
        destination: ReadsRows,
        table: PublishedTable,
        *,
        stop: threading.Event,
        on_rows: Callable[[Side, int], None] = lambda side, count: None,
    ) -> None:
        self._config = config
        self._control = control
        self._source = source
        self._destination = destination
        self._hashing = offered(destination, HashesRows)
        self._table = table
        self._stop = stop
        self._on_rows = on_rows
        schema = table.schema
        salt = None if config.salt is None else config.salt.get_secret_value().encode()
        self.shaper = None if schema.shape is None else Shaper(schema, salt)
        #: The table as the destination has it.
        self.target = schema if self.shaper is None else self.shaper.target

    def source(self, snapshot_name: str) -> Iterator[Hashed]:
        """The source's rows under a snapshot."""
        arriving = read_source(
            self._config,
            self._control,
            self._source,
            self._table,
            self._hashed_source,
            snapshot_name=snapshot_name,
            stop=self._stop,
        )
        with contextlib.closing(arriving):  # type: ignore[type-var]
            for each in arriving:
                if len(each.keys):
                    yield each
                self._on_rows("source", len(each.keys))

    def destination(self) -> Iterator[Hashed]:
        """The rows that the destination has now."""
        with self._destination.read_rows(self.target) as batches:
            for batch in self._counted(batches, lambda batch: batch.num_rows):
                yield self._hashed(batch, CopiedRows(batch))

    def destination_hashes(self) -> Iterator[RowHashes]:
        """Hashes of the rows that the destination has now, without the rows."""
        if self._hashing is None:
            for each in self.destination():
                yield each.row_hashes
            return
        with self._hashing.read_hashes(self.target) as found:
            yield from self._counted(found, lambda hashes: len(hashes.rows))

    def _counted(self, found: Iterator[_Read], count: Callable[[_Read], int]) -> Iterator[_Read]:
        for each in found:
            if self._stop.is_set():
                raise Stopped
            if number := count(each):
                yield each
            self._on_rows("destination", number)

    def hash_keys(self, rows: pa.RecordBatch) -> Hashes:
        """The hashes of the keys of rows that the destination is to be given."""
        if self._hashing is not None:
            return self._hashing.hash_rows(self.target, rows).keys
        read = self._destination.as_read(self.target, rows)
        return hash_rows(read, self.target.key_columns or self.target.column_names)

    def _hashed_source(self, rows: CopiedRows) -> Hashed:
        """From any thread."""
        if self.shaper is not None:
            self.shaper.require_salt()
            rows = self.shaper.copied(rows)
        if self._hashing is not None:
            return Hashed(*self._hashing.hash_rows(self.target, rows.rows), rows)
        return self._hashed(self._destination.as_read(self.target, rows.rows), rows)

    def _hashed(self, read: pa.RecordBatch, rows: CopiedRows) -> Hashed:
        if self._hashing is not None:
            return Hashed(*self._hashing.hash_rows(self.target, read, are_read=True), rows)
        whole = hash_rows(read, self.target.column_names)
        keys = self.target.key_columns
        return Hashed(hash_rows(read, keys) if keys else whole, whole, rows)
