"""A batch holds the same whether it is read by columns or event by event."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from etl_dagster.model.events import (
    BeginEvent,
    CommitEvent,
    Event,
    EventBatch,
    InsertEvent,
    RelationEvent,
    RowEvent,
    TableChanges,
    TruncateEvent,
)
from etl_dagster.testing.changes import (
    INT4,
    ORDERS,
    VISITS,
    Change,
    Transactions,
    batch,
    column,
    insert,
    order,
    relation,
    truncate,
)
from etl_dagster.testing.random_changes import RandomSource, random_transactions


def _by_columns(events: EventBatch) -> list[tuple[str, int, int, object]]:
    """Operation, commit LSN, ordinal and row of every change, table by table."""
    found: list[tuple[str, int, int, object]] = []
    for steps in events.tables.values():
        for step in steps:
            if isinstance(step, TruncateEvent):
                position = step.position
                found.append(("T", position.commit_lsn.offset, position.ordinal, None))
            elif isinstance(step, TableChanges):
                rows = step.rows.to_pylist()
                for index, (op, row) in enumerate(zip(step.ops.tolist(), rows, strict=True)):
                    lsn, ordinal = int(step.commit_lsns[index]), int(step.ordinals[index])
                    for name, mask in step.unchanged.items():
                        if mask[index]:
                            assert row.pop(name) is None
                    found.append((chr(op), lsn, ordinal, row))
    return found


def _by_events(events: EventBatch) -> list[tuple[str, int, int, object]]:
    return [
        (
            type(event).__name__[0],
            event.position.commit_lsn.offset,
            event.position.ordinal,
            event.row if isinstance(event, RowEvent) else None,
        )
        for event in events
        if isinstance(event, RowEvent | TruncateEvent)
    ]


def _place(entry: tuple[str, int, int, object]) -> tuple[int, int]:
    return entry[1:3]


@pytest.mark.parametrize("seed", range(20))
def test_columns_and_events_hold_the_same_changes_and_the_events_are_in_order(seed: int) -> None:
    random = Random(seed)
    source = RandomSource()
    source.run(random_transactions(random))
    changes = source.stream.changes
    start = random.randrange(len(changes) // 2)
    events = batch(changes[start : random.randint(start + 1, len(changes))])

    told = _by_events(events)
    assert told == sorted(_by_columns(events), key=_place)
    assert told == sorted(told, key=_place)


def test_marks_enclose_the_changes_of_their_transaction() -> None:
    stream = Transactions()
    changes = stream.commit(insert(ORDERS, **order(1)), insert(VISITS, page="/", at=1))
    changes += stream.commit(truncate(ORDERS))
    events = list(batch(changes))

    assert [type(event).__name__.removesuffix("Event") for event in events] == [
        *("Begin", "Insert", "Insert", "Commit"),
        *("Begin", "Truncate", "Commit"),
    ]
    assert [event.sequence for event in events] == list(range(len(events)))
    assert [_commit_lsn(event) for event in events] == [1000] * 4 + [1100] * 3


def _commit_lsn(event: Event) -> int:
    if isinstance(event, BeginEvent | CommitEvent):
        return event.commit_lsn.offset
    assert not isinstance(event, RelationEvent)
    return event.position.commit_lsn.offset


def test_a_transaction_cut_in_two_has_its_begin_in_one_batch_and_its_commit_in_the_other() -> None:
    changes = Transactions().commit(*(insert(VISITS, page="/", at=n) for n in range(4)))
    first, second = batch(changes[:2]), batch(changes[2:])

    assert [type(mark) for mark in first.marks] == [BeginEvent]
    assert [type(mark) for mark in second.marks] == [CommitEvent]
    assert first.commit_end_lsn is None
    assert second.commit_end_lsn is not None


def test_a_change_of_schema_stands_before_the_changes_that_have_it() -> None:
    wider = replace(ORDERS, columns=(*ORDERS.columns, column("extra", INT4, 9)))
    changes: list[Change] = Transactions().commit(
        insert(ORDERS, **order(1)), relation(wider), insert(wider, **order(2, extra=5))
    )
    _, before, change, after, _ = batch(changes)

    assert isinstance(before, InsertEvent)
    assert isinstance(change, RelationEvent)
    assert isinstance(after, InsertEvent)
    assert (before.schema, change.schema, after.schema) == (ORDERS, wider, wider)
