"""Entries of a log: rows with the columns that mode append adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.dlt.rows import LOGGED, LoadedTable

#: Identifies a change: its LSN, its number, and its commit time in microseconds since 1970.
Identity: TypeAlias = tuple[int, int, int]
#: The columns that hold an `Identity`.
IDENTITY: Final = ("_etl_commit_lsn", "_etl_ordinal", "_etl_commit_time")


def copied_rows(shape: LoadedTable, rows: pa.RecordBatch, at: CopyMoment) -> pa.RecordBatch:
    """Rows of a copy, as they are in the log."""
    values = {
        "_etl_op": "copy",
        "_etl_commit_lsn": at.lsn,
        "_etl_ordinal": 0,
        "_etl_commit_time": at.time_us,
    }
    return with_logged(shape, rows, constants(values, rows.num_rows))


def constants(values: Mapping[str, Any], count: int) -> dict[str, pa.Array[Any]]:
    """The columns that mode append adds, each with one value in all rows; null if none is given."""
    return {
        field.name: pa.array([values.get(field.name)], field.type).take(
            pa.array(np.zeros(count, np.int32))
        )
        for field in LOGGED
    }


def with_logged(
    shape: LoadedTable, rows: pa.RecordBatch, columns: Mapping[str, pa.Array[Any]]
) -> pa.RecordBatch:
    """Rows with the columns that mode append adds."""
    added = [columns[field.name].cast(field.type) for field in LOGGED]
    return pa.RecordBatch.from_arrays([*rows.columns, *added], schema=shape.whole)


def identities_of(rows: Sequence[Sequence[Any]]) -> set[Identity]:
    """The identities in rows with the columns `IDENTITY`, as a driver returns them."""
    moments = pa.array([row[2] for row in rows], pa.timestamp("us", "UTC"))
    times: list[Any] = moments.cast(pa.int64()).to_pylist()
    return {
        (int(lsn), int(ordinal), time) for (lsn, ordinal, _), time in zip(rows, times, strict=True)
    }


def identities_in(rows: Any) -> set[Identity]:
    """As `identities_of`, from an Arrow table with these columns."""
    return identities_of(list(zip(*(rows[name].to_pylist() for name in IDENTITY), strict=True)))


def largest_lsn(rows: Any) -> int:
    """The largest LSN in an Arrow table with rows of a log; 0 if it has none."""
    found: list[int] = rows[IDENTITY[0]].to_pylist()
    return max(found, default=0)
