"""Changes rows where they are, so that values which the source didn't send needn't be moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed
from etl_dagster.destinations.sql import statements
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.tables import Target

#: Each set of unknown columns has a statement of its own, up to this many.
_MAX_STATEMENTS = 8


def change_in_place(session: Session, target: Target, collapsed: Collapsed) -> None:
    """Make the rows of the table what the changes amount to.

    A row of which some values are unknown is found by the key that it had before, and keeps
    these; a large value is neither read nor written. Where the table has no such row, the values
    are null, as in every destination. Rows without unknown values are deleted and inserted.

    Args:
        target: a table whose rows are found by their IDs, see `Dialect.changes_in_place`.
    """
    assert collapsed.lookup_places is not None
    rows = collapsed.rows
    unknown = {name: mask for name, mask in collapsed.unknown.items() if name in target.columns}
    places, row_ids = _find(session, target, collapsed.removed)
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

    gone = np.setdiff1d(row_ids, kept_ids)
    if len(gone):
        session.run(statements.delete_rows(target, gone))
    for group, changed in _statements(kept, unknown, target.columns):
        values = rows.select(list(changed)).take(pa.array(kept[group]))
        session.run(statements.update_rows(target, values, kept_ids[group], changed))
    is_new = np.ones(len(rows), bool)
    is_new[kept] = False
    if is_new.any():
        session.run(statements.insert(target, rows.filter(pa.array(is_new))))


def _find(session: Session, target: Target, keys: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have which key: places in `keys` and row IDs, int64, in that order."""
    found = session.fetch_arrays(statements.find_rows(target, keys))
    places, row_ids = found[statements.PLACE], found[statements.ROW_ID]
    order = np.lexsort((row_ids, places))
    return places[order], row_ids[order]


def _statements(
    kept: np.ndarray, unknown: Mapping[str, np.ndarray], names: Sequence[str]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray | None]]]:
    """What one statement can change: which of `kept`, and the columns to set.

    A column comes with None, or, if only some of the rows get a value, with a bool array that is
    true for the rows that keep theirs.
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
