"""How a stretch of the stream is divided into load packages of dlt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from etl_dagster.destinations.dlt.changes import Round, Stretches
from etl_dagster.destinations.dlt.entries import Identity
from etl_dagster.destinations.dlt.lane import Lane
from etl_dagster.destinations.dlt.ledger import TableEntry, ledger_from_json, ledger_to_json
from etl_dagster.destinations.dlt.log import Log
from etl_dagster.destinations.dlt.names import DltNames
from etl_dagster.destinations.dlt.places import Place
from etl_dagster.destinations.dlt.rows import DELETED, LoadedTable
from etl_dagster.errors import DestinationTooNew, RowsOutdated, TableWriteFailed
from etl_dagster.lsn import Lsn
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import (
    INT4,
    INT8,
    ORDERS,
    READINGS,
    TEXT,
    VISITS,
    Change,
    Transactions,
    batch,
    column,
    delete,
    insert,
    order,
    relation,
    table,
    truncate,
    update,
)

LOGGED = replace(ORDERS, mode="append")
WIDER = table([*ORDERS.columns, column("extra", INT4, 9)], snapshot=900)


class Logs:
    """A place with entries of changes that come again, and one row to look values up in."""

    def __init__(self, *there: Change, newest: dict[str, Any] | None = None) -> None:
        self._there = there
        self._newest = newest or {}

    def newest_lsn(self, lane: Lane, shape: LoadedTable, since: int) -> int:
        return max((change.lsn for change in self._there if change.lsn >= since), default=0)

    def identities(self, lane: Lane, shape: LoadedTable, first: int, last: int) -> set[Identity]:
        found = [change for change in self._there if first <= change.lsn <= last]
        return {(change.lsn, change.ordinal, change.lsn) for change in found}

    def newest(
        self,
        lane: Lane,
        shape: LoadedTable,
        columns: Sequence[str],
        keys: pa.RecordBatch,
        before: Position,
    ) -> pa.RecordBatch:
        arrays = [
            pa.array([self._newest.get(name)] * len(keys), shape.arrow.field(name).type)
            for name in columns
        ]
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def rounds(
    changes: Sequence[Change],
    *,
    known: TableSchema | None = ORDERS,
    entry: TableEntry | None = None,
    held: Sequence[dict[str, Any]] = (),
    logs: Logs | None = None,
) -> list[Round]:
    """Those of the one table that the changes are of; `held` are rows at the destination."""

    def fetch(shape: LoadedTable, columns: Sequence[str], keys: pa.RecordBatch) -> pa.RecordBatch:
        by_id = {row["id"]: row for row in held}
        rows = [by_id.get(key, {}) for key in keys["id"].to_pylist()]
        arrays = [
            pa.array([row.get(n) for row in rows], shape.arrow.field(n).type) for n in columns
        ]
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))

    [steps] = batch(changes).tables.values()
    log = Log(cast(Place, logs or Logs()), cast(Lane, SimpleNamespace(opened=1)))
    stretches = Stretches(DltNames("{schema}").shape, fetch, log)
    return list(stretches.rounds(steps, known, entry or TableEntry()))


def loaded(one: Round) -> list[dict[str, Any]]:
    return [row for each in one.part.batches for row in each.to_pylist()]


def test_only_the_newest_row_of_a_key_is_loaded_and_keys_that_are_gone_are_marked() -> None:
    changes = Transactions().commit(
        insert(ORDERS, **order(1, "a")),
        update(ORDERS, **order(1, "b")),
        insert(ORDERS, **order(2)),
        delete(ORDERS, id=2),
        update(ORDERS, old={"id": 3}, **order(4)),
    )

    [one] = rounds(changes)

    assert (one.part.disposition, one.part.key) == ("merge", ("id",))
    assert {(row["id"], row["note"], row[DELETED]) for row in loaded(one)} == {
        (1, "b", None),
        (4, "new", None),
        (2, None, True),
        (3, None, True),
    }
    assert one.entry.position == changes[-1].position


def test_what_was_loaded_with_a_complete_package_is_left_out() -> None:
    changes = Transactions().commit(insert(ORDERS, **order(1)), insert(ORDERS, **order(2)))

    [one] = rounds(changes, entry=TableEntry(position=changes[0].position))
    none = rounds(changes, entry=TableEntry(position=changes[1].position))

    assert [row["id"] for row in loaded(one)] == [2]
    assert none == []


def test_a_value_that_was_not_sent_is_the_one_at_the_destination() -> None:
    changes = Transactions().commit(
        update(ORDERS, unchanged=["document"], id=1, note="x"),
        update(ORDERS, unchanged=["document"], old={"id": 2}, id=5, note="y"),
        insert(ORDERS, **order(3, document="new")),
    )

    [one] = rounds(changes, held=[{"id": 1, "document": "kept"}, {"id": 2, "document": "moved"}])

    found = {row["id"]: row["document"] for row in loaded(one) if not row[DELETED]}
    assert found == {1: "kept", 5: "moved", 3: "new"}


def test_a_row_that_was_moved_before_its_process_ended_has_its_values_at_the_new_key() -> None:
    """The package comes again, and the destination has the row under its new key already."""
    changes = Transactions().commit(
        update(ORDERS, unchanged=["document"], old={"id": 2}, id=5, note="y")
    )

    [one] = rounds(changes, held=[{"id": 5, "document": "moved"}])

    assert [row["document"] for row in loaded(one) if not row[DELETED]] == ["moved"]


def test_nothing_from_before_a_truncate_is_loaded() -> None:
    stream = Transactions()
    changes = stream.commit(insert(ORDERS, **order(1)), truncate(ORDERS))
    since = stream.commit(insert(ORDERS, **order(2)))

    [alone] = rounds(changes)
    [both] = rounds([*changes, *since])

    assert (alone.part.disposition, loaded(alone)) == ("replace", [])
    assert (both.part.disposition, [row["id"] for row in loaded(both)]) == ("replace", [2])


def test_rows_under_two_schemas_are_in_two_packages() -> None:
    changes = Transactions().commit(
        insert(ORDERS, **order(1)), relation(WIDER), insert(WIDER, **order(2, extra=5))
    )

    names = [one.part.schema.names for one in rounds(changes)]

    assert ["extra" in each for each in names] == [False, True, True]


def test_a_new_column_is_added_though_no_row_follows() -> None:
    [one] = rounds(Transactions().commit(relation(WIDER)))

    assert one.part.disposition == "append"
    assert "extra" in one.part.schema.names
    assert loaded(one) == []


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (table(ORDERS.columns, name="purchases", snapshot=900), "was called public.orders"),
        (table([*ORDERS.columns[:3], column("paper", TEXT, 4)], snapshot=900), "called 'paper'"),
        (table([*ORDERS.columns[:3], column("document", INT8, 4)], snapshot=900), "another type"),
        (
            table([*ORDERS.columns[:2], column("note", TEXT, 3, key=2)], snapshot=900),
            "has another key",
        ),
    ],
    ids=["table renamed", "column renamed", "another type", "another key"],
)
def test_after_a_change_that_dlt_cannot_make_a_table_is_copied_again(
    after: TableSchema, why: str
) -> None:
    with pytest.raises(RowsOutdated, match=why):
        rounds(Transactions().commit(relation(after), insert(after, id=1)))


def test_a_column_that_is_dropped_and_added_again_does_not_get_its_old_values_back() -> None:
    without = table(ORDERS.columns[:3], snapshot=900)
    again = table([*ORDERS.columns[:3], column("document", TEXT, 9)], snapshot=950)
    stream = Transactions()
    *_, last = rounds(stream.commit(relation(without), insert(without, id=1)))
    assert last.entry.dropped == ("document",)

    with pytest.raises(RowsOutdated, match="values of one that had this name before"):
        rounds(stream.commit(relation(again)), known=without, entry=last.entry)


def test_rows_without_a_key_are_appended_and_never_found_again() -> None:
    [one] = rounds(Transactions().commit(insert(VISITS, page="/", at=1)), known=None)
    assert (one.part.disposition, loaded(one)) == ("append", [{"page": "/", "at": 1}])

    first = {"sensor": "a", "value": 1, "blob": None}
    for change in (delete(READINGS, **first), update(READINGS, old=first, **first)):
        with pytest.raises(TableWriteFailed, match="readings has no key") as raised:
            rounds(Transactions().commit(change), known=None)
        assert "primary key" in raised.value.solution


def test_in_mode_append_every_change_is_a_row_even_before_a_truncate() -> None:
    changes = Transactions().commit(
        insert(LOGGED, **order(1, "a")),
        update(LOGGED, **order(1, "b")),
        delete(LOGGED, id=1),
        truncate(LOGGED),
    )

    found = rounds(changes, known=LOGGED)

    rows = [row for one in found for row in loaded(one)]
    assert [(row["_etl_op"], row["_etl_ordinal"], row["id"], row["note"]) for row in rows] == [
        ("insert", 0, 1, "a"),
        ("update", 1, 1, "b"),
        ("delete", 2, 1, None),
        ("truncate", 3, None, None),
    ]
    assert {(one.part.disposition, one.part.key) for one in found} == {("append", ())}


def test_a_change_that_the_log_has_already_is_left_out() -> None:
    """A package whose process died may have brought some rows, perhaps in another order."""
    changes = Transactions().commit(*(insert(LOGGED, **order(n)) for n in range(4)))

    [one] = rounds(changes, known=LOGGED, logs=Logs(changes[2], changes[0]))

    assert [row["id"] for row in loaded(one)] == [1, 3]


def test_a_value_that_was_not_sent_is_the_last_logged_one_or_named() -> None:
    same = ["document"]
    stream = Transactions()
    changes = stream.commit(update(LOGGED, unchanged=same, id=1, note="x"))

    [known] = rounds(changes, known=LOGGED, logs=Logs(newest={"document": "kept"}))
    [unknown] = rounds(changes, known=LOGGED)

    assert [(r["document"], r["_etl_unchanged"]) for r in loaded(known)] == [("kept", None)]
    assert [(r["document"], r["_etl_unchanged"]) for r in loaded(unknown)] == [
        (None, '["document"]')
    ]


def test_two_names_that_become_one_are_refused() -> None:
    names = DltNames("warehouse", str.lower)
    other = table(ORDERS.columns, table_id=9, schema_name="sales")
    columns = table([column("id", INT8, 1, key=1), column("Id", TEXT, 2)], table_id=10, name="x")

    found = names.clashes([ORDERS, other, columns])

    assert [text for text in found if "sales.orders would be the same table" in text]
    assert [text for text in found if "'id', 'Id'" in text]
    assert len(found) == 2


def test_what_is_kept_of_a_table_is_read_as_it_was_written() -> None:
    entry = TableEntry(Position(Lsn(2**40), 7), 2**33, "copy-1", False, {3: "t"}, ("gone",))

    assert TableEntry.from_json(entry.to_json()) == entry
    assert TableEntry.from_json({}) == TableEntry()


def test_what_a_later_version_has_kept_is_refused() -> None:
    """Read as the present format, its positions could mean something else."""
    kept = ledger_to_json({1: TableEntry()}, epoch=1, package="p")
    assert ledger_from_json(kept) == {1: TableEntry()}

    with pytest.raises(DestinationTooNew, match="a newer version of etl_dagster"):
        ledger_from_json(kept | {"format": 2})
