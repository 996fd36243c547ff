"""Changes of a batch are reduced to what they amount to."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from etl_dagster.destinations.collapse import Collapsed, added_and_removed, collapse
from etl_dagster.destinations.versions import every_row
from etl_dagster.model.events import TableChanges
from etl_dagster.testing.changes import (
    ORDERS,
    READINGS,
    Change,
    Row,
    Transactions,
    batch,
    delete,
    insert,
    update,
)


def changes_of(*changes: Change) -> TableChanges:
    events = batch(Transactions().commit(*changes))
    [[step]] = events.tables.values()
    assert isinstance(step, TableChanges)
    return step


def collapsed(*changes: Change) -> Collapsed:
    return collapse(changes_of(*changes), ("id",))


def ids(rows: Any) -> list[int]:
    return sorted(row["id"] for row in rows.to_pylist())


def test_new_rows_in_the_order_of_their_key_are_passed_on_as_they_are() -> None:
    """The usual case of a growing table must not cost a copy."""
    changes = changes_of(*(insert(ORDERS, id=number) for number in range(5)))

    assert collapse(changes, ("id",)).rows is changes.rows


def test_the_last_change_of_a_key_decides() -> None:
    result = collapsed(
        insert(ORDERS, id=1, note="a"), delete(ORDERS, id=2), update(ORDERS, id=1, note="b")
    )

    assert ids(result.removed) == [1, 2]
    assert [(row["id"], row["note"]) for row in result.rows.to_pylist()] == [(1, "b")]


def test_a_row_inserted_and_deleted_is_only_removed() -> None:
    result = collapsed(insert(ORDERS, id=1), delete(ORDERS, id=1))

    assert ids(result.removed) == [1]
    assert len(result.rows) == 0


def test_keys_without_a_row_at_the_destination_are_told_apart() -> None:
    """A key that was inserted first and still has a row at the end needs no delete."""
    plain = collapsed(insert(ORDERS, id=1), update(ORDERS, id=2), delete(ORDERS, id=3))
    repeated = collapsed(
        insert(ORDERS, id=1),
        update(ORDERS, id=2),
        update(ORDERS, id=1),
        insert(ORDERS, id=3),
        delete(ORDERS, id=4),
        delete(ORDERS, id=3),
        insert(ORDERS, id=4),
    )
    moved = collapsed(
        insert(ORDERS, id=1),
        update(ORDERS, old={"id": 1}, id=2),
        insert(ORDERS, id=3),
        update(ORDERS, old={"id": 4}, id=5),
    )

    assert ids(plain.replaced) == [2, 3]
    assert ids(repeated.replaced) == [2, 3, 4]
    assert ids(moved.replaced) == [1, 2, 4, 5]


def test_a_changed_key_removes_the_old_one() -> None:
    result = collapsed(insert(ORDERS, id=1), update(ORDERS, old={"id": 1}, id=2))

    assert ids(result.removed) == [1, 2]
    assert ids(result.rows) == [2]


def test_a_key_that_is_taken_again_after_it_moved_away_has_the_new_row() -> None:
    result = collapsed(
        update(ORDERS, old={"id": 1}, id=2, note="moved"), insert(ORDERS, id=1, note="new")
    )

    assert {row["id"]: row["note"] for row in result.rows.to_pylist()} == {1: "new", 2: "moved"}


def test_an_unchanged_value_that_was_not_sent_is_looked_up_by_the_first_key_of_its_row() -> None:
    result = collapsed(
        update(ORDERS, old={"id": 1}, unchanged=["document"], id=2),
        update(ORDERS, old={"id": 2}, unchanged=["document"], id=3),
        update(ORDERS, id=9, document="told"),
    )

    assert ids(result.rows) == [3, 9]
    assert result.lookup is not None
    unknown = dict(zip(ids(result.rows), result.unknown["document"].tolist(), strict=True))
    assert unknown == {3: True, 9: False}
    assert result.lookup.to_pylist()[0] == {"id": 1}


def test_an_unchanged_value_sent_earlier_in_the_batch_needs_no_lookup() -> None:
    result = collapsed(
        insert(ORDERS, id=1, document="told"),
        update(ORDERS, old={"id": 1}, unchanged=["document"], id=2),
    )

    assert result.unknown == {}
    assert [row["document"] for row in result.rows.to_pylist()] == ["told"]


@pytest.mark.parametrize("reduce", [collapse, every_row], ids=lambda each: each.__name__)
def test_a_row_that_changes_very_often_costs_no_more_than_many_rows(reduce: Any) -> None:
    """A counter next to a large value, which Postgres leaves out of each of its updates."""
    one, count = changes_of(update(ORDERS, unchanged=["document"], id=1)), 50_000
    changes = replace(
        one,
        ops=one.ops.repeat(count),
        commit_lsns=one.commit_lsns.repeat(count),
        ordinals=np.arange(count),
        commit_times_us=one.commit_times_us.repeat(count),
        sequence=np.arange(count),
        rows=one.rows.take(pa.array(np.zeros(count, np.int64))),
        unchanged={"document": np.ones(count, bool)},
    )
    began = time.process_time()

    result = reduce(changes, ("id",))

    assert time.process_time() - began < 2.0
    assert result.unknown["document"].all()


def test_under_full_identity_the_old_row_supplies_unchanged_values() -> None:
    before: Row = {"sensor": "a", "value": 1, "blob": "large"}
    added, removed = added_and_removed(
        changes_of(
            update(READINGS, old=before, unchanged=["blob"], sensor="a", value=2),
            delete(READINGS, sensor="b"),
            insert(READINGS, sensor="c"),
        )
    )

    assert removed is not None
    assert added.to_pylist() == [
        before | {"value": 2},
        {"sensor": "c", "value": None, "blob": None},
    ]
    assert removed.to_pylist() == [{"sensor": "b", "value": None, "blob": None}, before]
