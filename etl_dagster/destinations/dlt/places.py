"""Where tables are, for what a load package can't do: reading rows back, and replacing a table."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import pyarrow as pa

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.dlt.entries import Identity
from etl_dagster.destinations.dlt.lane import Lane
from etl_dagster.destinations.dlt.ledger import TableEntry
from etl_dagster.destinations.dlt.rows import LoadedTable
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.position import Position
from etl_dagster.values.python import to_objects


class Place(Protocol):
    """Where the tables of a destination are."""

    def fetch(
        self, lane: Lane, shape: LoadedTable, columns: Sequence[str], keys: pa.RecordBatch
    ) -> pa.RecordBatch:
        """Values as they are at the destination, a row for each key; null where it has none."""
        ...

    def require_replaceable(self, lane: Lane, shape: LoadedTable) -> None:
        """Before a copy: check that it may replace what the table holds, or adds to it.

        Raises:
            TableWriteFailed: it holds a log, and is to be a mirror.
        """
        ...

    def replace(self, lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry) -> None:
        """Make the table hold what was collected of a copy, and keep the entry with it.

        Args:
            copy: the name of the table in which it was collected.
            entry: its `chunks` say which rows count.
        """
        ...

    def extend(
        self, lane: Lane, shape: LoadedTable, copy: str, entry: TableEntry, at: CopyMoment
    ) -> None:
        """As `replace`, for a log: the rows are added to those that are there, exactly once.

        Raises:
            TableWriteFailed: those that are there have columns of other types.
        """
        ...

    def discard(self, lane: Lane, name: str) -> None:
        """Drop a table if it is there."""
        ...

    def newest(
        self,
        lane: Lane,
        shape: LoadedTable,
        columns: Sequence[str],
        keys: pa.RecordBatch,
        before: Position,
    ) -> pa.RecordBatch:
        """As `fetch`, for a log: each key's last entry before a position; null after a delete."""
        ...

    def newest_lsn(self, lane: Lane, shape: LoadedTable, since: int) -> int:
        """The largest LSN of a change in a log, if it is at least `since`; else 0."""
        ...

    def identities(self, lane: Lane, shape: LoadedTable, first: int, last: int) -> set[Identity]:
        """The changes that a log has with LSNs from `first` to `last`, including both."""
        ...


def holds_log(shape: LoadedTable) -> TableWriteFailed:
    """A mirror can't take the place of a log: nothing else has what is in it."""
    return TableWriteFailed(
        shape.source.id,
        f"{shape.name} at the destination has the changes that mode append kept of "
        f"{shape.source.name}, and a mirror would replace them",
        solution="Rename the table at the destination, or drop it; then reset the table.",
    )


def has_other_types(shape: LoadedTable, columns: Sequence[str]) -> TableWriteFailed:
    """A log stays as it is, and dlt changes no type."""
    return TableWriteFailed(
        shape.source.id,
        f"{', '.join(map(repr, columns))} of {shape.source.name} can't follow the rows that the "
        "destination has kept: they are of another type there, and dlt changes no type",
        solution=f"Rename {shape.name} at the destination; then reset the table. What is kept "
        "begins again in a table of its own.",
    )


def row_for_each(
    shape: LoadedTable,
    keys: Sequence[tuple[Any, ...]],
    columns: Sequence[str],
    found: Iterable[Sequence[Any]],
) -> pa.RecordBatch:
    """A row for each key with the values found for it; nulls if there were none.

    Args:
        found: rows with the columns of the key, and then these columns.
    """
    length = len(shape.key)
    rows = {_as_arrow(row[:length], shape, shape.key): row[length:] for row in found}
    nothing = (None,) * len(columns)
    values = [rows.get(key, nothing) for key in keys]
    arrays = [
        pa.array([_plain(row[place]) for row in values], shape.arrow.field(name).type)
        for place, name in enumerate(columns)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def tuples_of(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    return list(zip(*(to_objects(column) for column in batch.columns), strict=True))


def _as_arrow(values: Sequence[Any], shape: LoadedTable, names: Sequence[str]) -> tuple[Any, ...]:
    """Values that a driver returned, as the objects that Arrow returns for them."""
    return tuple(
        to_objects(pa.array([_plain(value)], shape.arrow.field(name).type))[0]
        for value, name in zip(values, names, strict=True)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, memoryview):
        return value.tobytes()
    return str(value) if isinstance(value, uuid.UUID) else value
