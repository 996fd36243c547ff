"""What a destination promises about tables in modes other than mirror."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import (
    INT4,
    ORDERS,
    READINGS,
    VISITS,
    Change,
    Row,
    chunk,
    column,
    delete,
    end_of_copy,
    insert,
    order,
    relation,
    truncate,
    update,
)
from etl_dagster.testing.subject import (
    DestinationChecks,
    Subject,
    needs,
    require_same_rows,
)

MARKED, LOGGED, VERSIONED = (
    replace(ORDERS, mode=mode) for mode in ("soft_delete", "append", "scd2")
)


def at(change: Change | int) -> datetime:
    """The commit time of a change of these checks, or a number of microseconds since 1970."""
    number = change if isinstance(change, int) else change.lsn
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=number)


def version(row: Row, begin: Change | int, end: Change | int | None = None, **more: Any) -> Row:
    """A row of a table in mode scd2."""
    return {
        **row,
        "_etl_valid_from": at(begin),
        "_etl_valid_to": None if end is None else at(end),
        "_etl_is_current": end is None,
        "_etl_unchanged": None,
    } | more


def entry(change: Change, row: Row, **more: Any) -> Row:
    """A row of a table in mode append."""
    ops = {"I": "insert", "U": "update", "D": "delete", "T": "truncate"}
    return {
        **row,
        "_etl_op": ops[change.op],
        "_etl_commit_lsn": change.lsn,
        "_etl_ordinal": change.ordinal,
        "_etl_commit_time": at(change),
        "_etl_xid": 700 + change.lsn,
        "_etl_before": None,
        "_etl_unchanged": None,
    } | more


def copy_again(
    subject: Subject, schema: TableSchema, rows: list[Row], *, replay_from: int, copied_at: int
) -> None:
    """Copy the table again.

    Args:
        replay_from: the LSN from which on changes are not part of the copy.
        copied_at: when the source had these rows, in microseconds since 1970.
    """
    subject.destination.drop_table_for_copy(schema)
    copied = chunk("copy-2", 0, schema, rows, replay_from=replay_from, copied_at_us=copied_at)
    subject.write_rows(schema, copied)
    end = end_of_copy("copy-2", replay_from, copied_at_us=copied_at)
    subject.write_rows(schema, end)


def holds(subject: Subject, schema: TableSchema, rows: Sequence[Row]) -> None:
    """The table has these rows, with the columns of its mode, and no other."""
    require_same_rows(schema, subject.kept(schema), subject.readable(schema, rows))


def nothing(schema: TableSchema) -> Row:
    """A row of nulls."""
    return dict.fromkeys(schema.column_names)


class ModeChecks(DestinationChecks):
    """Checks of each mode that the destination declares; the others are skipped."""

    # -- soft_delete ---------------------------------------------------------------------------

    @needs("mode:soft_delete")
    def test_a_deleted_row_stays_with_the_time_of_its_delete(self, subject: Subject) -> None:
        subject.copy(MARKED, [order(1, "a", document="long"), order(2)])

        subject.write(update(MARKED, unchanged=["document"], id=1, amount=None, note="b"))
        [gone] = subject.write(delete(MARKED, id=1))

        holds(
            subject,
            MARKED,
            [
                order(1, "b", document="long") | {"_etl_deleted_at": at(gone)},
                order(2) | {"_etl_deleted_at": None},
            ],
        )

    @needs("mode:soft_delete")
    def test_a_row_that_comes_and_goes_in_one_batch_is_marked(self, subject: Subject) -> None:
        subject.copy(MARKED)

        [_, gone] = subject.write(insert(MARKED, **order(1, "a")), delete(MARKED, id=1))

        holds(subject, MARKED, [order(1, "a") | {"_etl_deleted_at": at(gone)}])

    @needs("mode:soft_delete")
    def test_a_key_that_has_a_row_again_is_not_marked(self, subject: Subject) -> None:
        subject.copy(MARKED, [order(1, "old", document="old")])

        subject.write(delete(MARKED, id=1))
        subject.write(insert(MARKED, **order(1, "new")))

        holds(subject, MARKED, [order(1, "new") | {"_etl_deleted_at": None}])

    @needs("mode:soft_delete")
    def test_a_key_that_its_row_has_left_is_marked(self, subject: Subject) -> None:
        subject.copy(MARKED, [order(1, "a", document="long")])

        [moved] = subject.write(
            update(MARKED, old={"id": 1}, unchanged=["document"], id=7, amount=None, note="b")
        )

        holds(
            subject,
            MARKED,
            [
                order(1, "a", document="long") | {"_etl_deleted_at": at(moved)},
                order(7, "b", document="long") | {"_etl_deleted_at": None},
            ],
        )

    @needs("mode:soft_delete", "truncate")
    def test_a_truncate_marks_the_rows_that_are_there(self, subject: Subject) -> None:
        subject.copy(MARKED, [order(1), order(2)])

        [gone] = subject.write(delete(MARKED, id=1))
        [emptied] = subject.write(truncate(MARKED))

        holds(
            subject,
            MARKED,
            [
                order(1) | {"_etl_deleted_at": at(gone)},
                order(2) | {"_etl_deleted_at": at(emptied)},
            ],
        )

    @needs("mode:soft_delete")
    def test_a_new_copy_marks_the_rows_that_it_lacks(self, subject: Subject) -> None:
        subject.copy(MARKED, [order(1), order(2), order(3)])
        [gone] = subject.write(delete(MARKED, id=1))

        copy_again(subject, MARKED, [order(3, "b"), order(4)], replay_from=5000, copied_at=4900)

        holds(
            subject,
            MARKED,
            [
                order(1) | {"_etl_deleted_at": at(gone)},
                order(2) | {"_etl_deleted_at": at(4900)},
                order(3, "b") | {"_etl_deleted_at": None},
                order(4) | {"_etl_deleted_at": None},
            ],
        )

    # -- append --------------------------------------------------------------------------------

    @needs("mode:append")
    def test_each_change_is_a_row_with_its_operation_place_and_time(self, subject: Subject) -> None:
        subject.copy(LOGGED)

        inserted, changed = subject.write(
            insert(LOGGED, **order(1, "a")), update(LOGGED, **order(1, "b"))
        )
        [deleted] = subject.write(delete(LOGGED, id=1))

        holds(
            subject,
            LOGGED,
            [
                entry(inserted, order(1, "a")),
                entry(changed, order(1, "b")),
                entry(deleted, nothing(LOGGED) | {"id": 1}, _etl_before={"id": "1"}),
            ],
        )

    @needs("mode:append")
    def test_a_change_that_comes_again_is_not_a_second_row(self, subject: Subject) -> None:
        subject.copy(LOGGED)
        first = subject.write(insert(LOGGED, **order(1)), insert(LOGGED, **order(2)))

        subject.deliver(first)
        [last] = subject.write(insert(LOGGED, **order(3)))

        rows = [order(1), order(2), order(3)]
        holds(subject, LOGGED, [entry(c, r) for c, r in zip([*first, last], rows, strict=True)])

    @needs("mode:append")
    def test_a_row_before_its_change_is_kept_where_postgres_sends_it(
        self, subject: Subject
    ) -> None:
        readings = replace(READINGS, mode="append")
        subject.copy(LOGGED)
        subject.copy(readings)
        old: Row = {"sensor": "a", "value": 1, "blob": None}

        [moved] = subject.write(update(LOGGED, old={"id": 1}, **order(7)))
        [changed] = subject.write(update(readings, old=old, **old | {"value": 2}))

        holds(subject, LOGGED, [entry(moved, order(7), _etl_before={"id": "1"})])
        holds(subject, readings, [entry(changed, old | {"value": 2}, _etl_before=old)])

    @needs("mode:append")
    def test_an_unchanged_value_is_the_last_one_logged_or_said_to_be_unknown(
        self, subject: Subject
    ) -> None:
        subject.copy(LOGGED)
        row: Row = order(1, amount=Decimal("1.50"), document="long")
        [inserted] = subject.write(insert(LOGGED, **row))

        same = ["amount", "document"]
        [moved] = subject.write(update(LOGGED, old={"id": 1}, unchanged=same, id=2, note="b"))
        [again] = subject.write(update(LOGGED, unchanged=same, id=2, note="c"))
        [unknown] = subject.write(update(LOGGED, unchanged=same, id=9, note="d"))

        holds(
            subject,
            LOGGED,
            [
                entry(inserted, row),
                entry(moved, row | {"id": 2, "note": "b"}, _etl_before={"id": "1"}),
                entry(again, row | {"id": 2, "note": "c"}),
                entry(unknown, order(9, "d"), _etl_unchanged=same),
            ],
        )

    @needs("mode:append", "truncate")
    def test_a_truncate_is_a_row_without_values(self, subject: Subject) -> None:
        subject.copy(LOGGED)

        inserted, emptied = subject.write(insert(LOGGED, **order(1)), truncate(LOGGED))

        holds(subject, LOGGED, [entry(inserted, order(1)), entry(emptied, nothing(LOGGED))])

    @needs("mode:append")
    def test_a_copy_is_rows_of_its_own_after_those_that_are_there(self, subject: Subject) -> None:
        visits = replace(VISITS, mode="append")
        copy_again(subject, visits, [{"page": "/", "at": 1}], replay_from=900, copied_at=800)
        [inserted] = subject.write(insert(visits, page="/a", at=2))

        subject.destination.drop_table_for_copy(visits)
        subject.write_rows(visits, end_of_copy("copy-3", 5000, copied_at_us=4900))

        copied = Change(visits, "I", lsn=899)
        holds(
            subject,
            visits,
            [
                entry(copied, {"page": "/", "at": 1})
                | {"_etl_op": "copy", "_etl_xid": None, "_etl_commit_time": at(800)},
                entry(inserted, {"page": "/a", "at": 2}),
            ],
        )

    # -- scd2 ----------------------------------------------------------------------------------

    @needs("mode:scd2")
    def test_a_change_ends_a_version_and_begins_the_next(self, subject: Subject) -> None:
        subject.copy(VERSIONED)
        [first] = subject.write(insert(VERSIONED, **order(1, "a", document="long")))

        [second] = subject.write(
            update(VERSIONED, unchanged=["document"], id=1, amount=None, note="b")
        )

        holds(
            subject,
            VERSIONED,
            [
                version(order(1, "a", document="long"), first, second),
                version(order(1, "b", document="long"), second),
            ],
        )

    @needs("mode:scd2")
    def test_several_transactions_of_a_row_in_one_batch_are_versions_each(
        self, subject: Subject
    ) -> None:
        subject.copy(VERSIONED)
        first = subject.stream.commit(insert(VERSIONED, **order(1, "a")))
        second = subject.stream.commit(update(VERSIONED, **order(1, "b")))
        third = subject.stream.commit(delete(VERSIONED, id=1))

        subject.deliver([*first, *second, *third])

        holds(
            subject,
            VERSIONED,
            [
                version(order(1, "a"), first[0], second[0]),
                version(order(1, "b"), second[0], third[0]),
            ],
        )

    @needs("mode:scd2")
    def test_what_a_row_had_inside_a_transaction_is_not_a_version(self, subject: Subject) -> None:
        """Also if the transaction is cut into several batches."""
        subject.copy(VERSIONED)
        changes = subject.stream.commit(
            insert(VERSIONED, **order(1, "a")),
            update(VERSIONED, **order(1, "b")),
            update(VERSIONED, **order(1, "c")),
            insert(VERSIONED, **order(2)),
            delete(VERSIONED, id=2),
        )

        subject.deliver(changes[:2])
        subject.deliver(changes[1:4])
        subject.deliver(changes)

        holds(subject, VERSIONED, [version(order(1, "c"), changes[0])])

    @needs("mode:scd2")
    def test_a_row_that_is_deleted_and_comes_again_has_a_gap(self, subject: Subject) -> None:
        subject.copy(VERSIONED)
        [first] = subject.write(insert(VERSIONED, **order(1, "a")))
        [gone] = subject.write(delete(VERSIONED, id=1))
        [again] = subject.write(insert(VERSIONED, **order(1, "b")))

        holds(
            subject,
            VERSIONED,
            [version(order(1, "a"), first, gone), version(order(1, "b"), again)],
        )

    @needs("mode:scd2")
    def test_a_key_that_changes_ends_the_row_of_the_old_one(self, subject: Subject) -> None:
        subject.copy(VERSIONED)
        [first] = subject.write(insert(VERSIONED, **order(1, "a")))
        [moved] = subject.write(update(VERSIONED, old={"id": 1}, **order(7, "a")))

        holds(
            subject,
            VERSIONED,
            [version(order(1, "a"), first, moved), version(order(7, "a"), moved)],
        )

    @needs("mode:scd2", "truncate")
    def test_a_truncate_ends_every_row(self, subject: Subject) -> None:
        subject.copy(VERSIONED)
        [first] = subject.write(insert(VERSIONED, **order(1, "a")))
        emptied, again = subject.write(truncate(VERSIONED), insert(VERSIONED, **order(1, "b")))

        holds(
            subject,
            VERSIONED,
            [version(order(1, "a"), first, emptied), version(order(1, "b"), again)],
        )

    @needs("mode:scd2")
    def test_a_new_copy_ends_what_vanished_and_begins_only_what_differs(
        self, subject: Subject
    ) -> None:
        subject.copy(VERSIONED)
        made = subject.write(*(insert(VERSIONED, **order(n, "a")) for n in (1, 2, 3)))

        rows = [order(1, "a"), order(2, "b"), order(4)]
        copy_again(subject, VERSIONED, rows, replay_from=5000, copied_at=4900)

        holds(
            subject,
            VERSIONED,
            [
                version(order(1, "a"), made[0]),
                version(order(2, "a"), made[1], 4900),
                version(order(2, "b"), 4900),
                version(order(3, "a"), made[2], 4900),
                version(order(4), 4900),
            ],
        )

    @needs("mode:scd2")
    def test_a_value_that_is_not_known_is_said_to_be_so(self, subject: Subject) -> None:
        subject.copy(VERSIONED)

        [made] = subject.write(
            update(VERSIONED, unchanged=["document"], id=1, amount=None, note="b")
        )

        holds(
            subject,
            VERSIONED,
            [version(order(1, "b"), made, _etl_unchanged=["document"])],
        )

    # -- all of them ---------------------------------------------------------------------------

    @needs("mode:append", "transactional")
    def test_changes_between_two_copies_are_left_to_the_second(self, subject: Subject) -> None:
        """Their sender doesn't know of the second copy yet; they come again after it."""
        subject.copy(LOGGED)
        subject.destination.drop_table_for_copy(LOGGED)
        changes = subject.write(insert(LOGGED, **order(1)))

        subject.write_rows(LOGGED, end_of_copy("copy-2", changes[0].lsn))
        subject.deliver(changes)

        holds(subject, LOGGED, [entry(changes[0], order(1))])

    @needs("mode:scd2", "schema_changes")
    def test_versions_follow_the_columns_of_their_table(self, subject: Subject) -> None:
        self._follow_columns(subject, VERSIONED)

    @needs("mode:append", "schema_changes")
    def test_logged_changes_follow_the_columns_of_their_table(self, subject: Subject) -> None:
        self._follow_columns(subject, LOGGED)

    @needs("mode:soft_delete", "schema_changes")
    def test_marked_rows_follow_the_columns_of_their_table(self, subject: Subject) -> None:
        self._follow_columns(subject, MARKED)

    @staticmethod
    def _follow_columns(subject: Subject, schema: TableSchema) -> None:
        id_, amount, note, _ = schema.columns
        renamed = replace(
            schema,
            columns=(id_, amount, replace(note, name="remark"), column("extra", INT4, 9)),
        ).at(subject.stream.next_lsn)
        subject.copy(schema, [order(1, "a"), order(2, "b")])
        subject.write(delete(schema, id=2))

        subject.write(relation(renamed), insert(renamed, id=3, remark="c", extra=5))

        found = subject.kept(renamed)
        names = {"id", "amount", "remark", "extra"}
        told = sorted(
            (row["id"], row["remark"], row["extra"])
            for row in found
            if row.get("_etl_op") != "delete"
        )
        assert {name for row in found for name in row if not name.startswith("_etl_")} == names
        assert told == [(1, "a", None), (2, "b", None), (3, "c", 5)]
