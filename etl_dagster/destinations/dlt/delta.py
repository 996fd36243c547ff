"""Delta tables: what a load package can't do is done with the table itself, as dlt opens it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import and_
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.destinations.dlt.lane import Lane, Part
from etl_dagster.destinations.dlt.ledger import TableEntry
from etl_dagster.destinations.dlt.places import row_for_each, tuples_of
from etl_dagster.destinations.dlt.rows import DELETED, TOKEN, TableShape, with_constant

#: Keys in one filter.
_KEYS: Final = 500


class DeltaPlace:
    """Tables in a bucket or folder. A copy becomes its table in one commit of the table's log."""

    def fetch(
        self, lane: Lane, shape: TableShape, columns: Sequence[str], keys: pa.RecordBatch
    ) -> pa.RecordBatch:
        def read(pipeline: Any) -> list[Sequence[Any]]:
            table = _open(pipeline, shape.name)
            if table is None:
                return []
            rows = table.to_pyarrow_dataset()
            found: list[Sequence[Any]] = []
            for start in range(0, keys.num_rows, _KEYS):
                some = keys.slice(start, _KEYS)
                is_wanted = reduce(and_, (pc.field(there).isin(some[name]) for name, there in key))
                for batch in rows.to_table([*shape.key, *columns], is_wanted).to_batches():
                    found += tuples_of(_as_held(batch, shape))
            return found

        key = [(name, shape.there[name]) for name in shape.source.key_columns]
        return row_for_each(shape, tuples_of(keys), columns, lane.run("read rows back", read))

    def replace(self, lane: Lane, shape: TableShape, copy: str, entry: TableEntry) -> None:
        tokens = pa.array(list(entry.chunks.values()), pa.string())
        if lane.run("look at a table", lambda pipeline: _is_other(pipeline, shape)):
            self.discard(lane, shape.name)
        collected = lane.run("look at a table", lambda pipeline: _open(pipeline, copy))

        def batches() -> Iterator[pa.RecordBatch]:
            if collected is None:
                return
            counts = pc.field(TOKEN).isin(tokens)
            for batch in collected.to_pyarrow_dataset().to_batches(
                columns=list(shape.columns), filter=counts
            ):
                rows = _as_held(batch, shape)
                yield with_constant(rows, shape.merged, None) if shape.key else rows

        table_id = shape.source.id
        whole = Part(table_id, shape.name, "replace", shape.merged, batches(), shape.key)
        lane.load([whole], {table_id: replace(entry, chunks={})})
        self.discard(lane, copy)

    def discard(self, lane: Lane, name: str) -> None:
        def drop(pipeline: Any) -> None:
            if _open(pipeline, name) is not None:
                with pipeline.destination_client() as client:
                    client.drop_tables(name, delete_schema=True)

        lane.run("drop a table", drop)


def _open(pipeline: Any, name: str) -> Any:
    """The table, or None while there is none."""
    from deltalake import DeltaTable
    from dlt.common.libs.deltalake import deltalake_storage_options

    with pipeline.destination_client() as client:
        options = deltalake_storage_options(
            client.config.credentials, client.config.deltalake_storage_options
        )
        place = client.get_open_table_location("delta", name)
        if not DeltaTable.is_deltatable(place, options):
            return None
        return DeltaTable(place, storage_options=options)


def _is_other(pipeline: Any, shape: TableShape) -> bool:
    """Whether the table has other columns than the new copy."""
    from dlt.common.libs.deltalake import ensure_delta_compatible_arrow_schema

    table = _open(pipeline, shape.name)
    if table is None:
        return False
    held = pa.schema(table.schema().to_arrow())
    wanted = ensure_delta_compatible_arrow_schema(shape.arrow)
    have = {field.name: _family(field.type) for field in held if field.name != DELETED}
    return have != {field.name: _family(field.type) for field in wanted}


def _family(kind: pa.DataType) -> str:
    """A type without what only says how it is laid out in memory."""
    return str(kind).removeprefix("large_").removesuffix("_view")


def _as_held(batch: pa.RecordBatch, shape: TableShape) -> pa.RecordBatch:
    fields = [shape.arrow.field(name) for name in batch.schema.names]
    arrays = [column.cast(field.type) for column, field in zip(batch.columns, fields, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
