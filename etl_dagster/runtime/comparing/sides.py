"""The rows of a table on both sides, each with the hash of its key and that of the whole."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import pyarrow as pa

from etl_dagster.config import PipelineConfig
from etl_dagster.model.destination import ReadsRows
from etl_dagster.model.events import CopiedRows
from etl_dagster.runtime.comparing.source_rows import read_source
from etl_dagster.runtime.copy_source import CopySource
from etl_dagster.runtime.durable import Stopped
from etl_dagster.shaping.rows import Shaper
from etl_dagster.source.catalog import PublishedTable
from etl_dagster.source.control import SourceControl
from etl_dagster.values.digest import Hashes, hash_rows

Side: TypeAlias = Literal["source", "destination"]


@dataclass(frozen=True, slots=True)
class Hashed:
    """Some rows of one side; all of the same length."""

    keys: Hashes
    hashes: Hashes
    #: Of the source as the destination is given them, of the destination as it gives them back.
    rows: CopiedRows


class Sides:
    """Reads either side as often as one likes; belongs to one thread.

    Both are Arrow in this process, by the decoding and shaping of a copy, so no two databases have
    to print or to hash a value in the same way.

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
            snapshot_name=snapshot_name,
            stop=self._stop,
        )
        with contextlib.closing(arriving):  # type: ignore[type-var]
            for rows in arriving:
                if self.shaper is not None:
                    self.shaper.require_salt()
                    rows = self.shaper.copied(rows)
                if rows.num_rows:
                    yield self._hashed(self._destination.as_read(self.target, rows.rows), rows)
                self._on_rows("source", rows.num_rows)

    def destination(self) -> Iterator[Hashed]:
        """The rows that the destination has now."""
        with self._destination.read_rows(self.target) as batches:
            for batch in batches:
                if self._stop.is_set():
                    raise Stopped
                if batch.num_rows:
                    yield self._hashed(batch, CopiedRows(batch))
                self._on_rows("destination", batch.num_rows)

    def hash_keys(self, rows: pa.RecordBatch) -> Hashes:
        """The hashes of the keys of rows that the destination is to be given."""
        read = self._destination.as_read(self.target, rows)
        return hash_rows(read, self.target.key_columns or self.target.column_names)

    def _hashed(self, read: pa.RecordBatch, rows: CopiedRows) -> Hashed:
        whole = hash_rows(read, self.target.column_names)
        keys = self.target.key_columns
        return Hashed(hash_rows(read, keys) if keys else whole, whole, rows)
