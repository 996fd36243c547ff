"""Changes rows where they are, so that values which the source didn't send needn't be moved."""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed
from etl_dagster.destinations.duckdb.tables import insert_rows, quote, readable, select_list

_PLACE, _ROW_ID = "_etl place", "_etl row id"
#: Each set of unknown columns has a statement of its own, up to this many.
_MAX_STATEMENTS = 8


def hides_rowid(names: Iterable[str]) -> bool:
    """Whether a column has the name under which DuckDB gives the number of a row."""
    return "rowid" in map(str.lower, names)


def key_match(keys: pa.RecordBatch, key: Sequence[str]) -> str:
    """The condition under which a row of `target` has a key of `gone`."""
    # A key is null where its column's type can't hold it, such as the NaN of a numeric(10,2).
    return " AND ".join(
        f"target.{quote(name)} IS NOT DISTINCT FROM gone.{quote(name)}"
        if keys[name].null_count
        else f"target.{quote(name)} = gone.{quote(name)}"
        for name in key
    )


def change_in_place(
    connection: duckdb.DuckDBPyConnection,
    target: str,
    collapsed: Collapsed,
    key: Sequence[str],
    names: Sequence[str],
    types: dict[str, str],
) -> None:
    """Make the rows of `target` what the changes amount to.

    A row of which some values are unknown is found by the key that it had before, and keeps
    these; a large value is neither read nor written. Where the table has no such row, the values
    are null, as in every destination. Rows without unknown values are deleted and inserted.

    Args:
        target: the table, as SQL. It has no column called ``rowid``.
    """
    assert collapsed.lookup_places is not None
    rows = collapsed.rows
    unknown = {name: mask for name, mask in collapsed.unknown.items() if name in names}
    places, row_ids = _find(connection, target, collapsed.removed, key, types)
    # Two chunks of a copy may both have brought a row that moved between them: one is kept.
    first = np.full(len(collapsed.removed), -1)
    first[places[::-1]] = row_ids[::-1]
    is_unknown = np.zeros(len(rows), bool)
    for mask in unknown.values():
        is_unknown |= mask
    kept = np.flatnonzero(is_unknown)
    # A row can have become one other row only. If not, the changes between were not published.
    _, once = np.unique(collapsed.lookup_places[kept], return_index=True)
    kept = np.sort(kept[once])
    kept_ids = first[collapsed.lookup_places[kept]]
    kept, kept_ids = kept[kept_ids >= 0], kept_ids[kept_ids >= 0]

    _delete(connection, target, np.setdiff1d(row_ids, kept_ids))
    for group, changed in _statements(kept, unknown, names):
        _update(connection, target, rows, kept[group], kept_ids[group], changed, types)
    is_new = np.ones(len(rows), bool)
    is_new[kept] = False
    if is_new.any():
        added = rows.filter(pa.array(is_new))
        insert_rows(connection, target, readable(added), names, types)


def _find(
    connection: duckdb.DuckDBPyConnection,
    target: str,
    keys: pa.RecordBatch,
    key: Sequence[str],
    types: dict[str, str],
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have which key: places in `keys` and numbers of rows, int64, in that order."""
    numbered = readable(keys).append_column(_PLACE, pa.array(np.arange(len(keys))))
    connection.register("_etl_keys", numbered)
    found = connection.execute(
        f"SELECT gone.{quote(_PLACE)}, target.rowid FROM {target} AS target "
        f"JOIN (SELECT {select_list(key, types)}, {quote(_PLACE)} FROM _etl_keys) AS gone "
        f"ON {key_match(keys, key)}"
    ).fetchnumpy()
    connection.unregister("_etl_keys")
    places, row_ids = (np.ma.getdata(found[name]) for name in (_PLACE, "rowid"))
    order = np.lexsort((row_ids, places))
    return places[order], row_ids[order]


def _delete(connection: duckdb.DuckDBPyConnection, target: str, row_ids: np.ndarray) -> None:
    if not len(row_ids):
        return
    gone = pa.RecordBatch.from_arrays([pa.array(row_ids)], [_ROW_ID])
    connection.register("_etl_gone", gone)
    connection.execute(
        f"DELETE FROM {target} WHERE rowid IN (SELECT {quote(_ROW_ID)} FROM _etl_gone)"
    )
    connection.unregister("_etl_gone")


def _statements(
    kept: np.ndarray, unknown: Mapping[str, np.ndarray], names: Sequence[str]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray | None]]]:
    """What one statement can change: which of `kept`, and the columns to set.

    A column comes with None, or, where only some of the rows have a value for it, with a bool array
    that is true where it stays.
    """
    patterns = np.zeros(len(kept), np.int64)
    for mask in unknown.values():
        _, patterns = np.unique(patterns * 2 + mask[kept], return_inverse=True)
    counts = np.bincount(patterns)
    # Many columns may be unknown in many combinations; the rare ones share the last statement.
    common = np.argsort(-counts, kind="stable")[: _MAX_STATEMENTS - 1]
    groups = [np.flatnonzero(patterns == pattern) for pattern in common]
    groups.append(np.flatnonzero(~np.isin(patterns, common)))
    for group in groups:
        if not len(group):
            continue
        changed: dict[str, np.ndarray | None] = {}
        for name in names:
            stays = unknown[name][kept[group]] if name in unknown else None
            if stays is None or not stays.any():
                changed[name] = None
            elif not stays.all():
                changed[name] = stays
        yield group, changed


def _update(
    connection: duckdb.DuckDBPyConnection,
    target: str,
    rows: pa.RecordBatch,
    which: np.ndarray,
    row_ids: np.ndarray,
    changed: Mapping[str, np.ndarray | None],
    types: dict[str, str],
) -> None:
    """Set the columns in the rows with these numbers, from `which` of `rows`."""
    partly = {name: stays for name, stays in changed.items() if stays is not None}
    masks = {name: f"_etl stays {name}" for name in partly}
    values = readable(rows.select(list(changed)).take(pa.array(which)))
    connection.register(
        "_etl_rows",
        pa.RecordBatch.from_arrays(
            [*values.columns, *map(pa.array, partly.values()), pa.array(row_ids)],
            [*values.schema.names, *masks.values(), _ROW_ID],
        ),
    )
    settings = ", ".join(
        f"{quote(name)} = CASE WHEN incoming.{quote(masks[name])} THEN target.{quote(name)} "
        f"ELSE incoming.{quote(name)} END"
        if name in masks
        else f"{quote(name)} = incoming.{quote(name)}"
        for name in changed
    )
    others = "".join(f", {quote(name)}" for name in (*masks.values(), _ROW_ID))
    connection.execute(
        f"UPDATE {target} AS target SET {settings} "
        f"FROM (SELECT {select_list(changed, types)}{others} FROM _etl_rows) AS incoming "
        f"WHERE target.rowid = incoming.{quote(_ROW_ID)}"
    )
    connection.unregister("_etl_rows")
