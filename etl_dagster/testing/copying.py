"""What a destination promises about a table's copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from etl_dagster.errors import InvalidState
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import TableRows
from etl_dagster.testing.changes import (
    ORDERS,
    PRICES,
    VISITS,
    Row,
    Transactions,
    chunk,
    delete,
    insert,
    order,
    table,
    update,
)
from etl_dagster.testing.subject import DestinationChecks, Subject, needs
from etl_dagster.testing.waiting import all_within

if TYPE_CHECKING:
    import pyarrow as pa


class CopyChecks(DestinationChecks):
    """Chunks in any number and order, the end of a copy, and abandoned copies."""

    def test_a_copy_holds_the_rows_of_all_its_chunks(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1), order(2)], [order(3, "late")])

        subject.holds(ORDERS, [order(1), order(2), order(3, "late")])

    @needs("table_exists")
    def test_the_end_of_a_copy_without_rows_leaves_an_empty_table(self, subject: Subject) -> None:
        assert not subject.exists(ORDERS), "the table exists before it was copied"
        subject.copy(ORDERS)

        assert subject.exists(ORDERS), "create the table at the end of its copy, even without rows"
        subject.holds(ORDERS, [])

    def test_the_copies_of_two_tables_do_not_meet(self, subject: Subject) -> None:
        """Their chunks come in turns, and with the same copy ID."""
        prices = [{"sku": sku, "region": 1, "price": 2} for sku in "abc"]
        for schema in (ORDERS, PRICES):
            subject.destination.drop_table_for_copy(schema)
        subject.write_chunk(ORDERS, 0, [order(1)])
        subject.write_chunk(PRICES, 0, prices[:2])
        subject.write_chunk(ORDERS, 1, [order(2)])
        subject.end_copy(ORDERS)
        subject.write_chunk(PRICES, 1, prices[2:])
        subject.end_copy(PRICES)

        subject.holds(ORDERS, [order(1), order(2)])
        subject.holds(PRICES, prices)

    def test_chunks_that_several_threads_write_are_all_there(self, subject: Subject) -> None:
        def write(index: int) -> Callable[[], None]:
            rows = [order(10 * index + number) for number in range(5)]
            return lambda: subject.write_chunk(ORDERS, index, rows)

        subject.destination.drop_table_for_copy(ORDERS)
        writes = [write(index) for index in range(4)]
        all_within(self.patience_s, "writing chunks from four threads", writes)
        subject.end_copy(ORDERS)

        rows = [order(10 * index + number) for index in range(4) for number in range(5)]
        subject.holds(ORDERS, rows)

    def test_a_table_can_be_dropped_for_a_copy_at_any_time(self, subject: Subject) -> None:
        """Also one that isn't there, and twice."""
        subject.destination.drop_table_for_copy(ORDERS)
        subject.destination.drop_table_for_copy(ORDERS)
        subject.copy(ORDERS, [order(1)])

        subject.holds(ORDERS, [order(1)])

    # -- delivered again -----------------------------------------------------------------------

    def test_a_chunk_delivered_again_loses_nothing(self, subject: Subject) -> None:
        subject.destination.drop_table_for_copy(ORDERS)
        chunks = [[order(10 * index + number) for number in range(3)] for index in range(2)]
        for index in (0, 1, 0):
            subject.write_chunk(ORDERS, index, chunks[index])
        subject.end_copy(ORDERS)

        subject.holds_at_least_once(ORDERS, chunks[0] + chunks[1])

    @needs("transactional")
    def test_a_chunk_delivered_twice_is_there_once(self, subject: Subject) -> None:
        subject.destination.drop_table_for_copy(VISITS)
        visits = [{"page": "/", "at": number} for number in range(6)]
        for index in (0, 1, 0):
            subject.write_chunk(VISITS, index, visits[3 * index :][:3])
        subject.end_copy(VISITS)

        subject.holds(VISITS, visits)

    @needs("transactional", "mirror")
    def test_the_end_of_a_copy_delivered_twice_keeps_what_was_written_since(
        self, subject: Subject
    ) -> None:
        subject.copy(ORDERS, [order(1)])
        subject.write(insert(ORDERS, **order(2)))

        subject.end_copy(ORDERS)
        subject.write_chunk(ORDERS, 0, [order(1)])

        subject.holds(ORDERS, [order(1), order(2)])

    def test_a_chunk_whose_source_fails_can_be_written_again(self, subject: Subject) -> None:
        """The error from reading must be raised; without transactions, some rows may stay."""
        whole = [order(1), order(2), order(3)]
        subject.destination.drop_table_for_copy(ORDERS)
        with pytest.raises(ConnectionError, match="the source went away"):
            subject.write_rows(ORDERS, failing_chunk(whole))
        subject.write_chunk(ORDERS, 0, whole)
        subject.end_copy(ORDERS)

        subject.holds_at_least_once(ORDERS, whole)

    @needs("transactional")
    def test_a_chunk_whose_source_fails_leaves_nothing(self, subject: Subject) -> None:
        subject.destination.drop_table_for_copy(ORDERS)
        with pytest.raises(ConnectionError, match="the source went away"):
            subject.write_rows(ORDERS, failing_chunk([order(1), order(2)]))
        subject.end_copy(ORDERS)

        subject.holds(ORDERS, [])

    # -- copied again --------------------------------------------------------------------------

    def test_the_end_of_the_next_copy_replaces_the_rows(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1, "old"), order(2, "gone by then")])
        subject.copy(ORDERS, [order(1, "new"), order(3)], copy_id="copy-2")

        subject.holds(ORDERS, [order(1, "new"), order(3)])

    def test_the_next_copy_may_be_empty(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1, "old")])
        subject.copy(ORDERS, copy_id="copy-2")

        subject.holds(ORDERS, [])

    def test_dropping_for_a_copy_forgets_the_chunks_before(self, subject: Subject) -> None:
        """Nothing of an abandoned copy, or of one whose workers died, gets into the next one."""
        subject.destination.drop_table_for_copy(ORDERS)
        subject.write_chunk(ORDERS, 0, [order(1), order(2)])
        subject.copy(ORDERS, [order(2, "new")], copy_id="copy-2")

        subject.holds(ORDERS, [order(2, "new")])

    @needs("transactional")
    def test_the_old_rows_stay_readable_until_the_next_copy_is_complete(
        self, subject: Subject
    ) -> None:
        subject.copy(ORDERS, [order(1, "old")])

        subject.destination.drop_table_for_copy(ORDERS)
        subject.holds(ORDERS, [order(1, "old")])
        subject.write_chunk(ORDERS, 0, [order(1, "new")], copy_id="copy-2")
        subject.holds(ORDERS, [order(1, "old")])

        subject.end_copy(ORDERS, copy_id="copy-2")
        subject.holds(ORDERS, [order(1, "new")])

    @needs("schema_changes", "mirror", "table_exists")
    def test_a_table_renamed_before_its_next_copy_is_there_under_its_new_name_only(
        self, subject: Subject
    ) -> None:
        """`drop_table_for_copy` gets the name that the destination knows, the copy the new one."""
        renamed = table(ORDERS.columns, name="purchases", snapshot=900)
        subject.copy(ORDERS, [order(1, "old")])
        subject.destination.drop_table_for_copy(ORDERS)
        subject.write_chunk(renamed, 0, [order(1, "new")], copy_id="copy-2")
        subject.end_copy(renamed, copy_id="copy-2")

        subject.holds(renamed, [order(1, "new")])
        assert not subject.exists(ORDERS), "the table still exists under its old name"

    @needs("transactional")
    def test_an_abandoned_copy_adds_nothing_to_the_next(self, subject: Subject) -> None:
        subject.destination.drop_table_for_copy(ORDERS)
        subject.write_chunk(ORDERS, 0, [order(1)])
        subject.write_chunk(ORDERS, 0, [order(2)], copy_id="copy-2")

        with pytest.raises(InvalidState):
            subject.write_chunk(ORDERS, 1, [order(3)])
        subject.end_copy(ORDERS, copy_id="copy-2")

        subject.holds(ORDERS, [order(2)])

    @needs("transactional")
    def test_a_worker_of_a_copy_that_was_given_up_is_refused(self, subject: Subject) -> None:
        subject.write_chunk(ORDERS, 0, [order(1)])
        subject.destination.drop_table_for_copy(ORDERS)

        with pytest.raises(InvalidState):
            subject.write_chunk(ORDERS, 1, [order(2)])
        with pytest.raises(InvalidState):
            subject.end_copy(ORDERS)

    # -- copy and stream -----------------------------------------------------------------------

    @needs("transactional", "mirror")
    def test_changes_from_before_the_copy_are_skipped_and_those_since_applied(
        self, subject: Subject
    ) -> None:
        """The copy has their effect already, and that of later changes."""
        stream = Transactions(first_lsn=1000)
        before = stream.commit(update(ORDERS, **order(1, "before")), delete(ORDERS, id=3))
        since = stream.commit(update(ORDERS, **order(2, "since")))
        subject.copy(ORDERS, [order(1), order(2), order(3)], replay_from=since[0].lsn)

        subject.deliver(before + since)

        subject.holds(ORDERS, [order(1), order(2, "since"), order(3)])

    @needs("transactional", "mirror")
    def test_a_sender_who_has_not_heard_of_the_newest_copy_changes_nothing(
        self, subject: Subject
    ) -> None:
        stream = Transactions(first_lsn=1000)
        first = stream.commit(insert(ORDERS, **order(2)))
        second = stream.commit(update(ORDERS, **order(1, "late")))
        subject.copy(ORDERS, [order(1)], replay_from=first[0].lsn)

        # Applied, it would move the position past the first change, which has yet to come.
        subject.deliver(second, apply_from={ORDERS.id: Lsn(500)})
        subject.holds(ORDERS, [order(1)])

        subject.deliver(first + second, apply_from={ORDERS.id: Lsn(first[0].lsn)})
        subject.holds(ORDERS, [order(1, "late"), order(2)])

    @needs("mirror")
    def test_a_row_that_both_copy_and_stream_bring_is_there_once(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1, "copied")])

        subject.write(insert(ORDERS, **order(1, "streamed")))

        subject.holds(ORDERS, [order(1, "streamed")])

    @needs("mirror")
    def test_a_row_that_two_chunks_brought_is_one_again_after_its_update(
        self, subject: Subject
    ) -> None:
        """The row moved between the chunks' snapshots, so its update is in the stream."""
        subject.copy(ORDERS, [order(1, "before")], [order(1, "after")])

        subject.write(update(ORDERS, **order(1, "after")))

        subject.holds(ORDERS, [order(1, "after")])

    @needs("mirror")
    def test_a_row_of_two_chunks_becomes_one_by_an_update_with_an_unchanged_value(
        self, subject: Subject
    ) -> None:
        subject.copy(ORDERS, [order(1), order(2)], [order(1)])

        subject.write(
            update(ORDERS, **order(1, "after")),
            update(ORDERS, unchanged=["document"], id=2, note="x"),
        )

        subject.holds(ORDERS, [order(1, "after"), order(2, "x")])


def failing_chunk(rows: list[Row]) -> TableRows:
    """A chunk that breaks off with a ConnectionError after its last row."""

    def batches() -> Iterator[pa.RecordBatch]:
        yield from chunk("copy-1", 0, ORDERS, rows).batches()
        raise ConnectionError("the source went away")

    return TableRows("copy-1", batches(), chunk("copy-1", 0, ORDERS, rows).chunk)
