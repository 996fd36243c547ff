"""What a destination promises about inserts, updates, deletes and truncates."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from etl_dagster.testing.changes import (
    BOOL,
    BYTEA,
    DATE,
    FLOAT8,
    INT8,
    JSONB,
    NUMERIC,
    ORDERS,
    PRICES,
    READINGS,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    VISITS,
    Row,
    column,
    delete,
    insert,
    order,
    table,
    truncate,
    update,
)
from etl_dagster.testing.subject import DestinationChecks, Subject, needs

SAMPLES = table(
    [
        column("id", INT8, 1, key=1),
        column("flag", BOOL, 2),
        column("amount", NUMERIC, 3, type_modifier=((30 << 16) | 10) + 4),
        column("ratio", FLOAT8, 4),
        column("text", TEXT, 5),
        column("bytes", BYTEA, 6),
        column("document", JSONB, 7),
        column("day", DATE, 8),
        column("moment", TIMESTAMPTZ, 9),
        column("token", UUID, 10),
    ],
    table_id=16393,
    name="samples",
)
#: Values that would change on the way through a float, Latin-1, whole seconds or `str.strip`.
SAMPLE_ROWS: list[Row] = [
    {
        "id": 2**63 - 1,
        "flag": True,
        "amount": Decimal("12345678901234567890.0123456789"),
        "ratio": 0.1,
        "text": " \tGrüße, 世界 \u2028 \\ \" ' \x01 🐘 \r\n",
        "bytes": bytes(range(256)),
        "document": '{"a": [1, null, "ü"], "b": {}}',
        "day": date(1, 1, 1),
        "moment": datetime(2026, 11, 21, 23, 59, 59, 999_999, UTC),
        "token": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    },
    {
        "id": -(2**53) - 1,
        "flag": False,
        "amount": Decimal("-0.0000000001"),
        "ratio": float("nan"),
        "text": "",
        "bytes": b"",
        "document": "null",
        "day": date(9999, 12, 31),
        "moment": datetime(1, 1, 1, tzinfo=UTC),
        "token": "00000000-0000-0000-0000-000000000000",
    },
    dict.fromkeys(SAMPLES.column_names) | {"id": 0, "ratio": float("-inf")},
]


class ChangeChecks(DestinationChecks):
    """What a table holds after changes that were delivered once."""

    # -- values --------------------------------------------------------------------------------

    def test_the_copy_brings_values_without_loss(self, subject: Subject) -> None:
        subject.copy(SAMPLES, SAMPLE_ROWS)

        subject.holds(SAMPLES, SAMPLE_ROWS)

    @needs("mirror")
    def test_the_stream_brings_values_without_loss(self, subject: Subject) -> None:
        subject.copy(SAMPLES)

        subject.write(*(insert(SAMPLES, **row) for row in SAMPLE_ROWS))

        subject.holds(SAMPLES, SAMPLE_ROWS)

    @needs("read_changes")
    def test_recorded_changes_have_values_without_loss(self, subject: Subject) -> None:
        """If values are recorded at all: only positions and operations have to be."""
        subject.copy(SAMPLES)

        subject.has_recorded(subject.write(*(insert(SAMPLES, **row) for row in SAMPLE_ROWS)))

    # -- by key --------------------------------------------------------------------------------

    @needs("mirror")
    def test_no_change_is_lost(self, subject: Subject) -> None:
        """Many changes of several tables, in several transactions and batches."""
        for schema in (ORDERS, VISITS):
            subject.copy(schema)
        for first in range(0, 30, 10):
            numbers = range(first, first + 10)
            subject.write(
                *(
                    change
                    for n in numbers
                    for change in (insert(ORDERS, **order(n)), insert(VISITS, page="/", at=n))
                )
            )

        subject.holds(ORDERS, [order(n) for n in range(30)])
        subject.holds(VISITS, [{"page": "/", "at": n} for n in range(30)])

    @needs("mirror")
    def test_the_last_of_many_changes_of_a_row_stands(self, subject: Subject) -> None:
        subject.copy(ORDERS)

        subject.write(
            insert(ORDERS, **order(1, "a")),
            insert(ORDERS, **order(2, "b")),
            update(ORDERS, **order(1, "c")),
            delete(ORDERS, id=2),
            update(ORDERS, **order(1, "d")),
        )

        subject.holds(ORDERS, [order(1, "d")])

    @needs("mirror")
    def test_a_deleted_row_is_gone(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1), order(2)])

        subject.write(delete(ORDERS, id=1))

        subject.holds(ORDERS, [order(2)])

    @needs("mirror")
    def test_a_key_that_is_deleted_and_inserted_again_has_its_new_row(
        self, subject: Subject
    ) -> None:
        subject.copy(ORDERS, [order(1, "old")])

        subject.write(delete(ORDERS, id=1), insert(ORDERS, **order(1, "new")))

        subject.holds(ORDERS, [order(1, "new")])

    @needs("mirror")
    def test_a_changed_key_moves_the_row(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1, "kept"), order(2)])

        subject.write(update(ORDERS, old={"id": 1}, **order(7, "kept")))

        subject.holds(ORDERS, [order(7, "kept"), order(2)])

    @needs("mirror")
    def test_two_rows_can_swap_their_keys(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1, "one"), order(2, "two")])

        subject.write(
            update(ORDERS, old={"id": 1}, **order(3, "one")),
            update(ORDERS, old={"id": 2}, **order(1, "two")),
            update(ORDERS, old={"id": 3}, **order(2, "one")),
        )

        subject.holds(ORDERS, [order(1, "two"), order(2, "one")])

    @needs("mirror")
    def test_a_key_of_several_columns_identifies_a_row(self, subject: Subject) -> None:
        prices = [{"sku": s, "region": r, "price": 1} for s in ("a", "b") for r in (1, 2)]
        subject.copy(PRICES, prices)

        subject.write(
            update(PRICES, sku="a", region=2, price=5),
            delete(PRICES, sku="b", region=1),
        )

        subject.holds(
            PRICES,
            [
                {"sku": "a", "region": 1, "price": 1},
                {"sku": "a", "region": 2, "price": 5},
                {"sku": "b", "region": 2, "price": 1},
            ],
        )

    # -- unchanged TOAST values ----------------------------------------------------------------

    @needs("mirror")
    def test_an_unchanged_value_stays_what_the_destination_has(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1, document="long"), order(2, document="other")])

        subject.write(
            update(ORDERS, unchanged=["document"], id=1, note="x"),
            update(ORDERS, **order(2, "y", document="short")),
        )

        subject.holds(ORDERS, [order(1, "x", document="long"), order(2, "y", document="short")])

    @needs("mirror")
    def test_an_unchanged_value_is_the_last_one_known_in_the_batch(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1, document="before")])

        subject.write(
            update(ORDERS, **order(1, document="in the batch")),
            update(ORDERS, unchanged=["document"], id=1, note="x"),
            update(ORDERS, unchanged=["document"], id=1, note="y"),
        )

        subject.holds(ORDERS, [order(1, "y", document="in the batch")])

    @needs("mirror")
    def test_an_unchanged_value_follows_its_row_to_another_key(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1, document="one"), order(2, document="two")])

        subject.write(
            update(ORDERS, old={"id": 1}, unchanged=["document"], id=3, note="x"),
            update(ORDERS, old={"id": 2}, unchanged=["document"], id=1, note="y"),
            update(ORDERS, unchanged=["document"], id=1, note="z"),
        )

        subject.holds(ORDERS, [order(3, "x", document="one"), order(1, "z", document="two")])

    @needs("mirror")
    def test_a_row_inserted_again_keeps_nothing_of_the_one_before(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1, document="before")])

        subject.write(
            delete(ORDERS, id=1),
            insert(ORDERS, **order(1)),
            update(ORDERS, **order(1, "x")),
        )

        subject.holds(ORDERS, [order(1, "x")])

    # -- without a key -------------------------------------------------------------------------

    @needs("mirror")
    def test_rows_without_a_key_are_appended(self, subject: Subject) -> None:
        subject.copy(VISITS, [{"page": "/", "at": 1}])

        subject.write(insert(VISITS, page="/", at=1), insert(VISITS, page="/a", at=2))

        subject.holds(
            VISITS, [{"page": "/", "at": 1}, {"page": "/", "at": 1}, {"page": "/a", "at": 2}]
        )

    @needs("mirror")
    def test_of_several_equal_rows_one_is_deleted_for_each_delete(self, subject: Subject) -> None:
        same: Row = {"sensor": "a", "value": None, "blob": None}
        subject.copy(READINGS, [same] * 5)

        subject.write(delete(READINGS, **same), delete(READINGS, **same))

        subject.holds(READINGS, [same] * 3)

    @needs("mirror")
    def test_an_update_without_a_key_replaces_one_equal_row(self, subject: Subject) -> None:
        first: Row = {"sensor": "a", "value": 1, "blob": "large"}
        second: Row = {"sensor": "b", "value": None, "blob": None}
        subject.copy(READINGS, [first, first, second])

        subject.write(
            update(READINGS, old=first, unchanged=["blob"], sensor="a", value=2),
            update(READINGS, old=second, **second | {"value": 7}),
            insert(READINGS, **second),
        )

        subject.holds(READINGS, [first, first | {"value": 2}, second | {"value": 7}, second])

    # -- truncate ------------------------------------------------------------------------------

    @needs("truncate", "mirror")
    def test_a_truncate_empties_its_table_only(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1)])
        subject.copy(VISITS, [{"page": "/", "at": 1}])

        subject.write(insert(ORDERS, **order(2)), truncate(ORDERS), insert(ORDERS, **order(3)))

        subject.holds(ORDERS, [order(3)])
        subject.holds(VISITS, [{"page": "/", "at": 1}])

    # -- every change --------------------------------------------------------------------------

    @needs("read_changes")
    def test_every_change_is_recorded_with_its_operation_and_position_in_order(
        self, subject: Subject
    ) -> None:
        for schema in (ORDERS, VISITS):
            subject.copy(schema)
        changes = subject.write(
            insert(ORDERS, **order(1, "a")),
            insert(VISITS, page="/", at=1),
            update(ORDERS, unchanged=["document"], id=1, amount=None, note="b"),
            update(ORDERS, old={"id": 1}, **order(2, "b")),
        )
        changes += subject.write(insert(VISITS, page="/", at=2), delete(ORDERS, id=2))

        subject.has_recorded(changes)

    @needs("read_changes", "truncate")
    def test_a_truncate_is_recorded_between_the_changes(self, subject: Subject) -> None:
        subject.copy(ORDERS)

        subject.has_recorded(
            subject.write(insert(ORDERS, **order(1)), truncate(ORDERS), insert(ORDERS, **order(2)))
        )

    @needs("not mirror")
    def test_what_appends_every_change_lets_them_be_read(self, subject: Subject) -> None:
        """Without `read_changes` nothing could be checked of a destination that is not a mirror."""
        if not subject.can("read_changes"):
            pytest.fail(
                f"define read_changes(...) in {type(self).__name__}: without `mirror`, the changes "
                "that the destination keeps are checked"
            )
