"""What a stretch of changes amounts to: the keys that are removed, and the rows afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.model.events import DELETE, INSERT, TableChanges
from etl_dagster.values.exchange import to_arrow, to_numpy
from etl_dagster.values.parsed import Odd, joined


@dataclass(frozen=True, slots=True)
class OddCells:
    """Values of some rows in one column, which the column's type can't hold.

    All have one element for each such value.
    """

    #: int64: which of the rows.
    rows: np.ndarray
    #: string: as Postgres printed them.
    texts: pa.Array[Any]
    #: int64: the change that brought the value.
    changes: np.ndarray


@dataclass(frozen=True)
class Collapsed:
    """Delete the rows with `removed` keys, then insert `rows`: the same as all changes in order."""

    #: The key columns, each key once: all keys that any change touched.
    removed: pa.RecordBatch
    #: The last row of each key that has one in the end.
    rows: pa.RecordBatch
    #: Values of `rows` that the changes don't tell (null there): a bool array for each column.
    #: They stay what they are in the destination's row with the key in `lookup`.
    unknown: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: int64, for each of `rows`: where in `removed` the key is that its row had before the changes.
    lookup_places: np.ndarray | None = None
    #: Values of `rows` that their columns' types can't hold, by column name.
    odd: Mapping[str, OddCells] = field(default_factory=dict)
    #: int64, for each of `rows`: the change that gave it.
    given: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    #: int64, for each of `removed`: the change that touched the key last.
    touched: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    #: bool, for each of `removed`: whether it has no row in the end.
    is_gone: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    #: For each of `removed`, whether its first change was an insert, and it has a row in the end.
    #: Then the destination has no row with the key, unless a copy has seen these changes.
    inserted: np.ndarray | None = None

    @property
    def replaced(self) -> pa.RecordBatch:
        """The keys of `removed` that the destination is expected to have rows of."""
        if self.inserted is None:
            return self.removed
        return self.removed.filter(pa.array(~self.inserted))

    @property
    def lookup(self) -> pa.RecordBatch | None:
        """One key for each of `rows`: the one that its row had before the changes."""
        if self.lookup_places is None:
            return None
        return self.removed.take(pa.array(self.lookup_places))


def collapse(changes: TableChanges, key: Sequence[str]) -> Collapsed:
    """Keep the last state of each key; for tables with a key."""
    changes = complete_from_old(changes)
    if changes.old_indices is None and not changes.unchanged:
        return _collapse_plain(changes, key)
    return _collapse_linked(changes, key)


def added_and_removed(changes: TableChanges) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
    """For tables without a key: rows to append, then rows of which one copy each is to go."""
    changes = complete_from_old(changes)
    is_delete = changes.ops == DELETE
    old = changes.old_rows
    if not is_delete.any():
        return changes.rows, old
    added = changes.rows.filter(pa.array(~is_delete))
    removed = changes.rows.filter(pa.array(is_delete))
    return added, removed if old is None else concat_rows([removed, old])


def odd_added_and_removed(
    changes: TableChanges,
) -> tuple[dict[str, OddCells], dict[str, pa.Array[Any]]]:
    """What is odd in the rows that `added_and_removed` gives, by column name.

    For the rows to append, `OddCells.rows` are places among the changes, not among the rows. For
    the rows that are removed, only the texts.
    """
    changes = complete_from_old(changes)
    is_delete = changes.ops == DELETE
    every = np.arange(len(changes))
    added = cells_at(changes.odd, np.where(is_delete, -1, every), {})
    gone: dict[str, list[pa.Array[Any]]] = {}
    for name, odd in changes.odd.items():
        gone.setdefault(name, []).append(odd.texts.filter(pa.array(is_delete[odd.places])))
    for name, odd in changes.old_odd.items():
        gone.setdefault(name, []).append(odd.texts)
    removed = {name: pa.concat_arrays(texts) for name, texts in gone.items()}
    return added, {name: texts for name, texts in removed.items() if len(texts)}


def cells_at(
    odd: Mapping[str, Odd], changes: np.ndarray, differing: Mapping[str, np.ndarray]
) -> dict[str, OddCells]:
    """The odd values among rows that are taken from some changes.

    Args:
        changes: of each row, which change it is; -1 for one without a value.
        differing: the same for columns whose values come from other changes.
    """
    found: dict[str, OddCells] = {}
    for name, each in odd.items():
        sources = differing.get(name, changes)
        at = np.searchsorted(each.places, sources)
        at[at == len(each.places)] = 0
        rows = np.flatnonzero(each.places[at] == sources)
        if len(rows):
            texts = _texts_at(each, at[rows])
            found[name] = OddCells(rows, texts, sources[rows])
    return found


def _texts_at(odd: Odd, places: np.ndarray) -> pa.Array[Any]:
    indices: Any = pa.array(places)
    return odd.texts.take(indices)


def complete_from_old(changes: TableChanges) -> TableChanges:
    """Fill unchanged values in from the old rows that came along.

    Under REPLICA IDENTITY FULL that is all of them; else those of identity columns, which
    Postgres sends with the old row when they are stored out of line.
    """
    old_indices, old_rows = changes.old_indices, changes.old_rows
    if old_indices is None or old_rows is None or not len(old_indices):
        return replace(changes, old_indices=None, old_rows=None)
    told = set(changes.schema.identity_columns)
    if changes.schema.replica_identity == "f":
        told = set(changes.schema.column_names)
    rows, unchanged, odd = changes.rows, dict(changes.unchanged), dict(changes.odd)
    for name in told & unchanged.keys():
        missing = unchanged[name]
        has_old = np.zeros(len(changes), bool)
        has_old[old_indices] = True
        source = np.arange(len(changes))
        place = np.full(len(changes), -1)
        place[old_indices] = np.arange(len(old_indices))
        fill = missing & has_old
        source[fill] = len(changes) + place[fill]
        rows = with_column(rows, name, _take([rows[name], old_rows[name]], source))
        unchanged[name] = missing & ~has_old
        if (old_odd := changes.old_odd.get(name)) is not None:
            at = old_indices[old_odd.places]
            kept = np.flatnonzero(fill[at])
            filled = Odd(at[kept], _texts_at(old_odd, kept))
            if (known := joined([odd.get(name), filled])) is not None:
                odd[name] = known
    unchanged = {name: mask for name, mask in unchanged.items() if mask.any()}
    return replace(changes, rows=rows, unchanged=unchanged, odd=odd)


def _collapse_plain(changes: TableChanges, key: Sequence[str]) -> Collapsed:
    """For changes that each have their whole row, and change no key."""
    keys = changes.rows.select(list(key))
    ends = _ends_of_each(keys)
    is_delete = changes.ops == DELETE
    if ends is None:
        kept = changes.rows if not is_delete.any() else changes.rows.filter(pa.array(~is_delete))
        given = np.flatnonzero(~is_delete)
        odd = cells_at(changes.odd, given, {}) if changes.odd else {}
        every, inserted = np.arange(len(changes)), changes.ops == INSERT
        return Collapsed(
            keys,
            kept,
            odd=odd,
            given=given,
            touched=every,
            is_gone=is_delete,
            inserted=inserted,
        )
    first, last = ends
    final = last[~is_delete[last]]
    rows = changes.rows.take(pa.array(final))
    return Collapsed(
        keys.take(to_arrow(last)),
        rows,
        odd=cells_at(changes.odd, final, {}),
        given=final,
        touched=last,
        is_gone=is_delete[last],
        inserted=(changes.ops[first] == INSERT) & ~is_delete[last],
    )


def _ends_of_each(keys: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray] | None:
    """The indices at which each key occurs first and last, the latter ascending; None when no key
    occurs twice."""
    only = keys.column(0) if keys.num_columns == 1 else None
    if only is not None and pa.types.is_integer(only.type) and not only.null_count:
        values = to_numpy(only)
        # The usual case, new rows with a sequence as their key, needs no hash table.
        if (values[1:] > values[:-1]).all():
            return None
    keys = _comparable(keys)
    table = pa.Table.from_batches([keys]).append_column(
        "\0index", to_arrow(np.arange(keys.num_rows))
    )
    grouped = table.group_by(keys.schema.names, use_threads=False)
    ends = grouped.aggregate([("\0index", "min"), ("\0index", "max")])
    last = to_numpy(ends["\0index_max"].combine_chunks())
    if len(last) == keys.num_rows:
        return None
    order = np.argsort(last)
    return to_numpy(ends["\0index_min"].combine_chunks())[order], last[order]


def _collapse_linked(changes: TableChanges, key: Sequence[str]) -> Collapsed:
    """For changes of which some give a row another key, or leave values out.

    What happens to keys are *touches*: one for each change, and before it one for the old key
    where the change came with an old row. Arrays over touches hold the changes first, then the
    old rows.
    """
    count = len(changes)
    old_indices, key_batches = np.empty(0, np.int64), [changes.rows.select(list(key))]
    if changes.old_indices is not None and changes.old_rows is not None:
        old_indices = changes.old_indices
        key_batches.append(changes.old_rows.select(list(key)))
    keys = concat_rows(key_batches)
    order = np.concatenate([2 * np.arange(count) + 1, 2 * old_indices])
    ids = key_ids(keys)
    by_key = np.lexsort((order, ids))
    same_as_next = ids[by_key][:-1] == ids[by_key][1:]
    first_touches = by_key[np.append(True, ~same_as_next)]
    last_touches = by_key[np.append(~same_as_next, True)]
    gives_row, inserts = np.zeros(len(keys), bool), np.zeros(len(keys), bool)
    gives_row[:count] = changes.ops != DELETE
    inserts[:count] = changes.ops == INSERT
    inserted = inserts[first_touches] & gives_row[last_touches]
    final = np.sort(last_touches[gives_row[last_touches]])
    rows = changes.rows.take(pa.array(final))
    removed = keys.take(pa.array(last_touches))
    touched = np.concatenate([np.arange(count), old_indices])[last_touches]
    is_gone = ~gives_row[last_touches]
    if not changes.unchanged:
        odd = cells_at(changes.odd, final, {})
        return Collapsed(
            removed,
            rows,
            odd=odd,
            given=final,
            touched=touched,
            is_gone=is_gone,
            inserted=inserted,
        )

    before = np.full(len(keys), -1)
    before[by_key[1:][same_as_next]] = by_key[:-1][same_as_next]
    #: The touch at which each change finds its row: that of the old key, if it came with one.
    found_at = np.arange(count)
    found_at[old_indices] = count + np.arange(len(old_indices))
    #: The change that the row was last given by; -1: none in this stretch.
    given_by = before[found_at]
    given_by[(given_by >= 0) & ~gives_row[given_by]] = -1
    unknown: dict[str, np.ndarray] = {}
    sources: dict[str, np.ndarray] = {}
    lookup = found_at[final]
    for name, missing in changes.unchanged.items():
        source = told_by(missing, given_by)[final]
        rows = with_column(rows, name, changes.rows[name].take(pa.array(source)))
        sources[name] = source
        still = missing[source]
        if still.any():
            unknown[name] = still
            lookup[still] = found_at[source[still]]
    # Keys are numbered from 0 without gaps, and `removed` has them in that order.
    odd = cells_at(changes.odd, final, sources)
    places = ids[lookup] if unknown else None
    return Collapsed(removed, rows, unknown, places, odd, final, touched, is_gone, inserted)


def told_by(missing: np.ndarray, given_by: np.ndarray) -> np.ndarray:
    """For each change, the change that has the value of its row in a column.

    If none has, the first change of that row.

    Args:
        missing: of each change, whether Postgres left the value out.
        given_by: of each change, the one before that gave its row; -1: none.
    """
    told = np.where(missing & (given_by >= 0), given_by, np.arange(len(missing)))
    # Each step doubles how far back it looks: a row may change as often as there are changes.
    while ((further := told[told]) != told).any():
        told = further
    return told


def _comparable(keys: pa.RecordBatch) -> pa.RecordBatch:
    """The keys with a text in place of each value with parts, which Arrow can't compare.

    There are such values only if a table was copied before the column was part of its key.
    """
    columns: list[pa.Array[Any]] = [
        pa.array(map(repr, column.to_pylist()), pa.string())
        if pa.types.is_nested(column.type)
        else column
        for column in keys.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=keys.schema.names)


def key_ids(keys: pa.RecordBatch) -> np.ndarray:
    """int64: a number for each key, equal where the keys are."""
    ids = np.zeros(keys.num_rows, np.int64)
    for column in _comparable(keys).columns:
        encoded = column.dictionary_encode("encode")
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        # Dense again after each column, so that the product can't overflow.
        _, ids = np.unique(ids * (len(encoded.dictionary) + 1) + codes, return_inverse=True)
    return ids


def _take(arrays: Sequence[pa.Array[Any]], indices: np.ndarray) -> pa.Array[Any]:
    return pa.concat_arrays(list(arrays)).take(pa.array(indices))


def with_column(rows: pa.RecordBatch, name: str, values: pa.Array[Any]) -> pa.RecordBatch:
    columns = list(rows.columns)
    columns[rows.schema.get_field_index(name)] = values
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


def concat_rows(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    first = batches[0]
    if len(batches) == 1:
        return first
    columns = [
        pa.concat_arrays([batch.column(index) for batch in batches])
        for index in range(first.num_columns)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=first.schema)
