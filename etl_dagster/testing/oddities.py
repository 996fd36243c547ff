"""What a destination promises that keeps the values that a column's type can't hold."""

from __future__ import annotations

from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import ORDERS, Unheld, delete, insert, order, truncate, update
from etl_dagster.testing.subject import DestinationChecks, Subject, needs

_NAN = Unheld("NaN")


class OddValueChecks(DestinationChecks):
    """Such a value is null in its row; its text is kept, and follows the row."""

    @needs("odd_values", "read_odd_values", "mirror", "truncate")
    def test_what_a_column_can_not_hold_goes_with_its_row(self, subject: Subject) -> None:
        large = Unheld("\\xFF")
        subject.copy(ORDERS, [order(1, amount=_NAN), order(2, amount=_NAN)], [order(3)])
        assert kept_texts(subject, ORDERS) == {(1, "amount", "NaN"), (2, "amount", "NaN")}

        subject.write(
            update(ORDERS, id=1, amount=None, note="good now"),
            delete(ORDERS, id=2),
            update(ORDERS, **order(3, amount=_NAN)),
            insert(ORDERS, **order(4, document=large)),
        )
        assert kept_texts(subject, ORDERS) == {(3, "amount", "NaN"), (4, "document", "\\xFF")}
        subject.holds(
            ORDERS,
            [
                {"id": 1, "amount": None, "note": "good now", "document": None},
                order(3, amount=None),
                order(4),
            ],
        )

        subject.write(
            update(ORDERS, unchanged=["document"], id=4, note="its document is not sent"),
            update(ORDERS, old={"id": 4}, unchanged=["document"], id=5, note="another key"),
        )
        assert kept_texts(subject, ORDERS) == {(3, "amount", "NaN"), (5, "document", "\\xFF")}

        subject.write(truncate(ORDERS), insert(ORDERS, **order(6, amount=_NAN)))
        assert kept_texts(subject, ORDERS) == {(6, "amount", "NaN")}

    @needs("odd_values", "read_odd_values", "transactional", "mirror")
    def test_what_a_column_can_not_hold_is_kept_once(self, subject: Subject) -> None:
        """Chunks and changes may come twice after a crash; another copy replaces the values."""
        for _ in range(2):
            subject.write_chunk(ORDERS, 0, [order(1, amount=_NAN)])
        subject.end_copy(ORDERS)
        changes = subject.stream.commit(insert(ORDERS, **order(2, amount=_NAN)))
        for _ in range(2):
            subject.deliver(changes)
        assert kept_texts(subject, ORDERS) == {(1, "amount", "NaN"), (2, "amount", "NaN")}

        subject.copy(ORDERS, [order(1), order(3, amount=_NAN)], copy_id="another")
        assert kept_texts(subject, ORDERS) == {(3, "amount", "NaN")}


def kept_texts(subject: Subject, schema: TableSchema) -> set[tuple[int, str, str]]:
    """The values that the table's columns can't hold, as: ID of the row, column, text."""
    found = subject.hooks.read_odd_values(subject.destination, schema)
    kept = [(int(key["id"]), column, text) for key, column, text in found]
    assert len(set(kept)) == len(kept), f"a value is kept more than once: {kept}"
    return set(kept)
