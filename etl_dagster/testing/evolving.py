"""What a destination promises that follows schema changes."""

from __future__ import annotations

from decimal import Decimal

import pytest

from etl_dagster.testing.changes import (
    INT4,
    INT8,
    NUMERIC,
    ORDERS,
    TEXT,
    Transactions,
    column,
    insert,
    order,
    relation,
    table,
    truncate,
)
from etl_dagster.testing.subject import DestinationChecks, Subject, needs

EXTRA = column("extra", INT4, 9)


class SchemaChecks(DestinationChecks):
    """Columns and tables are added, dropped and renamed while changes come."""

    @needs("schema_changes", "mirror")
    def test_columns_are_added_dropped_renamed_and_change_their_type(
        self, subject: Subject
    ) -> None:
        subject.copy(ORDERS, [order(1, "first")])
        altered = table(
            [
                column("id", INT8, 1, key=1),
                column("comment", TEXT, 3),
                column("total", NUMERIC, 2, type_modifier=((20 << 16) | 4) + 4),
                column("quantity", INT4, 5),
            ],
            snapshot=900,
        )

        subject.write(
            relation(altered),
            insert(altered, id=2, comment="second", total=Decimal(3), quantity=4),
            relation(altered),
        )

        subject.holds(
            altered,
            [
                {"id": 1, "comment": "first", "total": None, "quantity": None},
                {"id": 2, "comment": "second", "total": Decimal(3), "quantity": 4},
            ],
        )

    @needs("schema_changes", "mirror")
    def test_a_renamed_column_keeps_its_values(self, subject: Subject) -> None:
        """A column is identified by its attnum, not by its name."""
        subject.copy(ORDERS, [order(1, "kept")])
        first, second, _, fourth = ORDERS.columns
        renamed = table([first, second, column("remark", TEXT, 3), fourth], snapshot=900)

        subject.write(relation(renamed))

        subject.holds(renamed, [{"id": 1, "amount": None, "remark": "kept", "document": None}])

    @needs("schema_changes", "mirror")
    def test_columns_can_swap_their_names(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1, "note", document="document")])
        first, second, third, fourth = ORDERS.columns
        swapped = table(
            [first, second, column("document", TEXT, 3), column("note", TEXT, 4)], snapshot=900
        )
        assert (third.name, fourth.name) == ("note", "document")

        subject.write(relation(swapped))

        subject.holds(swapped, [order(1, "document", document="note")])

    @needs("schema_changes", "mirror")
    @pytest.mark.parametrize(
        ("schema_name", "name"), [("public", "purchases"), ("sales", "orders")]
    )
    def test_a_renamed_table_keeps_its_rows(
        self, subject: Subject, schema_name: str, name: str
    ) -> None:
        subject.copy(ORDERS, [order(1)])
        renamed = table(ORDERS.columns, name=name, schema_name=schema_name, snapshot=900)

        subject.write(relation(renamed), insert(renamed, **order(2)))

        subject.holds(renamed, [order(1), order(2)])
        if subject.can("table_exists"):
            assert not subject.exists(ORDERS), "the table still exists under its old name"

    @needs("schema_changes", "mirror")
    @pytest.mark.parametrize("batches", ["one batch", "two batches"])
    def test_two_tables_can_swap_their_names(self, subject: Subject, batches: str) -> None:
        """A usual online migration. A table is its ID; in between, both have the same name."""
        filled = table(ORDERS.columns, name="orders_new", table_id=16385)
        subject.copy(ORDERS, [order(1, "old")])
        subject.copy(filled, [order(2, "new")], copy_id="copy-2")
        new = table(ORDERS.columns, name="orders", table_id=filled.id, snapshot=900)
        old = table(ORDERS.columns, name="orders_new", table_id=ORDERS.id, snapshot=900)
        first = [relation(new), insert(new, **order(3))]
        second = [relation(old), insert(old, **order(4))]

        if batches == "one batch":
            subject.write(insert(ORDERS, **order(5)), *first, *second)
        else:
            subject.write(insert(ORDERS, **order(5)), *first)
            subject.holds(new, [order(2, "new"), order(3)])
            subject.write(*second)

        subject.holds(new, [order(2, "new"), order(3)])
        subject.holds(old, [order(1, "old"), order(4), order(5)])

    @needs("schema_changes", "mirror")
    def test_a_chain_of_names_can_move_on(self, subject: Subject) -> None:
        """Each table takes the name of the next one, after inserts under the old names."""
        names = ["first", "second", "third", "first"]
        tables = [
            table(ORDERS.columns, name=name, table_id=16384 + number)
            for number, name in enumerate(names[:3])
        ]
        for number, before in enumerate(tables):
            subject.copy(before, [order(number)], copy_id=f"copy-{number}")
        moved = [
            table(ORDERS.columns, name=name, table_id=before.id, snapshot=900)
            for before, name in zip(tables, names[1:], strict=True)
        ]

        subject.write(
            *(insert(before, **order(10 + number)) for number, before in enumerate(tables)),
            *(
                change
                for number, after in enumerate(moved)
                for change in (relation(after), insert(after, **order(20 + number)))
            ),
        )

        for number, after in enumerate(moved):
            subject.holds(after, [order(number), order(10 + number), order(20 + number)])

    @needs("schema_changes", "truncate", "mirror")
    def test_a_change_of_schema_between_changes_applies_to_those_after_it(
        self, subject: Subject
    ) -> None:
        subject.copy(ORDERS)
        wider = table([*ORDERS.columns, EXTRA], snapshot=900)

        subject.write(
            insert(ORDERS, **order(1)),
            relation(wider),
            insert(wider, **order(2, extra=5)),
            truncate(wider),
            insert(wider, **order(3, extra=6)),
        )

        subject.holds(wider, [order(3, extra=6)])

    @needs("schema_changes", "mirror")
    def test_rows_from_before_a_new_column_have_no_value_in_it(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1)])
        wider = table([*ORDERS.columns, EXTRA], snapshot=900)

        subject.write(
            insert(ORDERS, **order(2)), relation(wider), insert(wider, **order(3, extra=6))
        )

        subject.holds(wider, [order(1, extra=None), order(2, extra=None), order(3, extra=6)])

    @needs("schema_changes", "transactional", "mirror")
    def test_an_older_schema_delivered_again_does_not_undo_the_newer(
        self, subject: Subject
    ) -> None:
        subject.copy(ORDERS)
        wider = table([*ORDERS.columns, EXTRA], snapshot=1100)
        stream = Transactions()
        old = stream.commit(relation(ORDERS), insert(ORDERS, **order(1)))
        new = stream.commit(relation(wider), insert(wider, **order(2, extra=5)))
        for changes in (old, new, old, old + new):
            subject.deliver(changes)

        subject.holds(wider, [order(1, extra=None), order(2, extra=5)])

    @needs("schema_changes", "transactional", "mirror")
    def test_what_is_delivered_again_does_not_undo_a_newer_schema(self, subject: Subject) -> None:
        """After a crash, the sender may give the old schema a larger number than the newer one."""
        subject.copy(ORDERS)
        wider = table([*ORDERS.columns, EXTRA], snapshot=1100)
        again = table(ORDERS.columns, snapshot=1200)
        stream = Transactions()
        old = stream.commit(relation(ORDERS), insert(ORDERS, **order(1)))
        new = stream.commit(relation(wider), insert(wider, **order(2, extra=5)))
        subject.deliver(old + new)

        subject.deliver(Transactions().commit(relation(again), insert(again, **order(1))))

        subject.holds(wider, [order(1, extra=None), order(2, extra=5)])

    @needs("schema_changes", "transactional", "mirror")
    def test_an_undone_change_of_schema_is_followed(self, subject: Subject) -> None:
        """Its number may be smaller: a change past the table's position is newer in any case."""
        subject.copy(ORDERS)
        wider = table([*ORDERS.columns, EXTRA], snapshot=1100)

        subject.write(insert(wider, **order(1, extra=5)), insert(ORDERS, **order(2)))

        subject.holds(ORDERS, [order(1), order(2)])

    @needs("schema_changes", "read_changes", "not mirror")
    def test_changes_under_another_schema_are_recorded_with_its_columns(
        self, subject: Subject
    ) -> None:
        subject.copy(ORDERS)
        wider = table([*ORDERS.columns, EXTRA], snapshot=900)

        subject.has_recorded(
            subject.write(
                insert(ORDERS, **order(1)), relation(wider), insert(wider, **order(2, extra=5))
            )
        )
