"""What every destination promises: one suite, run against each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination, read_connection
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import InvalidState, Superseded
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch, TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.stores.memory import MemoryStore
from tests.support.changes import (
    INT4,
    INT8,
    NUMERIC,
    ORDERS,
    PRICES,
    READINGS,
    TEXT,
    VISITS,
    Change,
    Row,
    Transactions,
    batch,
    chunk,
    column,
    content,
    delete,
    end_of_copy,
    insert,
    relation,
    table,
    truncate,
    update,
)
from tests.support.receiver import HttpSubject


class Subject(Protocol):
    """A destination, and a way to see what is in it."""

    @property
    def destination(self) -> Destination: ...

    def rows(self, schema: TableSchema) -> list[Row]: ...

    def exists(self, schema: TableSchema) -> bool: ...

    def changelog(self) -> list[tuple[int, str, int, int]]: ...


class MemorySubject:
    def __init__(self) -> None:
        self.destination = MemoryDestination()

    def rows(self, schema: TableSchema) -> list[Row]:
        return self.destination.rows(schema.name)

    def exists(self, schema: TableSchema) -> bool:
        return any(t.schema.name == schema.name for t in self.destination.tables.values())

    def changelog(self) -> list[tuple[int, str, int, int]]:
        ops = {"Insert": "I", "Update": "U", "Delete": "D", "Truncate": "T"}
        return [
            (
                event.schema.id,
                ops[type(event).__name__.removesuffix("Event")],
                event.position.commit_lsn.offset,
                event.position.ordinal,
            )
            for event in self.destination.changelog
        ]


class DuckDBSubject:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.destination = DuckDBDestination(path, changelog=True)

    def rows(self, schema: TableSchema) -> list[Row]:
        with read_connection(self.path) as connection:
            found: list[Row] = (
                connection.table(f'"{schema.schema_name}"."{schema.table_name}"')
                .to_arrow_table()
                .to_pylist()
            )
            return found

    def exists(self, schema: TableSchema) -> bool:
        with read_connection(self.path) as connection:
            found = connection.execute(
                "FROM duckdb_tables() SELECT 1 WHERE schema_name = ? AND table_name = ?",
                [schema.schema_name, schema.table_name],
            ).fetchall()
        return bool(found)

    def changelog(self) -> list[tuple[int, str, int, int]]:
        with read_connection(self.path) as connection:
            return connection.execute("FROM _etl.changelog ORDER BY commit_lsn, ordinal").fetchall()


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "memory": lambda path: MemorySubject(),
    "duckdb": lambda path: DuckDBSubject(path / "warehouse.duckdb"),
    "http": lambda path: HttpSubject(),
}


@pytest.fixture(params=list(SUBJECTS))
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    subject = SUBJECTS[request.param](tmp_path)
    subject.destination.startup(MemoryStore())
    yield subject
    subject.destination.shutdown()


@pytest.fixture
def destination(subject: Subject) -> Destination:
    return subject.destination


def order(id: int, note: str | None = "new", **more: Any) -> Row:
    return {"id": id, "amount": None, "note": note, "document": None} | more


def copy(
    destination: Destination,
    schema: TableSchema,
    *chunks: list[Row],
    copy_id: str = "copy-1",
    replay_from: int = 0,
) -> None:
    destination.drop_table_for_copy(schema)
    for index, rows in enumerate(chunks):
        destination.write_table_rows(schema, chunk(copy_id, index, schema, rows))
    destination.write_table_rows(schema, end_of_copy(copy_id, replay_from))


def write(destination: Destination, *changes: Change) -> EventBatch:
    """Write one transaction."""
    events = batch(Transactions().commit(*changes))
    destination.write_events(events)
    return events


# -- the copy ----------------------------------------------------------------------------------


def test_a_copy_holds_the_rows_of_all_its_chunks(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1), order(2)], [order(3, "late")])

    assert content(subject.rows(ORDERS)) == content([order(1), order(2), order(3, "late")])


def test_the_end_of_a_copy_without_rows_leaves_an_empty_table(subject: Subject) -> None:
    copy(subject.destination, ORDERS)

    assert subject.exists(ORDERS)
    assert subject.rows(ORDERS) == []


def test_a_chunk_delivered_twice_is_there_once(subject: Subject) -> None:
    destination = subject.destination
    destination.drop_table_for_copy(ORDERS)
    for index in (0, 1, 0):
        rows = [order(10 * index + number) for number in range(3)]
        destination.write_table_rows(ORDERS, chunk("copy-1", index, ORDERS, rows))
    destination.write_table_rows(ORDERS, end_of_copy("copy-1"))

    assert len(subject.rows(ORDERS)) == 6


def test_the_end_of_a_copy_delivered_twice_keeps_what_was_written_since(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1)])
    write(subject.destination, insert(ORDERS, **order(2)))

    subject.destination.write_table_rows(ORDERS, end_of_copy("copy-1"))
    subject.destination.write_table_rows(ORDERS, chunk("copy-1", 0, ORDERS, [order(1)]))

    assert content(subject.rows(ORDERS)) == content([order(1), order(2)])


def test_a_chunk_whose_source_fails_leaves_nothing(subject: Subject) -> None:
    def failing() -> Iterator[Any]:
        yield from chunk("copy-1", 0, ORDERS, [order(1), order(2)]).batches()
        raise ConnectionError("the source went away")

    destination = subject.destination
    destination.drop_table_for_copy(ORDERS)
    whole = chunk("copy-1", 0, ORDERS, [order(1), order(2), order(3)])
    with pytest.raises(ConnectionError):
        destination.write_table_rows(ORDERS, TableRows("copy-1", failing(), whole.chunk))
    destination.write_table_rows(ORDERS, whole)
    destination.write_table_rows(ORDERS, end_of_copy("copy-1"))

    assert len(subject.rows(ORDERS)) == 3


def test_the_old_rows_stay_readable_until_the_next_copy_is_complete(subject: Subject) -> None:
    destination = subject.destination
    copy(destination, ORDERS, [order(1, "old")])

    destination.drop_table_for_copy(ORDERS)
    destination.write_table_rows(ORDERS, chunk("copy-2", 0, ORDERS, [order(1, "new")]))
    assert subject.rows(ORDERS) == [order(1, "old")]

    destination.write_table_rows(ORDERS, end_of_copy("copy-2"))
    assert subject.rows(ORDERS) == [order(1, "new")]


def test_an_abandoned_copy_adds_nothing_to_the_next(subject: Subject) -> None:
    destination = subject.destination
    destination.drop_table_for_copy(ORDERS)
    destination.write_table_rows(ORDERS, chunk("copy-1", 0, ORDERS, [order(1)]))
    destination.write_table_rows(ORDERS, chunk("copy-2", 0, ORDERS, [order(2)]))

    with pytest.raises(InvalidState, match="newer copy"):
        destination.write_table_rows(ORDERS, chunk("copy-1", 1, ORDERS, [order(3)]))
    destination.write_table_rows(ORDERS, end_of_copy("copy-2"))

    assert subject.rows(ORDERS) == [order(2)]


def test_a_worker_of_a_copy_that_was_given_up_is_refused(subject: Subject) -> None:
    destination = subject.destination
    destination.write_table_rows(ORDERS, chunk("copy-1", 0, ORDERS, [order(1)]))
    destination.drop_table_for_copy(ORDERS)

    with pytest.raises(InvalidState, match="newer copy"):
        destination.write_table_rows(ORDERS, chunk("copy-1", 1, ORDERS, [order(2)]))
    with pytest.raises(InvalidState, match="newer copy"):
        destination.write_table_rows(ORDERS, end_of_copy("copy-1"))


def test_changes_from_before_the_copy_are_skipped_and_those_since_applied(
    subject: Subject,
) -> None:
    stream = Transactions(first_lsn=1000)
    before = stream.commit(delete(ORDERS, id=1))
    since = stream.commit(update(ORDERS, **order(1, "since")))
    copy(subject.destination, ORDERS, [order(1)], replay_from=since[0].lsn)

    subject.destination.write_events(batch(before + since))

    assert subject.rows(ORDERS) == [order(1, "since")]


def test_a_sender_who_has_not_heard_of_the_newest_copy_changes_nothing(subject: Subject) -> None:
    stream = Transactions(first_lsn=1000)
    first = stream.commit(insert(ORDERS, **order(2)))
    second = stream.commit(update(ORDERS, **order(1, "late")))
    copy(subject.destination, ORDERS, [order(1)], replay_from=first[0].lsn)

    # It would move the position past the first change, which others still have to bring.
    stale = replace(batch(second), apply_from={ORDERS.id: Lsn(500)})
    subject.destination.write_events(stale)
    assert subject.rows(ORDERS) == [order(1)]

    known = replace(batch(first + second), apply_from={ORDERS.id: Lsn(first[0].lsn)})
    subject.destination.write_events(known)
    assert content(subject.rows(ORDERS)) == content([order(1, "late"), order(2)])


def test_a_row_that_both_copy_and_stream_bring_is_there_once(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1, "copied")])

    write(subject.destination, insert(ORDERS, **order(1, "streamed")))

    assert subject.rows(ORDERS) == [order(1, "streamed")]


def test_a_row_that_two_chunks_brought_is_one_again_after_its_update(subject: Subject) -> None:
    """It moved between the chunks' snapshots, so its update is in the stream."""
    copy(subject.destination, ORDERS, [order(1, "before")], [order(1, "after")])

    write(subject.destination, update(ORDERS, **order(1, "after")))

    assert subject.rows(ORDERS) == [order(1, "after")]


def test_a_row_that_two_chunks_brought_is_one_again_beside_an_unchanged_value(
    subject: Subject,
) -> None:
    copy(subject.destination, ORDERS, [order(1), order(2)], [order(1)])

    write(
        subject.destination,
        update(ORDERS, **order(1, "after")),
        update(ORDERS, unchanged=["document"], id=2, note="x"),
    )

    assert content(subject.rows(ORDERS)) == content([order(1, "after"), order(2, "x")])


# -- changes by key ----------------------------------------------------------------------------


def test_the_last_of_many_changes_of_a_row_stands(subject: Subject) -> None:
    write(
        subject.destination,
        insert(ORDERS, **order(1, "a")),
        insert(ORDERS, **order(2, "b")),
        update(ORDERS, **order(1, "c")),
        delete(ORDERS, id=2),
        update(ORDERS, **order(1, "d")),
    )

    assert subject.rows(ORDERS) == [order(1, "d")]


def test_a_key_that_is_deleted_and_inserted_again_has_its_new_row(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1, "old")])

    write(subject.destination, delete(ORDERS, id=1), insert(ORDERS, **order(1, "new")))

    assert subject.rows(ORDERS) == [order(1, "new")]


def test_a_changed_key_moves_the_row(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1, "kept"), order(2)])

    write(subject.destination, update(ORDERS, old={"id": 1}, **order(7, "kept")))

    assert content(subject.rows(ORDERS)) == content([order(7, "kept"), order(2)])


def test_two_rows_can_swap_their_keys(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1, "one"), order(2, "two")])

    write(
        subject.destination,
        update(ORDERS, old={"id": 1}, **order(3, "one")),
        update(ORDERS, old={"id": 2}, **order(1, "two")),
        update(ORDERS, old={"id": 3}, **order(2, "one")),
    )

    assert content(subject.rows(ORDERS)) == content([order(1, "two"), order(2, "one")])


def test_a_key_of_several_columns_identifies_a_row(subject: Subject) -> None:
    prices = [{"sku": s, "region": r, "price": 1} for s in ("a", "b") for r in (1, 2)]
    copy(subject.destination, PRICES, prices)

    write(
        subject.destination,
        update(PRICES, sku="a", region=2, price=5),
        delete(PRICES, sku="b", region=1),
    )

    assert content(subject.rows(PRICES)) == content(
        [
            {"sku": "a", "region": 1, "price": 1},
            {"sku": "a", "region": 2, "price": 5},
            {"sku": "b", "region": 2, "price": 1},
        ]
    )


def test_an_unchanged_value_stays_what_the_destination_has(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1, document="long"), order(2, document="other")])

    write(
        subject.destination,
        update(ORDERS, unchanged=["document"], id=1, note="x"),
        update(ORDERS, **order(2, "y", document="short")),
    )

    assert content(subject.rows(ORDERS)) == content(
        [order(1, "x", document="long"), order(2, "y", document="short")]
    )


def test_an_unchanged_value_is_the_last_one_known_in_the_batch(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1, document="before")])

    write(
        subject.destination,
        update(ORDERS, **order(1, document="in the batch")),
        update(ORDERS, unchanged=["document"], id=1, note="x"),
        update(ORDERS, unchanged=["document"], id=1, note="y"),
    )

    assert subject.rows(ORDERS) == [order(1, "y", document="in the batch")]


def test_an_unchanged_value_follows_its_row_to_another_key(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1, document="one"), order(2, document="two")])

    write(
        subject.destination,
        update(ORDERS, old={"id": 1}, unchanged=["document"], id=3, note="x"),
        update(ORDERS, old={"id": 2}, unchanged=["document"], id=1, note="y"),
        update(ORDERS, unchanged=["document"], id=1, note="z"),
    )

    assert content(subject.rows(ORDERS)) == content(
        [order(3, "x", document="one"), order(1, "z", document="two")]
    )


def test_a_row_inserted_anew_keeps_nothing_of_the_one_before(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1, document="before")])

    write(
        subject.destination,
        delete(ORDERS, id=1),
        insert(ORDERS, **order(1)),
        update(ORDERS, **order(1, "x")),
    )

    assert subject.rows(ORDERS) == [order(1, "x")]


# -- without a key -----------------------------------------------------------------------------


def test_rows_without_a_key_are_appended(subject: Subject) -> None:
    copy(subject.destination, VISITS, [{"page": "/", "at": 1}])

    write(subject.destination, insert(VISITS, page="/", at=1), insert(VISITS, page="/a", at=2))

    assert content(subject.rows(VISITS)) == content(
        [{"page": "/", "at": 1}, {"page": "/", "at": 1}, {"page": "/a", "at": 2}]
    )


def test_of_several_equal_rows_one_is_deleted_for_each_delete(subject: Subject) -> None:
    same = {"sensor": "a", "value": None, "blob": None}
    copy(subject.destination, READINGS, [same] * 5)

    write(subject.destination, delete(READINGS, **same), delete(READINGS, **same))

    assert subject.rows(READINGS) == [same] * 3


def test_an_update_without_a_key_replaces_one_equal_row(subject: Subject) -> None:
    first: Row = {"sensor": "a", "value": 1, "blob": "large"}
    second: Row = {"sensor": "b", "value": None, "blob": None}
    copy(subject.destination, READINGS, [first, first, second])

    write(
        subject.destination,
        update(READINGS, old=first, unchanged=["blob"], sensor="a", value=2),
        update(READINGS, old=second, **second | {"value": 7}),
        insert(READINGS, **second),
    )

    assert content(subject.rows(READINGS)) == content(
        [first, first | {"value": 2}, second | {"value": 7}, second]
    )


# -- truncate ----------------------------------------------------------------------------------


def test_a_truncate_empties_its_table_only(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1)])
    copy(subject.destination, VISITS, [{"page": "/", "at": 1}])

    write(
        subject.destination,
        insert(ORDERS, **order(2)),
        truncate(ORDERS),
        insert(ORDERS, **order(3)),
    )

    assert subject.rows(ORDERS) == [order(3)]
    assert len(subject.rows(VISITS)) == 1


def test_a_truncate_delivered_again_keeps_the_rows_since(subject: Subject) -> None:
    stream = Transactions()
    emptied = stream.commit(truncate(ORDERS))
    since = stream.commit(insert(ORDERS, **order(1)))
    for changes in (emptied, since, emptied, emptied + since):
        subject.destination.write_events(batch(changes))

    assert subject.rows(ORDERS) == [order(1)]


# -- exactly once ------------------------------------------------------------------------------


def test_a_batch_delivered_again_changes_nothing(subject: Subject) -> None:
    stream = Transactions()
    first = stream.commit(insert(VISITS, page="/", at=1), insert(ORDERS, **order(1)))
    second = stream.commit(insert(VISITS, page="/", at=2), update(ORDERS, **order(1, "x")))
    for changes in (first, first, first + second, second, first):
        subject.destination.write_events(batch(changes))

    assert [row["at"] for row in subject.rows(VISITS)] == [1, 2]
    assert subject.rows(ORDERS) == [order(1, "x")]
    assert subject.changelog() == [
        (VISITS.id, "I", 1000, 0),
        (ORDERS.id, "I", 1000, 1),
        (VISITS.id, "I", 1100, 0),
        (ORDERS.id, "U", 1100, 1),
    ]


def test_a_batch_cut_inside_a_transaction_goes_on_where_it_was_cut(subject: Subject) -> None:
    changes = Transactions().commit(*(insert(VISITS, page="/", at=n) for n in range(10)))
    for stretch in (changes[:4], changes[2:7], changes):
        subject.destination.write_events(batch(stretch))

    assert [row["at"] for row in subject.rows(VISITS)] == list(range(10))


def test_an_empty_batch_is_accepted(subject: Subject) -> None:
    subject.destination.write_events(batch([]))


def test_an_older_epoch_is_refused_and_writes_nothing(subject: Subject) -> None:
    stream = Transactions()
    first, second, third = (stream.commit(insert(VISITS, page="/", at=n)) for n in range(3))
    subject.destination.write_events(batch(first, epoch=2))
    with pytest.raises(Superseded):
        subject.destination.write_events(batch(second, epoch=1))
    subject.destination.write_events(batch(third, epoch=0))

    assert [row["at"] for row in subject.rows(VISITS)] == [0, 2]


# -- schema changes ----------------------------------------------------------------------------


def test_columns_are_added_dropped_renamed_and_change_their_type(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1, "first")])
    altered = table(
        [
            column("id", INT8, 1, key=1),
            column("comment", TEXT, 3),
            column("total", NUMERIC, 2, type_modifier=((20 << 16) | 4) + 4),
            column("quantity", INT4, 5),
        ],
        snapshot=900,
    )

    write(
        subject.destination,
        relation(altered),
        insert(altered, id=2, comment="second", total=Decimal(3), quantity=4),
        relation(altered),
    )

    rows = subject.rows(altered)
    assert content(rows) == content(
        [
            {"id": 1, "comment": "first", "total": None, "quantity": None},
            {"id": 2, "comment": "second", "total": Decimal(3), "quantity": 4},
        ]
    )


def test_columns_can_swap_their_names(subject: Subject) -> None:
    copy(subject.destination, ORDERS, [order(1, "note", document="document")])
    first, second, third, fourth = ORDERS.columns
    swapped = table(
        [first, second, column("document", TEXT, 3), column("note", TEXT, 4)], snapshot=900
    )
    assert (third.name, fourth.name) == ("note", "document")

    write(subject.destination, relation(swapped))

    assert subject.rows(swapped) == [order(1, "document", document="note")]


@pytest.mark.parametrize(("schema_name", "name"), [("public", "purchases"), ("sales", "orders")])
def test_a_renamed_table_keeps_its_rows(subject: Subject, schema_name: str, name: str) -> None:
    copy(subject.destination, ORDERS, [order(1)])
    renamed = table(ORDERS.columns, name=name, schema_name=schema_name, snapshot=900)

    write(subject.destination, relation(renamed), insert(renamed, **order(2)))

    assert content(subject.rows(renamed)) == content([order(1), order(2)])
    assert not subject.exists(ORDERS)


def test_a_change_of_schema_between_changes_applies_to_those_after_it(subject: Subject) -> None:
    wider = table([*ORDERS.columns, column("extra", INT4, 9)], snapshot=900)

    write(
        subject.destination,
        insert(ORDERS, **order(1)),
        relation(wider),
        insert(wider, **order(2, extra=5)),
        truncate(wider),
        insert(wider, **order(3, extra=6)),
    )

    assert subject.rows(wider) == [order(3, extra=6)]


def test_an_older_schema_delivered_again_does_not_undo_the_newer(subject: Subject) -> None:
    wider = table([*ORDERS.columns, column("extra", INT4, 9)], snapshot=1100)
    stream = Transactions()
    old = stream.commit(relation(ORDERS), insert(ORDERS, **order(1)))
    new = stream.commit(relation(wider), insert(wider, **order(2, extra=5)))
    for changes in (old, new, old, old + new):
        subject.destination.write_events(batch(changes))

    assert content(subject.rows(wider)) == content([order(1, extra=None), order(2, extra=5)])


def test_what_is_delivered_again_does_not_undo_a_newer_schema(subject: Subject) -> None:
    """After a crash, the sender numbers the old schema anew, past the newer one."""
    wider = table([*ORDERS.columns, column("extra", INT4, 9)], snapshot=1100)
    again = table(ORDERS.columns, snapshot=1200)
    stream = Transactions()
    old = stream.commit(relation(ORDERS), insert(ORDERS, **order(1)))
    new = stream.commit(relation(wider), insert(wider, **order(2, extra=5)))
    subject.destination.write_events(batch(old + new))

    old_again = Transactions().commit(relation(again), insert(again, **order(1)))
    subject.destination.write_events(batch(old_again))

    assert content(subject.rows(wider)) == content([order(1, extra=None), order(2, extra=5)])


def test_an_undone_change_of_schema_is_followed(subject: Subject) -> None:
    """Its number may be any: what comes past the position is newer than what is there."""
    wider = table([*ORDERS.columns, column("extra", INT4, 9)], snapshot=1100)

    write(subject.destination, insert(wider, **order(1, extra=5)), insert(ORDERS, **order(2)))

    assert content(subject.rows(ORDERS)) == content([order(1), order(2)])
