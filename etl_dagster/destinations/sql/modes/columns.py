"""Values of the columns that modes add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.values.families.times import timestamp_to_json

#: Column with the time that belongs to a staged key.
AT = "_etl at"


def times(commit_times_us: np.ndarray, which: np.ndarray) -> pa.Array[Any]:
    """The commit times of some changes; null for -1."""
    found = np.asarray(commit_times_us)[np.where(which < 0, 0, which)]
    moments: pa.Array[Any] = pa.array(found, mask=which < 0).view(pa.timestamp("us", "UTC"))
    return moments


def moment(time_us: int) -> str:
    """A time as text that every database can read."""
    return timestamp_to_json(time_us)


def none_unchanged(count: int) -> pa.Array[Any]:
    """Values of ``_etl_unchanged`` where everything is known."""
    return pa.nulls(count, pa.list_(pa.string()))


def with_columns(rows: pa.RecordBatch, more: Mapping[str, pa.Array[Any]]) -> pa.RecordBatch:
    """The rows with further columns."""
    return pa.RecordBatch.from_arrays([*rows.columns, *more.values()], [*rows.schema.names, *more])
