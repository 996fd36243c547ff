"""Records of a log (mode append): one for each change, with the properties that identify it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import OddCells, cells_at, complete_from_old
from etl_dagster.destinations.logged import logged
from etl_dagster.destinations.singer.lines import More, moments_as_json
from etl_dagster.destinations.singer.streams import LOGGED
from etl_dagster.destinations.singer.values import TEXT, or_null, quoted
from etl_dagster.destinations.versions import every_row
from etl_dagster.model.events import TableChanges, TruncateEvent
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.form import AnyArray


@dataclass(frozen=True)
class LogRows:
    """Rows of a log, with the properties that `LOGGED` names."""

    rows: pa.RecordBatch
    odd: Mapping[str, OddCells]
    more: More


def entries_of(changes: TableChanges) -> LogRows:
    """An entry for each change. Values that Postgres didn't send are null, and named in it."""
    key = changes.schema.key_columns
    odd: Mapping[str, OddCells]
    if key:
        versions = every_row(changes, key)
        rows, odd, unknown = versions.rows, versions.odd, versions.unknown
    else:
        whole = complete_from_old(changes)
        odd = cells_at(whole.odd, np.arange(len(whole)), {})
        rows, unknown = whole.rows, whole.unchanged
    told = logged(changes)
    return LogRows(
        rows,
        odd,
        {
            "_etl_op": quoted(told["_etl_op"].cast(TEXT)),
            "_etl_commit_lsn": told["_etl_commit_lsn"].cast(TEXT),
            "_etl_ordinal": told["_etl_ordinal"].cast(TEXT),
            "_etl_commit_time": moments_as_json(changes.commit_times_us),
            "_etl_xid": or_null(told["_etl_xid"].cast(TEXT)),
            "_etl_before": or_null(quoted(told["_etl_before"].cast(TEXT))),
            "_etl_unchanged": or_null(quoted(_names_of(unknown, len(changes)))),
        },
    )


def truncated(event: TruncateEvent) -> LogRows:
    """The entry of a truncate, which has no values."""
    schema = event.schema.arrow_schema
    row = pa.RecordBatch.from_arrays([pa.nulls(1, f.type) for f in schema], schema=schema)
    more = {
        "_etl_op": '"truncate"',
        "_etl_commit_lsn": str(event.position.commit_lsn.offset),
        "_etl_ordinal": str(event.position.ordinal),
        "_etl_commit_time": _moment(event.commit_time_us),
        "_etl_xid": "null" if event.xid is None else str(event.xid),
    }
    return LogRows(row, {}, _with_nulls(more))


def of_copy(schema: TableSchema, replay_from: int, copied_at_us: int) -> More:
    """The properties of a copy's rows; their place is before the first change not in it."""
    if schema.mode != "append":
        return {}
    more = {
        "_etl_op": '"copy"',
        "_etl_commit_lsn": str(max(replay_from - 1, 0)),
        "_etl_ordinal": "0",
        "_etl_commit_time": _moment(copied_at_us),
    }
    return _with_nulls(more)


def _with_nulls(more: Mapping[str, str]) -> dict[str, str]:
    return {name: more.get(name, "null") for name in LOGGED}


def _moment(time_us: int) -> str:
    return str(moments_as_json(np.array([time_us]))[0].as_py())


def _names_of(unknown: Mapping[str, np.ndarray], count: int) -> AnyArray:
    """For each row a JSON array of the columns whose values were not sent; null for none."""
    found: list[list[str]] = [[] for _ in range(count)]
    for name, mask in unknown.items():
        for place in np.flatnonzero(mask):
            found[place].append(name)
    texts: list[Any] = [json.dumps(n, ensure_ascii=False) if n else None for n in found]
    return pa.array(texts, TEXT)
