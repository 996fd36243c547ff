"""Tables in mode append: each change is a row, and none is there twice.

A load package whose process died may have brought some of its rows, and its changes arrive again.
So changes past the table's position are left out if the table has them already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed, complete_from_old
from etl_dagster.destinations.dlt.entries import IDENTITY, constants, with_logged
from etl_dagster.destinations.dlt.lane import Lane
from etl_dagster.destinations.dlt.places import Place
from etl_dagster.destinations.dlt.rows import LoadedTable
from etl_dagster.destinations.logged import logged
from etl_dagster.destinations.versions import every_row
from etl_dagster.model.events import TableChanges, TruncateEvent
from etl_dagster.model.position import Position


class Log:
    """Turns changes into rows of logs, without those that a log has already."""

    def __init__(self, place: Place, lane: Lane) -> None:
        self._place = place
        self._lane = lane
        #: By table, the LSN up to which it may have changes that arrive again.
        self._doubtful: dict[str, int] = {}
        self._opened = -1

    def entries(self, shape: LoadedTable, changes: TableChanges) -> pa.RecordBatch:
        """The rows of changes, without those that the table has already."""
        rows, unknown = self._rows(shape, changes)
        columns: dict[str, pa.Array[Any]] = dict(logged(changes))
        columns["_etl_unchanged"] = _names_of(unknown, len(changes))
        return self._fresh(shape, with_logged(shape, rows, columns))

    def truncate(self, shape: LoadedTable, event: TruncateEvent) -> pa.RecordBatch:
        """The row of a truncate, unless the table has it already."""
        values = {
            "_etl_op": "truncate",
            "_etl_commit_lsn": event.position.commit_lsn.offset,
            "_etl_ordinal": event.position.ordinal,
            "_etl_commit_time": event.commit_time_us,
            "_etl_xid": event.xid,
        }
        arrays = [pa.nulls(1, field.type) for field in shape.arrow]
        row = pa.RecordBatch.from_arrays(arrays, schema=shape.arrow)
        return self._fresh(shape, with_logged(shape, row, constants(values, 1)))

    # ------------------------------------------------------------------------------------------

    def _rows(
        self, shape: LoadedTable, changes: TableChanges
    ) -> tuple[pa.RecordBatch, dict[str, np.ndarray]]:
        """The rows, and which of their values were not sent, by the column's name in the log."""
        key = shape.source.key_columns
        if not key:
            whole = complete_from_old(changes)
            unknown = {shape.loaded_name[name]: mask for name, mask in whole.unchanged.items()}
            return shape.rows(whole.rows), unknown
        versions = every_row(changes, key)
        found = versions.collapsed(versions.rows)
        rows = shape.rows(found.rows)
        unknown = {shape.loaded_name[name]: mask for name, mask in found.unknown.items()}
        return self._completed(shape, found, rows, unknown, changes.position(0)), unknown

    def _completed(
        self,
        shape: LoadedTable,
        found: Collapsed,
        rows: pa.RecordBatch,
        unknown: dict[str, np.ndarray],
        before: Position,
    ) -> pa.RecordBatch:
        """Fill in values from each key's last entry; those that are found leave `unknown`."""
        lookup = found.lookup
        if not unknown or lookup is None:
            return rows
        wanted = np.flatnonzero(np.logical_or.reduce(list(unknown.values())))
        places: Any = pa.array(wanted)
        keys: pa.RecordBatch = lookup.take(places)
        there = self._place.newest(self._lane, shape, list(unknown), keys, before)
        columns = list(rows.columns)
        for name, mask in list(unknown.items()):
            place = rows.schema.get_field_index(name)
            at = np.searchsorted(wanted, np.arange(len(rows)))
            source: Any = pa.array(np.where(mask, len(rows) + at, np.arange(len(rows))))
            columns[place] = pa.concat_arrays([columns[place], there[name]]).take(source)
            # A value that was left out as unchanged is never null.
            left = mask & columns[place].is_null().to_numpy(zero_copy_only=False)
            unknown[name] = left
        return pa.RecordBatch.from_arrays(columns, schema=rows.schema)

    def _fresh(self, shape: LoadedTable, rows: pa.RecordBatch) -> pa.RecordBatch:
        if not rows.num_rows:
            return rows
        lsns = rows["_etl_commit_lsn"].to_numpy()
        first, last = int(lsns[0]), int(lsns[-1])
        if self._opened != self._lane.opened:
            self._doubtful, self._opened = {}, self._lane.opened
        if shape.name not in self._doubtful:
            self._doubtful[shape.name] = self._place.newest_lsn(self._lane, shape, first)
        if first > self._doubtful[shape.name]:
            return rows
        there = self._place.identities(self._lane, shape, first, last)
        if not there:
            return rows
        parts = [rows[name].cast(pa.int64()).to_pylist() for name in IDENTITY]
        mask: Any = pa.array([each not in there for each in zip(*parts, strict=True)], pa.bool_())
        fresh: pa.RecordBatch = rows.filter(mask)
        return fresh


def _names_of(unknown: Mapping[str, np.ndarray], count: int) -> pa.Array[Any]:
    """For each row a JSON array with the names of the columns whose values were not sent."""
    found: list[list[str]] = [[] for _ in range(count)]
    for name, mask in unknown.items():
        for place in np.flatnonzero(mask):
            found[place].append(name)
    return pa.array(
        [json.dumps(names, ensure_ascii=False) if names else None for names in found], pa.string()
    )
