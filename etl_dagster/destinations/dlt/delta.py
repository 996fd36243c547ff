"""Delta tables. What a load package can't do is done with the table itself, opened as dlt does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import and_
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.dlt.entries import (
    IDENTITY,
    Identity,
    copied_rows,
    identities_in,
    largest_lsn,
)
from etl_dagster.destinations.dlt.files import FilesPlace, as_held
from etl_dagster.destinations.dlt.lane import Lane, LoadPart
from etl_dagster.destinations.dlt.ledger import TableEntry
from etl_dagster.destinations.dlt.places import (
    has_other_types,
    holds_log,
    row_for_each,
    tuples_of,
)
from etl_dagster.destinations.dlt.rows import DELETED, LOGGED, TOKEN, LoadedTable, with_constant
from etl_dagster.model.position import Position

#: Keys in one filter.
_KEYS: Final = 500
_OP, _LSN, _ORDINAL = LOGGED.names[:3]


class DeltaPlace(FilesPlace):
    """Tables in a bucket or folder. A copy becomes its table in one commit of the table's log."""

    def fetch(
        self, lane: Lane, shape: LoadedTable, columns: Sequence[str], keys: pa.RecordBatch
    ) -> pa.RecordBatch:
        def read(pipeline: Any) -> list[Sequence[Any]]:
            table = _open(pipeline, shape.name)
            if table is None:
                return []
            rows = table.to_pyarrow_dataset()
            found: list[Sequence[Any]] = []
            for is_wanted in _by_key(shape, keys):
                for batch in rows.to_table([*shape.key, *columns], is_wanted).to_batches():
                    found += tuples_of(as_held(batch, shape))
            return found

        return row_for_each(shape, tuples_of(keys), columns, lane.run("read rows back", read))

    def replace(self, lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry) -> None:
        if lane.run("inspect a table", lambda pipeline: _is_other(pipeline, shape)):
            self.discard(lane, shape.name)
        copied = self._copied(lane, shape, copy, entry)
        batches = (with_constant(rows, shape.whole, None) if shape.key else rows for rows in copied)
        table_id = shape.source.id
        whole = LoadPart(table_id, shape.name, "replace", shape.whole, batches, shape.key)
        lane.load([whole], {table_id: replace(entry, chunks={})})
        self.discard(lane, copy)

    def require_replaceable(self, lane: Lane, shape: LoadedTable) -> None:
        if not shape.is_log and _OP in lane.run("inspect a table", lambda p: _held(p, shape)):
            raise holds_log(shape)

    def extend(
        self, lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry, at: CopyMoment
    ) -> None:
        held = lane.run("inspect a table", lambda pipeline: _held(pipeline, shape))
        if held and _OP not in held:
            self.discard(lane, shape.name)
        else:
            require_same_types(shape, held, ensure_delta(shape.whole))
        super().extend(lane, shape, copy, entry, at)

    def _has_copy(self, lane: Lane, shape: LoadedTable, at: CopyMoment) -> bool:
        is_of_copy = (pc.field(_OP) == "copy") & (pc.field(_LSN) == at.lsn)
        return bool(self._read(lane, shape, [_LSN], is_of_copy).num_rows)

    def _collected(
        self, lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry, at: CopyMoment
    ) -> Iterator[pa.RecordBatch]:
        rows = self._copied(lane, shape, copy, entry)
        return (copied_rows(shape, batch, at) for batch in rows)

    @staticmethod
    def _copied(
        lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry
    ) -> Iterator[pa.RecordBatch]:
        tokens = pa.array(list(entry.chunks.values()), pa.string())
        collected = lane.run("inspect a table", lambda pipeline: _open(pipeline, copy))
        if collected is None:
            return iter(())
        batches = collected.to_pyarrow_dataset().to_batches(
            columns=list(shape.columns), filter=pc.field(TOKEN).isin(tokens)
        )
        return (as_held(batch, shape) for batch in batches)

    def newest(
        self,
        lane: Lane,
        shape: LoadedTable,
        columns: Sequence[str],
        keys: pa.RecordBatch,
        before: Position,
    ) -> pa.RecordBatch:
        lsn, ordinal, op = (pc.field(name) for name in (_LSN, _ORDINAL, _OP))
        place = before.commit_lsn.offset
        is_before = (lsn < place) | ((lsn == place) & (ordinal < before.ordinal))
        names = [*shape.key, *columns]
        found: list[Sequence[Any]] = []
        for is_wanted in _by_key(shape, keys):
            is_entry = is_wanted & is_before & (op != "truncate")
            rows = self._read(lane, shape, [*names, _OP, _LSN, _ORDINAL], is_entry)
            ordered = rows.sort_by([(_LSN, "ascending"), (_ORDINAL, "ascending")])
            for batch in ordered.combine_chunks().to_batches():
                values = tuples_of(as_held(batch.select(names), shape))
                ops: list[Any] = batch[_OP].to_pylist()
                nothing = (None,) * len(columns)
                found += [
                    (*row[: len(shape.key)], *nothing) if op == "delete" else row
                    for row, op in zip(values, ops, strict=True)
                ]
        # Of a key with several rows, the last one counts.
        return row_for_each(shape, tuples_of(keys), columns, found)

    def newest_lsn(self, lane: Lane, shape: LoadedTable, since: int) -> int:
        held = lane.run("inspect a table", lambda pipeline: _held(pipeline, shape))
        if _OP not in held:
            return 0
        is_change = (pc.field(_LSN) >= since) & (pc.field(_OP) != "copy")
        found = self._read(lane, shape, [_LSN], is_change)
        return largest_lsn(found)

    def identities(self, lane: Lane, shape: LoadedTable, first: int, last: int) -> set[Identity]:
        lsn = pc.field(_LSN)
        is_change = (lsn >= first) & (lsn <= last) & (pc.field(_OP) != "copy")
        found = self._read(lane, shape, list(IDENTITY), is_change)
        return identities_in(found)

    @staticmethod
    def _read(lane: Lane, shape: LoadedTable, columns: Sequence[str], condition: Any) -> pa.Table:
        def read(pipeline: Any) -> Any:
            table = _open(pipeline, shape.name)
            if table is None:
                return shape.whole.empty_table().select(list(columns))
            return table.to_pyarrow_dataset().to_table(list(columns), filter=condition)

        found: pa.Table = lane.run("read what is logged", read)
        return found

    def discard(self, lane: Lane, name: str) -> None:
        def drop(pipeline: Any) -> None:
            if _open(pipeline, name) is not None:
                with pipeline.destination_client() as client:
                    client.drop_tables(name, delete_schema=True)

        lane.run("drop a table", drop)


def _by_key(shape: LoadedTable, keys: pa.RecordBatch) -> Iterator[Any]:
    """Conditions that all rows with some of the keys meet, and few others."""
    names = [(name, shape.loaded_name[name]) for name in shape.source.key_columns]
    for start in range(0, keys.num_rows, _KEYS):
        some = keys.slice(start, _KEYS)
        yield reduce(and_, (pc.field(there).isin(some[name]) for name, there in names))


def _held(pipeline: Any, shape: LoadedTable) -> dict[str, pa.DataType]:
    """The types of a table's columns by name; empty if there is no table."""
    table = _open(pipeline, shape.name)
    if table is None:
        return {}
    return {field.name: field.type for field in pa.schema(table.schema().to_arrow())}


def ensure_delta(schema: pa.Schema) -> pa.Schema:
    """The schema that a Delta table has for this one."""
    from dlt.common.libs.deltalake import ensure_delta_compatible_arrow_schema

    found: pa.Schema = ensure_delta_compatible_arrow_schema(schema)
    return found


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


def _is_other(pipeline: Any, shape: LoadedTable) -> bool:
    """Whether the table has other columns than the new copy."""
    held = _held(pipeline, shape)
    if not held:
        return False
    have = {name: _family(kind) for name, kind in held.items() if name != DELETED}
    return have != {field.name: _family(field.type) for field in ensure_delta(shape.arrow)}


def require_same_types(
    shape: LoadedTable, held: Mapping[str, pa.DataType], wanted: pa.Schema
) -> None:
    """Refuse new rows for a log whose columns have other types.

    Raises:
        TableWriteFailed: some have.
    """
    other = [
        field.name
        for field in wanted
        if field.name in held and _family(held[field.name]) != _family(field.type)
    ]
    if other:
        raise has_other_types(shape, other)


def _family(kind: pa.DataType) -> str:
    """A type's name without its layout in memory: `string` of a `large_string`, too."""
    return str(kind).removeprefix("large_").removesuffix("_view")
