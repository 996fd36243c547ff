"""Copies of tables: chunks are collected in a table of their own, which then becomes the table.

So the old rows stay until the new ones are complete, and rows that a chunk's failed attempt left
behind are distinguished from those that count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.dlt.lane import Lane, LoadPart
from etl_dagster.destinations.dlt.ledger import TableEntry
from etl_dagster.destinations.dlt.rows import LoadedTable, with_constant
from etl_dagster.model.events import ChunkId, CopiedRows, TableRows

if TYPE_CHECKING:
    from etl_dagster.destinations.dlt.places import Place


class ChunkFile:
    """A chunk's rows in a file, so that the source is read while another chunk is loaded."""

    def __init__(self, folder: Path, shape: LoadedTable, token: str) -> None:
        self.shape = shape
        self.token = token
        self._path = folder / f"{token}.parquet"
        self.has_rows = False

    def fill(self, pieces: Iterable[CopiedRows]) -> None:
        """Read the source to its end. If it fails, its error is raised and no file is left."""
        schema = self.shape.collected
        # It may be gone, as in `Lane`.
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with pq.ParquetWriter(self._path, schema) as writer:
                for piece in pieces:
                    rows = with_constant(self.shape.rows(piece.rows), schema, self.token)
                    writer.write_batch(rows)
                    self.has_rows |= rows.num_rows > 0
        except BaseException:
            self.remove()
            raise

    def batches(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches():
                yield batch.cast(self.shape.collected)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def load_chunk(place: Place, lane: Lane, copy_id: str, chunk: ChunkId, spool: ChunkFile) -> None:
    """Add a chunk to what is collected of its copy, unless it is there already."""
    shape = spool.shape
    table_id = shape.source.id
    collected = collected_in(shape)
    try:
        entry = lane.entry(table_id)
        if entry.copy_id == copy_id and (entry.is_complete or chunk.index in entry.chunks):
            return
        if entry.copy_id != copy_id or not entry.chunks:
            place.require_replaceable(lane, shape)
            place.discard(lane, collected)
        if entry.copy_id != copy_id:
            entry = TableEntry(copy_id=copy_id)
        chunks = {**entry.chunks, chunk.index: spool.token}
        batches = spool.batches() if spool.has_rows else ()
        parts = [
            LoadPart(table_id, collected, "append", shape.collected, batches, is_collected=True)
        ]
        if not entry.chunks and not shape.is_log:
            parts.append(LoadPart(table_id, shape.name, "append", shape.whole, (), shape.key))
        lane.load(parts, {table_id: replace(entry, chunks=chunks)})
    finally:
        spool.remove()


def end_of_copy(place: Place, lane: Lane, shape: LoadedTable, rows: TableRows) -> None:
    """Make the table hold what was collected, unless it does already.

    Raises:
        TableWriteFailed: what the table holds can be neither kept nor replaced.
    """
    table_id = shape.source.id
    entry = lane.entry(table_id)
    if entry.copy_id == rows.copy_id and entry.is_complete:
        return
    chunks = entry.chunks if entry.copy_id == rows.copy_id else {}
    moment = CopyMoment.of(rows)
    done = TableEntry(
        position=moment.position,
        copy_id=rows.copy_id,
        is_complete=True,
        chunks=chunks,
    )
    place.require_replaceable(lane, shape)
    if shape.is_log:
        place.extend(lane, shape, collected_in(shape), done, moment)
    else:
        place.replace(lane, shape, collected_in(shape), done)


def collected_in(shape: LoadedTable) -> str:
    """The name of the table that copies of a table are collected in."""
    return f"_etl_copy_{shape.source.id}"
