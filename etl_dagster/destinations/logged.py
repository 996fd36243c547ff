"""The columns of a table in mode append that say which change a row is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.before import before_images
from etl_dagster.model.events import DELETE, INSERT, UPDATE, TableChanges

#: By tag, what `_etl_op` says; in the order of the tags.
OPS: Final[Mapping[int, str]] = {DELETE: "delete", INSERT: "insert", UPDATE: "update"}


def logged(changes: TableChanges) -> dict[str, pa.Array[Any]]:
    """By name, all but `_etl_unchanged`; an element for each change."""
    spelled = pa.array(list(OPS.values()), pa.string())
    numbers: Any = pa.array(np.searchsorted(list(OPS), changes.ops))
    times = pa.array(np.asarray(changes.commit_times_us)).view(pa.timestamp("us", "UTC"))
    xids = pa.nulls(len(changes), pa.uint32()) if changes.xids is None else pa.array(changes.xids)
    return {
        "_etl_op": spelled.take(numbers),
        "_etl_commit_lsn": pa.array(changes.commit_lsns),
        "_etl_ordinal": pa.array(changes.ordinals),
        "_etl_commit_time": times,
        "_etl_xid": xids,
        "_etl_before": before_images(changes),
    }
