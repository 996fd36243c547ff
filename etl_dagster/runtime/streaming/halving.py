"""Cuts a batch in two where the destination can't take it in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from etl_dagster.model.events import (
    CommitEvent,
    EventBatch,
    TableChanges,
    TableStep,
)

#: After this many writes of the largest size that succeeded, twice the size is tried again.
_WRITES_BEFORE_GROWTH = 8


class PieceSize:
    """How many changes the destination takes in one piece after it has refused more.

    Without it, each batch would be refused before it is cut, for as long as rows are that large.
    """

    def __init__(self) -> None:
        #: None: as many as there are.
        self._limit: int | None = None
        self._writes = 0

    def is_too_large(self, events: EventBatch) -> bool:
        return self._limit is not None and events.row_count > self._limit

    def refused(self, events: EventBatch) -> None:
        """The destination refused the batch for its size."""
        self._limit, self._writes = max(events.row_count // 2, 1), 0

    def written(self, events: EventBatch) -> None:
        if self._limit is None or events.row_count <= self._limit // 2:
            return
        self._writes += 1
        if self._writes >= _WRITES_BEFORE_GROWTH:
            self._limit, self._writes = self._limit * 2, 0


def halves(events: EventBatch) -> tuple[EventBatch, EventBatch] | None:
    """The batch as two that do the same one after the other; None for one change of one table.

    It is cut between two changes, also inside of a transaction: what comes before in the stream is
    in the first half, whatever table it belongs to.
    """
    sequences = np.unique(
        np.concatenate([_sequences(step) for steps in events.tables.values() for step in steps])
        if any(events.tables.values())
        else []
    )
    if len(sequences) < 2:
        return None
    cut = int(sequences[len(sequences) // 2])
    first: dict[int, Sequence[TableStep]] = {}
    second: dict[int, Sequence[TableStep]] = {}
    for table_id, steps in events.tables.items():
        before, after = _cut(steps, cut)
        if before:
            first[table_id] = before
        if after:
            second[table_id] = after
    marks_before = [mark for mark in events.marks if mark.sequence < cut]
    marks_after = [mark for mark in events.marks if mark.sequence >= cut]
    ends = [mark.end_lsn for mark in marks_before if isinstance(mark, CommitEvent)]
    return (
        replace(
            events,
            tables=first,
            marks=marks_before,
            commit_end_lsn=ends[-1] if ends else None,
        ),
        replace(events, tables=second, marks=marks_after),
    )


def _sequences(step: TableStep) -> np.ndarray:
    return step.sequence if isinstance(step, TableChanges) else np.array([step.sequence])


def _cut(steps: Sequence[TableStep], sequence: int) -> tuple[list[TableStep], list[TableStep]]:
    """The steps before a place in the batch, and those from there on."""
    before: list[TableStep] = []
    after: list[TableStep] = []
    for step in steps:
        if not isinstance(step, TableChanges):
            (before if step.sequence < sequence else after).append(step)
            continue
        place = int(np.searchsorted(step.sequence, sequence))
        if place:
            before.append(step.slice(0, place))
        if place < len(step):
            after.append(step.slice(place))
    return before, after


def only_table(events: EventBatch) -> int | None:
    """The table whose change the batch is, if it is only one."""
    tables = [table_id for table_id, steps in events.tables.items() if steps]
    return tables[0] if len(tables) == 1 else None
