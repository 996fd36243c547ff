"""Batches in which columns change after rows: what goes into which transaction."""

from __future__ import annotations

from dataclasses import replace

from etl_dagster.destinations.duckdb.parts import parts
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch
from etl_dagster.testing.changes import (
    INT4,
    ORDERS,
    TEXT,
    Change,
    Transactions,
    batch,
    column,
    delete,
    insert,
    relation,
    table,
    truncate,
)

WIDER = replace(
    ORDERS,
    columns=(*ORDERS.columns, column("more", INT4, len(ORDERS.columns) + 1)),
    snapshot_id=Lsn(1),
)
RENAMED = replace(ORDERS, table_name="renamed", snapshot_id=Lsn(1))
OTHERS = table([column("id", INT4, 1, key=1), column("note", TEXT, 2)], table_id=16600, name="o")


def steps(events: EventBatch) -> list[dict[str, list[str]]]:
    """What each part holds of each table, as the kinds of its events."""
    return [
        {
            own[0].schema.table_name: [type(step).__name__ for step in own]
            for own in part.tables.values()
        }
        for part in parts(events)
    ]


def one_transaction(*changes: Change) -> EventBatch:
    return batch(Transactions().commit(*changes))


def test_a_batch_without_other_columns_stays_as_it_is() -> None:
    events = one_transaction(
        insert(ORDERS, id=1), truncate(ORDERS), relation(RENAMED), delete(RENAMED, id=1)
    )

    assert list(parts(events)) == [events]


def test_columns_that_change_before_rows_need_no_second_part() -> None:
    events = one_transaction(relation(ORDERS), relation(WIDER), delete(WIDER, id=1))

    assert list(parts(events)) == [events]


def test_columns_that_change_after_rows_begin_another_part() -> None:
    events = one_transaction(
        delete(ORDERS, id=1), relation(WIDER), delete(WIDER, id=2), insert(OTHERS, id=1)
    )

    assert steps(events) == [
        {"orders": ["TableChanges"], "o": ["TableChanges"]},
        {"orders": ["RelationEvent", "TableChanges"]},
    ]


def test_only_the_last_part_ends_what_the_batch_ends() -> None:
    events = one_transaction(truncate(ORDERS), relation(WIDER), insert(WIDER, id=1))

    first, last = parts(events)

    assert events.commit_end_lsn is not None
    assert (first.commit_end_lsn, first.more_follows) == (None, True)
    assert (last.commit_end_lsn, last.more_follows) == (events.commit_end_lsn, False)
