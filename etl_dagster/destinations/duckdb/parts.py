"""Cuts a batch where a table's columns change after its rows did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from etl_dagster.model.events import EventBatch, RelationEvent, TableStep


def parts(events: EventBatch) -> Iterator[EventBatch]:
    """The batch as batches that do the same one after the other; nearly always as one.

    Before version 2, DuckDB refuses a commit that alters the columns of a table after rows of it
    were deleted or updated ("another transaction has altered this table"). Later versions get the
    same parts. What was written of a batch is known by each table's position.
    """
    cut = {table_id: list(_between_alterations(s)) for table_id, s in events.tables.items()}
    count = max(map(len, cut.values()), default=0)
    for number in range(count - 1):
        # Only the last one is the end of what the batch ends.
        yield replace(
            events,
            tables={table_id: own[number] for table_id, own in cut.items() if number < len(own)},
            marks=(),
            commit_end_lsn=None,
            more_follows=True,
        )
    if count <= 1:
        yield events
    else:
        last = count - 1
        yield replace(
            events, tables={table_id: own[last] for table_id, own in cut.items() if last < len(own)}
        )


def _between_alterations(steps: Sequence[TableStep]) -> Iterator[list[TableStep]]:
    """The steps of a table; each list begins with other columns than the one before ended with."""
    part: list[TableStep] = []
    has_changes = False
    for step in steps:
        if has_changes and step.schema.columns != part[-1].schema.columns:
            yield part
            part, has_changes = [], False
        part.append(step)
        has_changes = has_changes or not isinstance(step, RelationEvent)
    if part:
        yield part
