"""Completes the rows of changes, and keeps only the changes of rows that are wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from etl_dagster.model.events import DELETE, INSERT, UPDATE, TableChanges
from etl_dagster.values.parsed import Odd, joined

if TYPE_CHECKING:
    import pyarrow as pa


def with_whole_rows(changes: TableChanges) -> TableChanges:
    """The changes, with values that Postgres left out taken from their old rows.

    Under REPLICA IDENTITY FULL an old row has all values.
    """
    import pyarrow as pa

    old_indices, old_rows = changes.old_indices, changes.old_rows
    if not changes.unchanged or old_indices is None or old_rows is None:
        return changes
    if changes.schema.replica_identity != "f":
        return changes
    rows, odd, unchanged = changes.rows, dict(changes.odd), {}
    for name, mask in changes.unchanged.items():
        in_old = np.flatnonzero(mask[old_indices])
        filled = old_indices[in_old]
        source = np.arange(len(changes))
        source[filled] = len(changes) + in_old
        place = rows.schema.get_field_index(name)
        both: Any = pa.concat_arrays([rows.column(place), old_rows.column(place)])
        rows = rows.set_column(place, rows.schema.field(place), both.take(pa.array(source)))
        if (old_odd := changes.old_odd.get(name)) is not None:
            is_used = np.isin(old_odd.places, in_old)
            texts: Any = old_odd.texts
            some = Odd(old_indices[old_odd.places[is_used]], texts.filter(pa.array(is_used)))
            if (known := joined([odd.get(name), some])) is not None:
                odd[name] = known
        mask = mask.copy()
        mask[filled] = False
        if mask.any():
            unchanged[name] = mask
    return replace(changes, rows=rows, odd=odd, unchanged=unchanged)


def without_vanished(changes: TableChanges) -> TableChanges:
    """The changes; updates whose rows are still not whole become deletes.

    Their values were asked from the source, which doesn't have the row any more: a later change
    deletes it or changes its key, and that change has all that is needed.
    """
    if not changes.unchanged:
        return changes
    vanished = np.logical_or.reduce(list(changes.unchanged.values()))
    return replace(_as_deletes(changes, vanished), unchanged={})


def matching(
    changes: TableChanges, matches: Callable[[pa.RecordBatch], Any]
) -> TableChanges | None:
    """The changes of the rows for which a condition is true; None if there are none.

    The rows must be whole. If only the old row of an update matches, the update becomes a delete;
    if only the new row does, an insert. If the old row isn't known, the new one decides: a delete
    does nothing if the destination doesn't have the row, and an update inserts it.
    """
    is_new = changes.ops != DELETE
    is_match = np.zeros(len(changes), bool)
    if is_new.any():
        which = np.flatnonzero(is_new)
        is_match[which] = matches(_take(changes.rows, which))
    is_kept = is_match | ~is_new
    lost = is_new & ~is_match & (changes.ops == UPDATE)
    ops = changes.ops.copy()
    if changes.schema.replica_identity == "f":
        deleted = np.flatnonzero(~is_new)
        if len(deleted):
            is_kept[deleted] = matches(_take(changes.rows, deleted))
        if changes.old_indices is not None and changes.old_rows is not None:
            had = matches(changes.old_rows)
            came = changes.old_indices[~had]
            lost[came] = False
            ops[came[is_match[came]]] = INSERT
    is_kept |= lost
    changes = _as_deletes(replace(changes, ops=ops), lost)
    # Inserts have no old row, nor have updates that became deletes.
    changes = _with_old_of(changes, changes.ops == UPDATE)
    return changes if is_kept.all() else _taken(changes, np.flatnonzero(is_kept))


def _as_deletes(changes: TableChanges, which: np.ndarray) -> TableChanges:
    """The changes; these updates become deletes of their old rows.

    Only the columns that identify the row are kept, unless the whole old row was sent.
    """
    import pyarrow as pa

    if not which.any():
        return changes
    count = len(changes)
    source = np.arange(count)
    has_old = np.zeros(count, bool)
    pieces = [changes.rows]
    if changes.old_indices is not None and changes.old_rows is not None:
        in_old = np.flatnonzero(which[changes.old_indices])
        source[changes.old_indices[in_old]] = count + in_old
        has_old[changes.old_indices[in_old]] = True
        pieces.append(changes.old_rows)
    identity = set(changes.schema.identity_columns or changes.schema.key_columns)
    arrays = []
    nulls: Any = pa.nulls
    for place, name in enumerate(changes.rows.schema.names):
        column: Any = pa.concat_arrays([piece.column(place) for piece in pieces])
        places = source
        if name not in identity:
            places = np.where(which & ~has_old, len(column), source)
            column = pa.concat_arrays([column, nulls(1, column.type)])
        arrays.append(column.take(pa.array(places)))
    rows = pa.RecordBatch.from_arrays(arrays, schema=changes.rows.schema)
    odd = {}
    for name in dict.fromkeys((*changes.odd, *changes.old_odd)):
        each = changes.odd.get(name)
        known = None if each is None else _without(each, which)
        if name in identity:
            known = _joined_old(known, changes, name, which, each)
        if known is not None:
            odd[name] = known
    ops = changes.ops.copy()
    ops[which] = DELETE
    unchanged = {name: mask & ~which for name, mask in changes.unchanged.items()}
    changes = replace(
        changes,
        ops=ops,
        rows=rows,
        odd=odd,
        unchanged={name: mask for name, mask in unchanged.items() if mask.any()},
    )
    return _with_old_of(changes, ~which)


def _without(odd: Odd, which: np.ndarray) -> Odd | None:
    import pyarrow as pa

    is_left = ~which[odd.places]
    texts: Any = odd.texts
    return Odd(odd.places[is_left], texts.filter(pa.array(is_left))) if is_left.any() else None


def _joined_old(
    known: Odd | None, changes: TableChanges, name: str, which: np.ndarray, new: Odd | None
) -> Odd | None:
    """The odd values of a column that identifies rows; deletes have those of their old rows."""
    import pyarrow as pa

    texts: Any
    parts = [known]
    has_old = np.zeros(len(changes), bool)
    if changes.old_indices is not None:
        has_old[changes.old_indices] = True
        if (old := changes.old_odd.get(name)) is not None:
            is_used = which[changes.old_indices[old.places]]
            texts = old.texts
            places = changes.old_indices[old.places[is_used]]
            parts.append(Odd(places, texts.filter(pa.array(is_used))))
    if new is not None:
        is_own = which[new.places] & ~has_old[new.places]
        texts = new.texts
        parts.append(Odd(new.places[is_own], texts.filter(pa.array(is_own))))
    return joined(parts)


def _with_old_of(changes: TableChanges, which: np.ndarray) -> TableChanges:
    """The changes, with the old rows of these changes only."""
    old_indices, old_rows = changes.old_indices, changes.old_rows
    if old_indices is None or old_rows is None:
        return changes
    kept = np.flatnonzero(which[old_indices])
    if len(kept) == len(old_indices):
        return changes
    if not len(kept):
        return replace(changes, old_indices=None, old_rows=None, old_odd={})
    odd = {name: some for name, each in changes.old_odd.items() if (some := taken_odd(each, kept))}
    return replace(
        changes, old_indices=old_indices[kept], old_rows=_take(old_rows, kept), old_odd=odd
    )


def _taken(changes: TableChanges, which: np.ndarray) -> TableChanges | None:
    """Some of the changes, in order; None if there are none."""
    if not len(which):
        return None
    old_indices, old_rows, old_odd = changes.old_indices, changes.old_rows, dict(changes.old_odd)
    if old_indices is not None and old_rows is not None:
        of = np.flatnonzero(np.isin(old_indices, which))
        old_odd = {
            name: some for name, each in changes.old_odd.items() if (some := taken_odd(each, of))
        }
        old_rows = _take(old_rows, of) if len(of) else None
        old_indices = np.searchsorted(which, old_indices[of]) if len(of) else None
    return replace(
        changes,
        ops=changes.ops[which],
        commit_lsns=changes.commit_lsns[which],
        ordinals=changes.ordinals[which],
        commit_times_us=changes.commit_times_us[which],
        sequence=changes.sequence[which],
        rows=_take(changes.rows, which),
        unchanged={
            name: mask[which] for name, mask in changes.unchanged.items() if mask[which].any()
        },
        old_indices=old_indices,
        old_rows=old_rows,
        odd={name: some for name, each in changes.odd.items() if (some := taken_odd(each, which))},
        old_odd=old_odd,
        xids=None if changes.xids is None else changes.xids[which],
    )


def taken_odd(odd: Odd, which: np.ndarray) -> Odd | None:
    """The odd values of some rows, given by their places in ascending order."""
    import pyarrow as pa

    is_taken = np.isin(odd.places, which)
    if not is_taken.any():
        return None
    texts: Any = odd.texts
    places = np.searchsorted(which, odd.places[is_taken]).astype(np.int64)
    return Odd(places, texts.filter(pa.array(is_taken)))


def _take(rows: pa.RecordBatch, which: np.ndarray) -> pa.RecordBatch:
    import pyarrow as pa

    return rows.take(pa.array(which))
