"""Which versions of rows a stretch of changes brings and ends; for destinations that keep them.

A change *touches* the key that its row has, and one that gives a row another key touches the old
key before. Arrays over touches have the changes first, at their own numbers, and then these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import (
    Collapsed,
    OddCells,
    cells_at,
    complete_from_old,
    concat_rows,
    key_ids,
    told_by,
    with_column,
)
from etl_dagster.model.events import DELETE, TableChanges


@dataclass(frozen=True)
class Versions:
    """Rows that keys have had, and the keys whose earlier rows have ended."""

    #: The rows that the keys have had, as far as the changes have them.
    rows: pa.RecordBatch
    #: int64, for each of `rows`: the change that gave the key this row.
    given_by: np.ndarray
    #: int64, for each of `rows`: the change that ended it; -1: it hasn't ended.
    ended_by: np.ndarray
    #: The key columns, each key once: keys whose row at the destination, if there is one, ends.
    over: pa.RecordBatch
    #: int64, for each of `over`: the change that ends that row.
    over_by: np.ndarray
    #: Values of `rows` that the changes don't tell (null there): a bool array for each column. They
    #: are what the destination has in the row with the key in `lookup`.
    unknown: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: One key for each of `rows`; None where nothing is unknown.
    lookup: pa.RecordBatch | None = None
    #: Values of `rows` that their columns' types can't hold, by column name.
    odd: Mapping[str, OddCells] = field(default_factory=dict)

    def collapsed(self, rows: pa.RecordBatch) -> Collapsed:
        """These rows, perhaps with further columns, and what of them is unknown."""
        places = None if self.lookup is None else np.arange(len(rows))
        found = self.over if self.lookup is None else self.lookup
        return Collapsed(found, rows, self.unknown, places, self.odd)


class _Touches:
    """What the changes of a table with a key did to which keys."""

    def __init__(self, changes: TableChanges, key: Sequence[str]) -> None:
        changes = complete_from_old(changes)
        self.changes = changes
        count = len(changes)
        batches = [changes.rows.select(list(key))]
        old_indices = np.empty(0, np.int64)
        if changes.old_indices is not None and changes.old_rows is not None:
            old_indices = changes.old_indices
            batches.append(changes.old_rows.select(list(key)))
        keys = concat_rows(batches)
        ids = key_ids(keys)
        has_moved = np.flatnonzero(ids[count:] != ids[old_indices])
        moved = old_indices[has_moved]
        #: The key of each touch, and its number.
        which = np.concatenate([np.arange(count), count + has_moved])
        self.keys = keys.take(pa.array(which))
        self.ids = ids[which]
        #: The change of each touch.
        self.change = np.concatenate([np.arange(count), moved])
        #: Whether the key has the row of the change afterwards.
        self.gives = np.concatenate([changes.ops != DELETE, np.zeros(len(moved), bool)])
        order = 2 * self.change
        order[:count] += 1
        #: The touches of one key after the other, each in the order of time.
        self.by_key = np.lexsort((order, self.ids))
        #: Of these, whether it is the first of its key.
        self.is_first = np.ones(len(self.by_key), bool)
        self.is_first[1:] = self.ids[self.by_key][1:] != self.ids[self.by_key][:-1]
        before = np.full(len(self.ids), -1)
        before[self.by_key[1:]] = np.where(self.is_first[1:], -1, self.by_key[:-1])
        #: The touch at which each change finds its row: at the old key, where it had another.
        self.found_at = np.arange(count)
        self.found_at[moved] = count + np.arange(len(moved))
        #: The change that gave the row which a change finds; -1: none in this stretch.
        self.found = before[self.found_at]
        self.found[(self.found >= 0) & ~self.gives[self.found]] = -1

    def rows(self, which: np.ndarray) -> tuple[pa.RecordBatch, dict[str, np.ndarray], np.ndarray]:
        """The rows that some changes gave, completed from earlier ones.

        Returns:
            The rows, which of their values are unknown, and for each the touch at whose key the
            destination may have these.
        """
        changes = self.changes
        rows = changes.rows.take(pa.array(which))
        unknown: dict[str, np.ndarray] = {}
        lookup = self.found_at[which]
        for name, missing in changes.unchanged.items():
            source = self.source(name, which)
            rows = with_column(rows, name, changes.rows[name].take(pa.array(source)))
            still = missing[source]
            if still.any():
                unknown[name] = still
                lookup[still] = self.found_at[source[still]]
        return rows, unknown, lookup

    def source(self, name: str, which: np.ndarray) -> np.ndarray:
        """For each of some changes, the change that has the value of its row."""
        source: np.ndarray = told_by(self.changes.unchanged[name], self.found)[which]
        return source

    def versions(
        self,
        given_by: np.ndarray,
        ended_by: np.ndarray,
        over: np.ndarray,
        *,
        is_history: bool = True,
    ) -> Versions:
        """Args:
        given_by: the changes that gave the rows to keep.
        ended_by: of each, the change that ended it, or -1.
        over: the touches that end rows of the destination.
        is_history: whether values belong to the change that gave their row, not to the one that
            told them.
        """
        rows, unknown, lookup = self.rows(given_by)
        sources = {name: self.source(name, given_by) for name in self.changes.unchanged}
        odd = cells_at(self.changes.odd, given_by, sources)
        if is_history:
            odd = {n: OddCells(c.rows, c.texts, given_by[c.rows]) for n, c in odd.items()}
        return Versions(
            rows,
            given_by,
            ended_by,
            self.keys.take(pa.array(over)),
            self.change[over],
            unknown,
            self.keys.take(pa.array(lookup)) if unknown else None,
            odd,
        )


def last_rows(changes: TableChanges, key: Sequence[str]) -> Versions:
    """The last row of each key, even if it is gone afterwards.

    `over` has the keys whose row is gone, and was not given by any of the changes.
    """
    touches = _Touches(changes, key)
    by_key, starts = touches.by_key, np.flatnonzero(touches.is_first)
    ends = np.append(starts[1:], len(by_key)) - 1
    at = np.where(touches.gives[by_key], np.arange(len(by_key)), -1)
    given = np.maximum.reduceat(at, starts)
    last = by_key[ends]
    has_row = given >= 0
    given_by = by_key[given[has_row]]
    ended_by = np.where(touches.gives[last], -1, touches.change[last])[has_row]
    order = np.argsort(given_by, kind="stable")
    over = last[~has_row]
    return touches.versions(given_by[order], ended_by[order], over, is_history=False)


def all_versions(changes: TableChanges, key: Sequence[str]) -> Versions:
    """The row that each key has after each transaction that touched it.

    `over` has all keys that were touched, and `over_by` the last change of each in the first
    transaction that touched it.
    """
    touches = _Touches(changes, key)
    by_key = touches.by_key
    lsns = touches.changes.commit_lsns[touches.change[by_key]]
    # The last touch of a key in a transaction says what the key has after it.
    is_state = np.ones(len(by_key), bool)
    is_state[:-1] = touches.is_first[1:] | (lsns[1:] != lsns[:-1])
    states = by_key[is_state]
    ids = touches.ids[states]
    is_first = np.ones(len(states), bool)
    is_first[1:] = ids[1:] != ids[:-1]
    ended_by = np.full(len(states), -1)
    ended_by[:-1] = np.where(is_first[1:], -1, touches.change[states[1:]])
    gives = touches.gives[states]
    given_by, ended_by = states[gives], ended_by[gives]
    order = np.argsort(given_by, kind="stable")
    return touches.versions(given_by[order], ended_by[order], states[is_first])


def every_row(changes: TableChanges, key: Sequence[str]) -> Versions:
    """The row of every change, as far as it is known; of a delete, what Postgres sent."""
    touches = _Touches(changes, key)
    every = np.arange(len(changes))
    return touches.versions(every, np.full(len(changes), -1), np.empty(0, np.int64))
