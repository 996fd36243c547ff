"""What a destination promises of all that it may offer beyond the least."""

from __future__ import annotations

import pytest

from etl_dagster.model.destination import (
    FURTHER_CONTRACTS,
    ChecksItself,
    CountsRows,
    Interruptible,
    ReadsRows,
    RemovesTables,
    lacking,
    members,
    offered,
)
from etl_dagster.testing.changes import ORDERS, VISITS, chunk, insert, order
from etl_dagster.testing.subject import DestinationChecks, Subject, needs

#: As the batches of the suite name it.
_PIPELINE = ""


class OfferChecks(DestinationChecks):
    """Looking at itself, counting, being interrupted; and that what is declared is there."""

    def test_it_has_the_methods_of_what_it_offers(self, subject: Subject) -> None:
        """A method that is missing, or has another name, would never be called."""
        destination = subject.destination
        declared = destination.capabilities.offers
        unknown = [offer for offer in declared or () if offer not in FURTHER_CONTRACTS]
        assert not unknown, f"not among FURTHER_CONTRACTS: {unknown}"
        for contract in FURTHER_CONTRACTS:
            name, missing = contract.__name__, lacking(destination, contract)
            if declared is None:
                complete = not missing or len(missing) == len(members(contract))
                assert complete, f"of {name} it lacks {', '.join(missing)}"
            elif contract in declared:
                assert not missing, f"it declares {name} and lacks {', '.join(missing)}"
            else:
                assert missing, f"it has what {name} asks for and doesn't declare it"

    @needs("mirror")
    def test_what_is_durable_when_it_is_interrupted_is_kept(self, subject: Subject) -> None:
        """A stop may come at any moment; it ends what is tried again, and undoes nothing."""
        interruptible = offered(subject.destination, Interruptible)
        if interruptible is None:
            pytest.skip(f"{type(subject.destination).__name__} has no interrupt()")
        subject.copy(ORDERS, [order(1)])
        subject.write(insert(ORDERS, **order(2)))
        interruptible.interrupt()
        subject.shut_down()
        subject.reopen()

        subject.holds(ORDERS, [order(1), order(2)])

    def test_checking_itself_changes_nothing(self, subject: Subject) -> None:
        """`etl-dagster doctor` has it look before anything is there."""
        empty = subject.folder / "empty"
        empty.mkdir()
        destination = self.make_destination(empty)
        checking = offered(destination, ChecksItself)
        if checking is None:
            pytest.skip(f"{type(destination).__name__} has no check()")
        found = checking.check()

        assert found, "what check() returns is what the doctor shows"
        assert isinstance(found, str)
        assert list(empty.iterdir()) == []

    @needs("transactional", "mirror")
    def test_removed_tables_are_gone_and_may_come_again(self, subject: Subject) -> None:
        """`etl-dagster remove --with-tables` takes what is the pipeline's, and nothing else."""
        removing = offered(subject.destination, RemovesTables)
        if removing is None:
            pytest.skip(f"{type(subject.destination).__name__} has no remove_tables()")
        subject.copy(ORDERS, [order(1)])
        subject.copy(VISITS)
        subject.write(insert(ORDERS, **order(2)))
        removed = removing.remove_tables("another", [VISITS])
        assert len(removed) == 1
        subject.holds(ORDERS, [order(1), order(2)])
        assert len(removing.remove_tables(_PIPELINE, [ORDERS, VISITS])) == 1
        subject.shut_down()
        subject.reopen()
        again = offered(subject.destination, RemovesTables)
        assert again is not None
        assert list(again.remove_tables(_PIPELINE, [ORDERS, VISITS])) == []
        subject.shut_down()
        subject.reopen()
        subject.copy(ORDERS, [order(7)])

        subject.holds(ORDERS, [order(7)])

    @needs("mirror")
    def test_rows_are_counted_as_they_are_read(self, subject: Subject) -> None:
        counting = offered(subject.destination, CountsRows)
        if counting is None:
            pytest.skip(f"{type(subject.destination).__name__} has no count_rows()")
        subject.copy(ORDERS, [order(1), order(2)])
        subject.copy(VISITS)
        subject.write(insert(ORDERS, **order(3)))

        assert dict(counting.count_rows()) == {ORDERS.name: 3, VISITS.name: 0}

    @needs("mirror")
    def test_rows_are_read_back_as_they_were_written(self, subject: Subject) -> None:
        """`etl-dagster repair` compares what is read with what would be."""
        reading = offered(subject.destination, ReadsRows)
        if reading is None:
            pytest.skip(f"{type(subject.destination).__name__} has no read_rows()")
        rows = [order(1), order(2), order(3)]
        subject.copy(ORDERS, rows[:2])
        subject.copy(VISITS)
        subject.write(insert(ORDERS, **rows[2]))
        with reading.read_rows(ORDERS) as batches:
            found = [row for batch in batches for row in batch.to_pylist()]
        pieces = chunk("copy", 0, ORDERS, rows).pieces()
        expected = [r for each in pieces for r in reading.as_read(ORDERS, each.rows).to_pylist()]

        assert sorted(found, key=repr) == sorted(expected, key=repr)
        with reading.read_rows(VISITS) as batches:
            assert sum(batch.num_rows for batch in batches) == 0
