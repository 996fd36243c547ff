"""What a destination promises that keeps rows apart while a column can't hold their value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.testing.changes import (
    INT4,
    ORDERS,
    Row,
    Unheld,
    column,
    delete,
    insert,
    order,
    relation,
    truncate,
    update,
)
from etl_dagster.testing.oddities import kept_texts
from etl_dagster.testing.subject import DestinationChecks, Subject, needs, require_same_rows

_NAN, _BYTES = Unheld("NaN"), Unheld("\\xFF")
#: `amount` and `document` keep a row apart; what `note` can't hold is null in the table.
HOLDING = replace(
    ORDERS,
    columns=tuple(
        replace(column, quarantine=column.name in ("amount", "document"))
        for column in ORDERS.columns
    ),
)


class QuarantineChecks(DestinationChecks):
    """A row is in its table or in quarantine, whole, and never in both."""

    @needs("quarantine", "read_quarantined", "mirror")
    def test_a_row_that_can_not_be_held_is_kept_apart_whole(self, subject: Subject) -> None:
        subject.copy(
            HOLDING,
            [order(1, "one", amount=_NAN), order(2, "two")],
            [order(3, note=_BYTES), order(4, "four", document=_BYTES)],
        )
        _has(subject, [order(2, "two"), order(3, None)], [order(1, "one"), order(4, "four")])

        subject.write(
            insert(HOLDING, **order(5, "five", amount=_NAN)),
            insert(HOLDING, **order(6, note=_BYTES)),
            update(HOLDING, **order(2, "two", amount=_NAN, document=_BYTES)),
        )

        _has(
            subject,
            [order(3, None), order(6, None)],
            [order(1, "one"), order(2, "two"), order(4, "four"), order(5, "five")],
        )
        if subject.capabilities.odd_values and subject.can("read_odd_values"):
            assert kept_texts(subject, HOLDING) == {
                *((id, "amount", "NaN") for id in (1, 2, 5)),
                *((id, "document", "\\xFF") for id in (2, 4)),
                *((id, "note", "\\xFF") for id in (3, 6)),
            }

    @needs("quarantine", "read_quarantined", "mirror")
    def test_a_row_returns_as_soon_as_it_can_be_held(self, subject: Subject) -> None:
        """Also if a large value of the row, good or odd, is not sent again."""
        subject.copy(
            HOLDING,
            [order(1, amount=_NAN, document="long"), order(2, amount=_NAN, document=_BYTES)],
        )
        subject.write(
            update(HOLDING, unchanged=["document"], id=1, amount=None, note="good"),
            update(HOLDING, unchanged=["document"], id=2, amount=None, note="still odd"),
        )
        good = order(1, "good", document="long")
        _has(subject, [good], [order(2, "still odd")])

        subject.write(
            update(HOLDING, **order(2, amount=_NAN, document="short")),
            update(HOLDING, unchanged=["document"], id=2, amount=None, note="good, too"),
        )
        _has(subject, [good, order(2, "good, too", document="short")], [])

    @needs("quarantine", "read_quarantined", "mirror", "truncate")
    def test_a_row_in_quarantine_is_found_by_its_key(self, subject: Subject) -> None:
        subject.copy(HOLDING, [order(id, amount=_NAN, document="long") for id in (1, 2, 3)])
        subject.write(
            update(HOLDING, old={"id": 1}, unchanged=["document"], id=4, amount=_NAN, note="moved"),
            update(HOLDING, old={"id": 2}, unchanged=["document"], id=5, amount=None, note="good"),
            delete(HOLDING, id=3),
            insert(HOLDING, **order(3, amount=_NAN)),
            delete(HOLDING, id=3),
        )
        _has(
            subject,
            [order(5, "good", document="long")],
            [order(4, "moved", document="long")],
        )

        subject.write(truncate(HOLDING), insert(HOLDING, **order(6, amount=_NAN)))
        _has(subject, [], [order(6)])
        subject.write(truncate(HOLDING))
        _has(subject, [], [])

    @needs("quarantine", "read_quarantined", "mirror", "transactional")
    def test_a_row_is_put_into_quarantine_once(self, subject: Subject) -> None:
        """Chunks and changes may come twice after a crash; another copy replaces the rows."""
        for _ in range(2):
            subject.write_chunk(HOLDING, 0, [order(1, amount=_NAN)])
        subject.end_copy(HOLDING)
        changes = subject.stream.commit(insert(HOLDING, **order(2, amount=_NAN)))
        for _ in range(2):
            subject.deliver(changes)
        _has(subject, [], [order(1), order(2)])

        subject.copy(HOLDING, [order(1), order(3, amount=_NAN)], copy_id="another")
        _has(subject, [order(1)], [order(3)])

        subject.copy(HOLDING, [order(3)], copy_id="a third")
        _has(subject, [order(3)], [])

    @needs("quarantine", "read_quarantined", "mirror", "schema_changes")
    def test_rows_in_quarantine_follow_the_columns_of_their_table(self, subject: Subject) -> None:
        subject.copy(HOLDING, [order(1, "kept", amount=_NAN), order(2, document=_BYTES)])
        id_, amount, note, document = HOLDING.columns
        wider = _version(
            900, id_, replace(amount, name="total"), replace(note, name="remark"), document, _EXTRA
        )
        subject.write(relation(wider))
        first: Row = {"id": 1, "total": None, "remark": "kept", "document": None, "extra": None}
        second = first | {"id": 2, "remark": "new"}
        _has(subject, [], [first, second], wider)

        # The value that kept the second row apart is gone with its column.
        narrower = _version(950, *wider.columns[:3], _EXTRA)
        subject.write(relation(narrower))
        del first["document"], second["document"]
        _has(subject, [second], [first], narrower)

        good = first | {"extra": 5}
        subject.write(update(narrower, **good))
        _has(subject, [good, second], [], narrower)

    @needs("quarantine", "read_quarantined", "mirror", "schema_changes")
    def test_rows_follow_what_another_schema_keeps_apart(self, subject: Subject) -> None:
        """A column that gets another type also gets the policy that is configured by then."""
        subject.copy(HOLDING, [order(1, amount=_NAN), order(2, note=_BYTES), order(3)])
        other = _version(900, *(replace(c, quarantine=c.name == "note") for c in HOLDING.columns))
        subject.write(relation(other))
        _has(subject, [order(1), order(3)], [order(2, None)], other)

        none = _version(950, *ORDERS.columns)
        subject.write(relation(none), insert(none, **order(4, amount=_NAN)))
        _has(subject, [order(1), order(2, None), order(3), order(4)], [], none)

    @needs("quarantine", "read_quarantined", "mirror", "schema_changes")
    def test_rows_in_quarantine_follow_the_name_of_their_table(self, subject: Subject) -> None:
        """Also while two tables swap their names, and in between have the same name."""
        other = replace(HOLDING, table_name="orders_new", id=16385)
        subject.copy(HOLDING, [order(1, amount=_NAN)])
        subject.copy(other, [order(2, amount=_NAN)], copy_id="copy-2")
        new = replace(other, table_name="orders", snapshot_id=Lsn(900))
        old = replace(HOLDING, table_name="orders_new", snapshot_id=Lsn(900))

        subject.write(
            relation(new),
            insert(new, **order(3, amount=_NAN)),
            relation(old),
            insert(old, **order(4, amount=_NAN)),
        )

        _has(subject, [], [order(2), order(3)], new)
        _has(subject, [], [order(1), order(4)], old)
        subject.write(update(new, **order(2)), update(old, **order(4)))
        _has(subject, [order(2)], [order(3)], new)
        _has(subject, [order(4)], [order(1)], old)

    @needs("quarantine", "read_quarantined", "mirror")
    def test_quarantine_outlives_the_process(self, subject: Subject) -> None:
        subject.copy(HOLDING, [order(1, amount=_NAN, document="long"), order(2, amount=_NAN)])
        subject.reopen()

        subject.write(update(HOLDING, unchanged=["document"], id=1, amount=None, note="good"))

        _has(subject, [order(1, "good", document="long")], [order(2)])


_EXTRA = column("extra", INT4, 5)


def _version(snapshot: int, *columns: ColumnSchema) -> TableSchema:
    return replace(HOLDING, columns=columns, snapshot_id=Lsn(snapshot))


def _has(
    subject: Subject,
    rows: Sequence[Row],
    quarantined: Sequence[Row],
    schema: TableSchema = HOLDING,
) -> None:
    """The table has `rows`, and `quarantined` are kept apart from it."""
    subject.holds(schema, rows)
    require_same_rows(schema, subject.quarantined(schema), quarantined)
