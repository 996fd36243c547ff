"""Tables that are files in a bucket or folder, each of them a log that is only added to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.dlt.entries import Identity, copied_rows
from etl_dagster.destinations.dlt.lane import Lane, LoadPart
from etl_dagster.destinations.dlt.ledger import TableEntry
from etl_dagster.destinations.dlt.rows import TOKEN, LoadedTable
from etl_dagster.destinations.dlt.unfinished import files_of
from etl_dagster.model.position import Position


class FilesPlace:
    """Plain Parquet files. Those of an incomplete package are removed before the next one is
    loaded, so a log never has a change twice. Only what a copy has collected is read back.
    """

    def fetch(
        self, lane: Lane, shape: LoadedTable, columns: Sequence[str], keys: pa.RecordBatch
    ) -> pa.RecordBatch:
        return nothing_for_each(shape, columns, keys)

    def newest(
        self,
        lane: Lane,
        shape: LoadedTable,
        columns: Sequence[str],
        keys: pa.RecordBatch,
        before: Position,
    ) -> pa.RecordBatch:
        return nothing_for_each(shape, columns, keys)

    def require_replaceable(self, lane: Lane, shape: LoadedTable) -> None:
        return

    def replace(self, lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry) -> None:
        raise NotImplementedError("tables that are only added to have no other mode than append")

    def extend(
        self, lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry, at: CopyMoment
    ) -> None:
        """Load the rows, and that the copy is complete, in one package."""
        table_id = shape.source.id
        rows: Any = ()
        if not self._has_copy(lane, shape, at):
            rows = self._collected(lane, shape, copy, entry, at)
        whole = LoadPart(table_id, shape.name, "append", shape.whole, rows)
        lane.load([whole], {table_id: replace(entry, chunks={})})
        self.discard(lane, copy)

    def _has_copy(self, lane: Lane, shape: LoadedTable, at: CopyMoment) -> bool:
        """Whether a package that never became complete has brought the rows of the copy."""
        return False

    def _collected(
        self, lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry, at: CopyMoment
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a copy as they are in the log, read lazily."""
        tokens = list(entry.chunks.values())
        batches = lane.run("inspect a table", lambda pipeline: read_files(pipeline, copy))
        return (
            copied_rows(shape, as_held(of_chunks(batch, tokens), shape), at) for batch in batches
        )

    def newest_lsn(self, lane: Lane, shape: LoadedTable, since: int) -> int:
        return 0

    def identities(self, lane: Lane, shape: LoadedTable, first: int, last: int) -> set[Identity]:
        return set()

    def discard(self, lane: Lane, name: str) -> None:
        def drop(pipeline: Any) -> None:
            with pipeline.destination_client() as client:
                if client.is_storage_initialized() and files_of(client, name):
                    client.drop_tables(name, delete_schema=True)

        lane.run("drop a table", drop)


def read_files(pipeline: Any, name: str) -> Iterator[pa.RecordBatch]:
    """The rows of a table's files, one batch after the other."""
    with pipeline.destination_client() as client:
        files, paths = client.fs_client, files_of(client, name)
    return _batches(files, paths)


def _batches(files: Any, paths: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with files.open(path, "rb") as file:
            yield from pq.ParquetFile(file).iter_batches()


def of_chunks(batch: pa.RecordBatch, tokens: Sequence[str]) -> pa.RecordBatch:
    """Those of a copy's collected rows that count: they have one of the tokens."""
    compute: Any = pc
    counts = compute.is_in(batch[TOKEN].cast(pa.string()), pa.array(tokens, pa.string()))
    return batch.filter(counts).select([n for n in batch.schema.names if n != TOKEN])


def as_held(batch: pa.RecordBatch, shape: LoadedTable) -> pa.RecordBatch:
    """Rows that were read back, with the types that they were loaded with."""
    names = [name for name in batch.schema.names if name in shape.whole.names]
    fields = [shape.whole.field(name) for name in names]
    arrays = [batch[field.name].cast(field.type) for field in fields]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def nothing_for_each(
    shape: LoadedTable, columns: Sequence[str], keys: pa.RecordBatch
) -> pa.RecordBatch:
    """A null for each key and column."""
    fields = [shape.arrow.field(name) for name in columns]
    arrays = [pa.nulls(keys.num_rows, field.type) for field in fields]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
