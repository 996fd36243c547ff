"""What a destination promises about deliveries: durability, and changes that come again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random

import pytest

from etl_dagster.errors import Superseded
from etl_dagster.model.destination import Destination, members
from etl_dagster.model.events import EventBatch
from etl_dagster.testing.changes import (
    ORDERS,
    PRICES,
    READINGS,
    VISITS,
    Transactions,
    batch,
    delete,
    insert,
    order,
    table,
    truncate,
    update,
)
from etl_dagster.testing.random_changes import RandomSource, random_transactions
from etl_dagster.testing.subject import DestinationChecks, Subject, needs
from etl_dagster.testing.waiting import all_within


class DeliveryChecks(DestinationChecks):
    """Batches, durability, deliveries that come again, epochs."""

    def test_it_has_the_operations_of_a_destination(self, subject: Subject) -> None:
        destination = subject.destination
        missing = sorted(name for name in members(Destination) if not hasattr(destination, name))
        assert not missing, f"define {', '.join(missing)} in {type(destination).__name__}"

    def test_its_name_can_be_part_of_a_state_id(self, subject: Subject) -> None:
        name = subject.destination.name
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name), (
            f"the name is {name!r}: it must begin with a letter or digit, and hold only these, "
            "underscores, dots and hyphens"
        )

    # -- batches -------------------------------------------------------------------------------

    def test_a_batch_without_changes_is_accepted(self, subject: Subject) -> None:
        """An empty one, one with marks only, and a pipeline's first one, which is only an epoch."""
        subject.copy(ORDERS, [order(1)])
        marks = batch(Transactions().commit(insert(ORDERS, **order(2)))).marks
        for events in (batch([]), EventBatch({}, marks), EventBatch({}, epoch=1)):
            subject.write_batch(events)

        subject.holds(ORDERS, [order(1)])

    @needs("mirror")
    def test_tables_that_several_threads_write_are_all_right(self, subject: Subject) -> None:
        """Each table has one stream; several tables are written at once."""

        def write(table_id: int) -> Callable[[], None]:
            schema = table(ORDERS.columns, table_id=table_id, name=f"orders_{table_id}")
            stream = Transactions()

            def work() -> None:
                subject.copy(schema)
                for number in range(5):
                    subject.deliver(stream.commit(insert(schema, **order(number))))
                subject.holds(schema, [order(number) for number in range(5)])

            return work

        writes = [write(table_id) for table_id in range(20001, 20004)]
        all_within(self.patience_s, "writing tables from three threads", writes)

    @needs("mirror")
    def test_writes_of_several_tables_may_be_under_way_at_once(self, subject: Subject) -> None:
        """With futures, `batch.max_in_flight` allows several writes, at most one for each table.

        They become durable in any order.
        """
        tables = [
            table(ORDERS.columns, table_id=table_id, name=f"orders_{table_id}")
            for table_id in range(20001, 20004)
        ]
        for schema in tables:
            subject.copy(schema)
        for number in range(3):
            results = [
                subject.destination.write_events(
                    batch(subject.stream.commit(insert(schema, **order(number))))
                )
                for schema in tables
            ]
            for result in reversed(results):
                subject.wait_durable(result)

        for schema in tables:
            subject.holds(schema, [order(number) for number in range(3)])

    # -- durable -------------------------------------------------------------------------------

    def test_a_write_gives_none_or_a_future(self, subject: Subject) -> None:
        destination = subject.destination
        assert destination.drop_table_for_copy(ORDERS) is None  # type: ignore[func-returns-value]
        subject.copy(ORDERS)
        result = destination.write_events(batch(Transactions().commit(insert(ORDERS, id=1))))

        subject.wait_durable(result)

    @needs("mirror")
    def test_what_was_written_can_be_read_once_the_write_is_durable(self, subject: Subject) -> None:
        subject.copy(ORDERS)
        for number in range(3):
            subject.write(insert(ORDERS, **order(number)))
            subject.holds(ORDERS, [order(n) for n in range(number + 1)])

    def test_a_finished_copy_outlives_the_process(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1)], [order(2)])
        subject.reopen()

        subject.holds(ORDERS, [order(1), order(2)])

    @needs("mirror")
    def test_changes_outlive_the_process_once_the_write_is_durable(self, subject: Subject) -> None:
        """Postgres may remove changes that were reported as durable: they never come again."""
        subject.copy(ORDERS, [order(1), order(2)])
        subject.write(update(ORDERS, **order(1, "changed")), delete(ORDERS, id=2))
        subject.write(insert(ORDERS, **order(3)))
        subject.reopen()

        subject.holds(ORDERS, [order(1, "changed"), order(3)])

    @needs("read_changes")
    def test_recorded_changes_outlive_the_process(self, subject: Subject) -> None:
        subject.copy(VISITS)
        changes = subject.write(insert(VISITS, page="/", at=1), insert(VISITS, page="/", at=2))
        subject.reopen()

        subject.has_recorded(changes)

    def test_a_copy_resumes_in_another_process(self, subject: Subject) -> None:
        """Chunks that were durable are not written again: the store knows them."""
        subject.destination.drop_table_for_copy(ORDERS)
        subject.write_chunk(ORDERS, 0, [order(1)])
        subject.reopen()
        subject.write_chunk(ORDERS, 1, [order(2)])
        subject.end_copy(ORDERS)

        subject.holds(ORDERS, [order(1), order(2)])

    @needs("mirror")
    def test_changes_continue_in_another_process(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1), order(2, document="kept")])
        subject.reopen()
        subject.write(
            delete(ORDERS, id=1),
            update(ORDERS, unchanged=["document"], id=2, note="changed"),
        )

        subject.holds(ORDERS, [order(2, "changed", document="kept")])

    @needs("mirror")
    def test_shutting_down_loses_no_write_under_way(self, subject: Subject) -> None:
        subject.copy(ORDERS)
        events = batch(subject.stream.commit(insert(ORDERS, **order(1))))
        result = subject.destination.write_events(events)
        subject.shut_down()
        subject.wait_durable(result)
        subject.reopen()

        subject.holds(ORDERS, [order(1)])

    # -- delivered again -----------------------------------------------------------------------

    @needs("mirror")
    def test_everything_delivered_again_ends_in_the_same_rows(self, subject: Subject) -> None:
        """For rows with a key. Without transactions, rows without one may be there twice."""
        for schema in (ORDERS, VISITS):
            subject.copy(schema, [])
        changes = subject.write(
            insert(ORDERS, **order(1, "a")),
            insert(ORDERS, **order(2, "b")),
            insert(VISITS, page="/", at=1),
        )
        changes += subject.write(
            update(ORDERS, **order(1, "c")),
            delete(ORDERS, id=2),
            insert(ORDERS, **order(3)),
            update(ORDERS, old={"id": 3}, **order(4)),
        )
        for again in (changes, changes[2:], changes):
            subject.deliver(again)

        subject.holds(ORDERS, [order(1, "c"), order(4)])
        subject.holds_at_least_once(VISITS, [{"page": "/", "at": 1}])

    @needs("truncate", "mirror")
    def test_a_truncate_delivered_again_with_what_followed_ends_in_the_same_rows(
        self, subject: Subject
    ) -> None:
        subject.copy(ORDERS, [order(9)])
        changes = subject.write(truncate(ORDERS))
        changes += subject.write(insert(ORDERS, **order(1)))
        subject.deliver(changes)

        subject.holds(ORDERS, [order(1)])

    @needs("read_changes")
    def test_changes_delivered_again_are_recorded_under_the_same_positions(
        self, subject: Subject
    ) -> None:
        """So a reader can distinguish the second delivery from another change."""
        for schema in (ORDERS, VISITS):
            subject.copy(schema)
        first = subject.write(insert(VISITS, page="/", at=1), insert(ORDERS, **order(1)))
        second = subject.write(insert(VISITS, page="/", at=2), update(ORDERS, **order(1, "x")))
        for again in (first, first + second, second, first):
            subject.deliver(again)

        subject.has_recorded(first + second)

    @needs("transactional", "mirror")
    def test_a_batch_delivered_again_changes_nothing(self, subject: Subject) -> None:
        for schema in (ORDERS, VISITS):
            subject.copy(schema)
        stream = Transactions()
        first = stream.commit(insert(VISITS, page="/", at=1), insert(ORDERS, **order(1)))
        second = stream.commit(insert(VISITS, page="/", at=2), update(ORDERS, **order(1, "x")))
        for changes in (first, first, first + second, second, first):
            subject.deliver(changes)

        subject.holds(VISITS, [{"page": "/", "at": 1}, {"page": "/", "at": 2}])
        subject.holds(ORDERS, [order(1, "x")])

    @needs("transactional", "mirror")
    def test_a_batch_delivered_again_to_another_process_changes_nothing(
        self, subject: Subject
    ) -> None:
        subject.copy(VISITS, [{"page": "/", "at": 0}])
        changes = subject.write(insert(VISITS, page="/", at=1))
        subject.reopen()
        subject.deliver(changes)
        subject.write_chunk(VISITS, 0, [{"page": "/", "at": 0}])
        subject.end_copy(VISITS)

        subject.holds(VISITS, [{"page": "/", "at": 0}, {"page": "/", "at": 1}])

    @needs("transactional", "mirror")
    def test_a_batch_cut_inside_a_transaction_resumes_where_it_was_cut(
        self, subject: Subject
    ) -> None:
        subject.copy(VISITS)
        changes = Transactions().commit(*(insert(VISITS, page="/", at=n) for n in range(10)))
        for stretch in (changes[:4], changes[2:7], changes):
            subject.deliver(stretch)

        subject.holds(VISITS, [{"page": "/", "at": n} for n in range(10)])

    @needs("transactional", "truncate", "mirror")
    def test_a_truncate_delivered_again_keeps_the_rows_since(self, subject: Subject) -> None:
        subject.copy(ORDERS)
        stream = Transactions()
        emptied = stream.commit(truncate(ORDERS))
        since = stream.commit(insert(ORDERS, **order(1)))
        for changes in (emptied, since, emptied, emptied + since):
            subject.deliver(changes)

        subject.holds(ORDERS, [order(1)])

    # -- several processes ---------------------------------------------------------------------

    @needs("mirror")
    def test_another_process_copies_a_table_while_this_one_streams(self, subject: Subject) -> None:
        """As a Dagster run does next to the replicator, each with an object of its own."""
        subject.copy(ORDERS, [order(1)])
        other = subject.another()
        other.destination.drop_table_for_copy(VISITS)
        subject.write(update(ORDERS, **order(1, "x")))
        other.write_chunk(VISITS, 0, [{"page": "/", "at": 1}])
        subject.write(insert(ORDERS, **order(2)))
        other.end_copy(VISITS)
        subject.write(insert(VISITS, page="/", at=2), delete(ORDERS, id=1))

        subject.holds(ORDERS, [order(2)])
        subject.holds(VISITS, [{"page": "/", "at": 1}, {"page": "/", "at": 2}])

    @needs("transactional", "mirror")
    def test_a_stalled_process_is_refused_once_another_took_over(self, subject: Subject) -> None:
        subject.copy(VISITS)
        stream = Transactions()
        first, late = (stream.commit(insert(VISITS, page="/", at=n)) for n in range(2))
        subject.deliver(first, epoch=1)
        subject.another().write_batch(EventBatch({}, epoch=2))
        with pytest.raises(Superseded):
            subject.deliver(late, epoch=1)

        subject.holds(VISITS, [{"page": "/", "at": 0}])

    # -- epochs --------------------------------------------------------------------------------

    @needs("transactional", "mirror")
    def test_an_older_epoch_is_refused_and_writes_nothing(self, subject: Subject) -> None:
        """A process that stalled wakes up and writes its batch, but another has taken over."""
        subject.copy(VISITS)
        stream = Transactions()
        first, second, third = (stream.commit(insert(VISITS, page="/", at=n)) for n in range(3))
        subject.deliver(first, epoch=2)
        with pytest.raises(Superseded):
            subject.deliver(second, epoch=1)
        subject.deliver(third, epoch=0)

        subject.holds(VISITS, [{"page": "/", "at": 0}, {"page": "/", "at": 2}])

    @needs("transactional", "mirror")
    def test_an_epoch_alone_is_enough_to_refuse_older_ones(self, subject: Subject) -> None:
        subject.copy(VISITS)
        subject.write_batch(EventBatch({}, epoch=7))
        with pytest.raises(Superseded):
            subject.deliver(Transactions().commit(insert(VISITS, page="/", at=1)), epoch=6)

        subject.holds(VISITS, [])

    # -- at random -----------------------------------------------------------------------------

    @needs("mirror")
    @pytest.mark.parametrize("seed", range(4))
    def test_random_changes_end_in_what_the_source_has(self, subject: Subject, seed: int) -> None:
        """In batches cut at random; if the destination is transactional, some come again."""
        random = Random(seed)
        source = RandomSource(truncates=subject.capabilities.truncate)
        for schema in (ORDERS, PRICES, VISITS, READINGS):
            subject.copy(schema)
        source.run(random_transactions(random))
        changes = source.stream.changes
        again = subject.capabilities.transactional
        for start, stop in _deliveries(random, len(changes), again=again):
            subject.deliver(changes[start:stop])

        for source_table in source.tables:
            subject.holds(source_table.schema, source_table.rows)


def _deliveries(random: Random, count: int, *, again: bool) -> Iterator[tuple[int, int]]:
    """Stretches of the stream, without a gap; with `again`, some begin at an earlier change."""
    done = 0
    while done < count:
        start = random.randint(0, done) if again and random.random() < 0.4 else done
        stop = random.randint(start + 1, min(count, start + 12))
        yield start, stop
        done = max(done, stop)
