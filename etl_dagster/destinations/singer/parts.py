"""Parts of a stretch: rows that are sent as records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed, OddCells
from etl_dagster.destinations.singer.lines import More, Stamps, record_lines
from etl_dagster.destinations.singer.streams import Spelling
from etl_dagster.model.events import TableChanges
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.parsed import Odd


@dataclass(frozen=True)
class RecordRows:
    """Rows that are sent as records, with when and where they were changed."""

    rows: pa.RecordBatch
    stamps: Stamps
    odd: Mapping[str, Odd]
    deleted: bool = False
    more: More = field(default_factory=dict)

    def lines(self, stream: str, schema: TableSchema, spelling: Spelling) -> Iterator[memoryview]:
        return record_lines(
            stream,
            schema,
            self.rows,
            self.stamps,
            spelling,
            odd=self.odd,
            deleted=self.deleted,
            more=self.more,
        )


@dataclass(frozen=True)
class Stamped:
    """Changes with the versions of their rows."""

    changes: TableChanges
    versions: np.ndarray

    def at(self, places: np.ndarray) -> Stamps:
        """The stamps of some of the changes."""
        changes = self.changes
        return Stamps(
            changes.commit_times_us[places],
            self.versions[places],
            changes.commit_lsns[places],
            changes.ordinals[places],
        )


def by_missing(found: Collapsed) -> Iterator[tuple[frozenset[str], np.ndarray]]:
    """Group the rows by the columns whose values were not sent."""
    if not found.unknown:
        yield frozenset(), np.arange(len(found.rows))
        return
    names = list(found.unknown)
    masks = np.stack([found.unknown[name] for name in names])
    patterns, which = np.unique(masks, axis=1, return_inverse=True)
    which = which.reshape(-1)
    for number in range(patterns.shape[1]):
        missing = {
            name for name, is_missing in zip(names, patterns[:, number], strict=True) if is_missing
        }
        yield frozenset(missing), np.flatnonzero(which == number)


def odd_of(cells: Mapping[str, OddCells]) -> dict[str, Odd]:
    """The odd values of some rows, in the order of the rows."""
    found = {}
    for name, each in cells.items():
        order = np.argsort(each.rows, kind="stable")
        indices: Any = pa.array(order)
        found[name] = Odd(each.rows[order], each.texts.take(indices))
    return found


def taken(odd: Mapping[str, Odd], places: np.ndarray, kept: Sequence[str]) -> dict[str, Odd]:
    """The odd values of some of the rows, which are in ascending order."""
    found: dict[str, Odd] = {}
    for name, each in odd.items():
        at = np.searchsorted(places, each.places)
        at[at == len(places)] = 0
        is_there = places[at] == each.places
        if name in kept and is_there.any():
            mask: Any = pa.array(is_there)
            found[name] = Odd(at[is_there], each.texts.filter(mask))
    return found
