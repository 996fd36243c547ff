"""Turns the changes of each table into parts of load packages, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed, collapse, concat_rows, key_ids
from etl_dagster.destinations.dlt.evolution import dropped_after
from etl_dagster.destinations.dlt.lane import Disposition, LoadPart
from etl_dagster.destinations.dlt.ledger import TableEntry
from etl_dagster.destinations.dlt.log import Log
from etl_dagster.destinations.dlt.rows import LoadedTable, with_deletes
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.events import (
    INSERT,
    RelationEvent,
    TableChanges,
    TableStep,
    TruncateEvent,
    steps_after,
)
from etl_dagster.model.position import POSITION_ZERO
from etl_dagster.model.schema import TableSchema

#: Fetches some columns of the rows with the given keys, as the destination has them.
Fetch = Callable[[LoadedTable, Sequence[str], pa.RecordBatch], pa.RecordBatch]


@dataclass(frozen=True)
class Round:
    """What one load package does to a table, and the table's entry in the ledger after it."""

    part: LoadPart
    entry: TableEntry


class Stretches:
    """Turns a table's steps into rounds, one for each load package.

    Args:
        shape_of: what a table looks like at the destination.
        fetch: for values that Postgres didn't send because they didn't change.
        log: makes the rows of tables in mode append.
    """

    def __init__(
        self, shape_of: Callable[[TableSchema], LoadedTable], fetch: Fetch, log: Log
    ) -> None:
        self._shape_of = shape_of
        self._fetch = fetch
        self._log = log

    def rounds(
        self, steps: Sequence[TableStep], known: TableSchema | None, entry: TableEntry
    ) -> Iterator[Round]:
        """One round for each run of steps under one schema; take the next once the last is loaded.

        Into a mirror, only the newest row of each key is loaded, and nothing from before a
        truncate. Into a log, every change is.

        Args:
            known: the schema with which the table was written last, if that is known.
            entry: the table's entry in the ledger.

        Raises:
            RowsOutdated: only a new copy can bring the table up to date.
            TableWriteFailed: a change that dlt can't make.
        """
        left = steps_after(steps, entry.position or POSITION_ZERO)
        truncates = [
            place
            for place, step in enumerate(left)
            if isinstance(step, TruncateEvent) and step.schema.mode == "mirror"
        ]
        last_truncate = truncates[-1] if truncates else -1
        emptied: LoadedTable | None = None
        for place, step in enumerate(left):
            if isinstance(step, RelationEvent) and known is None:
                known = step.previous
            shape = self._shape_of(step.schema)
            is_altered = known is not None and not known.describes_same_columns(step.schema)
            if known is not None and is_altered:
                dropped = dropped_after(self._shape_of(known), shape, entry.dropped)
                entry = replace(entry, dropped=dropped)
            known = step.schema
            match step:
                case RelationEvent():
                    if is_altered and emptied is None and place > last_truncate:
                        yield Round(self._without_rows(shape), entry)
                case TruncateEvent() if shape.is_log:
                    entry = replace(entry, position=step.position)
                    yield Round(_added(shape, self._log.truncate(shape, step)), entry)
                case TableChanges() if shape.is_log:
                    entry = replace(entry, position=step.last_position)
                    yield Round(_added(shape, self._log.entries(shape, step)), entry)
                case TruncateEvent():
                    entry = replace(entry, position=step.position)
                    emptied = shape
                case TableChanges():
                    entry = replace(entry, position=step.last_position)
                    if place > last_truncate:
                        yield Round(self._part(shape, step, emptied is not None), entry)
                        emptied = None
        if emptied is not None:
            yield Round(self._emptied(emptied), entry)

    def _without_rows(self, shape: LoadedTable) -> LoadPart:
        """Only the columns, so that queries find them before there are rows."""
        return LoadPart(shape.source.id, shape.name, "append", shape.whole, (), shape.found_by)

    def _emptied(self, shape: LoadedTable) -> LoadPart:
        return LoadPart(shape.source.id, shape.name, "replace", shape.whole, (), shape.key)

    def _part(self, shape: LoadedTable, changes: TableChanges, is_emptied: bool) -> LoadPart:
        name, table_id = shape.name, shape.source.id
        if not shape.key:
            rows = shape.rows(_only_inserts(changes).rows)
            into: Disposition = "replace" if is_emptied else "append"
            return LoadPart(table_id, name, into, shape.whole, [rows])
        result = collapse(changes, shape.source.key_columns)
        rows = shape.rows(result.rows)
        if result.unknown and not is_emptied:
            rows = self._completed(shape, result, rows)
        gone = result.removed.slice(0, 0) if is_emptied else _only_removed(shape, result)
        batches = tuple(with_deletes(shape, rows, gone))
        how: Disposition = "replace" if is_emptied else "merge"
        return LoadPart(table_id, name, how, shape.whole, batches, shape.key)

    def _completed(
        self, shape: LoadedTable, result: Collapsed, rows: pa.RecordBatch
    ) -> pa.RecordBatch:
        """The rows with the values that Postgres didn't send, as the destination has them."""
        lookup = result.lookup
        assert lookup is not None
        incomplete = np.flatnonzero(np.logical_or.reduce(list(result.unknown.values())))
        places: Any = pa.array(incomplete)
        keys: pa.RecordBatch = result.rows.select(list(shape.source.key_columns)).take(places)
        found = self._there(shape, result, lookup.take(places), keys)
        #: For each row, its place among the rows found.
        at = np.searchsorted(incomplete, np.arange(len(rows)))
        columns = list(rows.columns)
        for name, is_unknown in result.unknown.items():
            there = shape.loaded_name[name]
            place = rows.schema.get_field_index(there)
            both = pa.concat_arrays([columns[place], found[there]])
            source: Any = pa.array(np.where(is_unknown, len(rows) + at, np.arange(len(rows))))
            columns[place] = both.take(source)
        return pa.RecordBatch.from_arrays(columns, schema=rows.schema)

    def _there(
        self, shape: LoadedTable, result: Collapsed, before: pa.RecordBatch, now: pa.RecordBatch
    ) -> pa.RecordBatch:
        """The values of rows by the keys that they had or, if that finds none, have now.

        A process may have died after its package had moved a row; then the values are at the new
        key only.
        """
        names = [shape.loaded_name[name] for name in result.unknown]
        found = self._fetch(shape, names, before)
        ids = key_ids(concat_rows([before, now.cast(before.schema)]))
        is_moved = ids[: len(before)] != ids[len(before) :]
        is_null = [column.is_null().to_numpy(zero_copy_only=False) for column in found.columns]
        lost = np.flatnonzero(is_moved & np.logical_and.reduce(is_null))
        if not len(lost):
            return found
        which: Any = pa.array(lost)
        again = self._fetch(shape, names, now.take(which))
        source = np.arange(len(before))
        source[lost] = len(before) + np.arange(len(lost))
        indices: Any = pa.array(source)
        arrays = [pa.concat_arrays([found[name], again[name]]).take(indices) for name in names]
        return pa.RecordBatch.from_arrays(arrays, names=names)


def _added(shape: LoadedTable, rows: pa.RecordBatch) -> LoadPart:
    return LoadPart(shape.source.id, shape.name, "append", shape.whole, [rows])


def _only_inserts(changes: TableChanges) -> TableChanges:
    if (changes.ops == INSERT).all():
        return changes
    table = changes.schema
    raise TableWriteFailed(
        table.id,
        f"{table.name} has no key, and dlt can't find the row that was updated or deleted",
        solution="On the source: give the table a primary key, or publish its inserts alone "
        "(WITH (publish = 'insert')). Then reset the table.",
    )


def _only_removed(shape: LoadedTable, result: Collapsed) -> pa.RecordBatch:
    """The touched keys that have no row in the end."""
    key = list(shape.source.key_columns)
    kept = result.rows.select(key)
    if kept.num_rows == result.removed.num_rows:
        return result.removed.slice(0, 0)
    arrays = [
        pa.concat_arrays([result.removed[name], kept[name].cast(result.removed[name].type)])
        for name in key
    ]
    ids = key_ids(pa.RecordBatch.from_arrays(arrays, names=key))
    count = result.removed.num_rows
    is_gone = ~np.isin(ids[:count], ids[count:])
    return result.removed.select(key).filter(pa.array(is_gone))
