"""What a destination promises about the contracts that it may offer beyond the least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from etl_dagster.errors import InvalidState, TableRewritten
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import (
    FURTHER_CONTRACTS,
    ChecksItself,
    CountsRows,
    HashesRows,
    Interruptible,
    ReadsRows,
    RemovesTables,
    RepairsTables,
    lacking,
    members,
    offered,
)
from etl_dagster.model.events import TableChanges
from etl_dagster.testing.changes import (
    ORDERS,
    VISITS,
    Change,
    Row,
    batch,
    chunk,
    delete,
    insert,
    order,
    update,
)
from etl_dagster.testing.subject import DestinationChecks, Subject, needs

#: As the batches of the suite name it.
_PIPELINE = ""


class OfferChecks(DestinationChecks):
    """That what is declared is there; and `check`, counts, repairs, removal and `interrupt`."""

    def test_it_has_the_methods_of_what_it_offers(self, subject: Subject) -> None:
        """The engine never calls a method that is misspelled or not declared."""
        destination = subject.destination
        declared = destination.capabilities.offers
        unknown = [offer for offer in declared or () if offer not in FURTHER_CONTRACTS]
        assert not unknown, (
            f"`offers` has {unknown}, which FURTHER_CONTRACTS has not: name contracts of "
            "etl_dagster.model.destination"
        )
        for contract in FURTHER_CONTRACTS:
            name, missing = contract.__name__, lacking(destination, contract)
            if declared is None:
                complete = not missing or len(missing) == len(members(contract))
                assert complete, (
                    f"it has some methods of {name}, so also define {', '.join(missing)}"
                )
            elif contract in declared:
                assert not missing, f"it declares {name}, so define {', '.join(missing)}"
            else:
                assert missing, f"it has all methods of {name}, so declare it in `offers`"

    @needs("mirror")
    def test_what_is_durable_when_it_is_interrupted_is_kept(self, subject: Subject) -> None:
        """A stop may come at any moment: it ends retries, and undoes nothing."""
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
        """`etl-dagster doctor` calls `check()` before anything is created."""
        empty = subject.folder / "empty"
        empty.mkdir()
        destination = self.make_destination(empty)
        checking = offered(destination, ChecksItself)
        if checking is None:
            pytest.skip(f"{type(destination).__name__} has no check()")
        found = checking.check()

        assert isinstance(found, str), "check() must return a text"
        assert found, "check() must return what it found: the doctor shows it"
        assert list(empty.iterdir()) == [], "check() made files"

    @needs("transactional", "mirror")
    def test_removed_tables_are_gone_and_may_come_again(self, subject: Subject) -> None:
        """`etl-dagster remove --with-tables` drops the pipeline's tables, and nothing else."""
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
        """`etl-dagster repair` compares these rows with what `as_read` makes of the source's."""
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

    @needs("mirror")
    def test_rows_have_the_same_hashes_wherever_they_are(self, subject: Subject) -> None:
        """Rows are taken for equal if their hashes are, and else for different."""
        hashing = offered(subject.destination, HashesRows)
        reading = offered(subject.destination, ReadsRows)
        if hashing is None:
            pytest.skip(f"{type(subject.destination).__name__} has no read_hashes()")
        assert reading is not None, "it offers HashesRows, so it must offer ReadsRows, too"
        rows = [order(1), order(2), order(3) | {"note": None}]
        subject.copy(ORDERS, rows)
        with hashing.read_hashes(ORDERS) as found:
            there = [pair for each in found for pair in zip(*each, strict=True)]
        with reading.read_rows(ORDERS) as batches:
            read = [
                pair
                for batch in batches
                for pair in zip(*hashing.hash_rows(ORDERS, batch, are_read=True), strict=True)
            ]
        given = [pair for row in rows for pair in _hashes(hashing, row)]

        assert sorted(there) == sorted(read) == sorted(given)
        assert len({key for key, _ in given}) == len({whole for _, whole in given}) == 3
        [(key, whole)] = _hashes(hashing, rows[0] | {"note": "another"})
        assert key == given[0][0]
        assert whole not in {whole for _, whole in given}

    @needs("transactional", "mirror")
    def test_a_repaired_table_has_its_rows_and_then_the_changes_since(
        self, subject: Subject
    ) -> None:
        """`etl-dagster repair` replaces rows as of one position of the stream."""
        repairing = _repairing(subject)
        stream = subject.stream
        subject.copy(ORDERS, [order(1), order(2), order(3)])
        subject.write(update(ORDERS, **order(3, "before")))
        repairing.begin_repair(ORDERS, "repair")
        left_out = stream.commit(update(ORDERS, **order(1, "left out")), insert(ORDERS, **order(9)))
        subject.deliver(left_out)
        subject.holds(ORDERS, [order(1), order(2), order(3, "before")])
        repaired = stream.commit(
            update(ORDERS, **order(1, "repaired")), update(ORDERS, **order(4)), delete(ORDERS, id=3)
        )
        for _ in range(2):  # as after a lost answer
            subject.wait_durable(repairing.write_repair(_changes(repaired), "repair"))
        subject.holds(ORDERS, [order(1, "repaired"), order(2), order(4)])
        since = stream.commit(insert(ORDERS, **order(5)), update(ORDERS, **order(2, "since")))
        start = Lsn(since[0].lsn)
        for _ in range(2):
            repairing.end_repair(ORDERS, "repair", start)
        subject.deliver(left_out)
        subject.deliver(since, apply_from={ORDERS.id: Lsn(start.offset - 1)})
        subject.holds(ORDERS, [order(1, "repaired"), order(2), order(4)])
        for _ in range(2):
            subject.deliver(left_out + since, apply_from={ORDERS.id: start})

        subject.holds(ORDERS, [order(1, "repaired"), order(2, "since"), order(4), order(5)])
        if (marking := getattr(subject.destination, "held_copies", None)) is not None:
            held = marking([ORDERS.id])[ORDERS.id]
            assert (held.copy_id, held.is_complete) == ("repair", True)

    @needs("transactional", "mirror")
    def test_a_repair_is_over_once_a_copy_has_begun(self, subject: Subject) -> None:
        repairing = _repairing(subject)
        gone = _changes(subject.stream.commit(delete(ORDERS, id=1)))
        subject.copy(ORDERS, [order(1), order(2)])
        repairing.begin_repair(ORDERS, "repair")
        subject.wait_durable(repairing.write_repair(gone, "repair"))
        subject.copy(ORDERS, [order(1), order(3)], copy_id="copy-2")

        with pytest.raises(InvalidState):
            subject.wait_durable(repairing.write_repair(gone, "repair"))
        with pytest.raises(InvalidState):
            repairing.end_repair(ORDERS, "repair", Lsn(10**9))
        subject.holds(ORDERS, [order(1), order(3)])

    @needs("transactional", "mirror")
    def test_another_table_than_the_schema_says_is_not_repaired(self, subject: Subject) -> None:
        repairing = _repairing(subject)
        with pytest.raises(TableRewritten):
            repairing.begin_repair(ORDERS, "repair")
        subject.copy(ORDERS, [order(1)])
        for another in (
            replace(ORDERS, columns=ORDERS.columns[:-1]),
            replace(ORDERS, table_name="renamed"),
        ):
            with pytest.raises(TableRewritten):
                repairing.begin_repair(another, "repair")

        subject.write(insert(ORDERS, **order(2)))
        subject.holds(ORDERS, [order(1), order(2)])


def _repairing(subject: Subject) -> RepairsTables:
    found = offered(subject.destination, RepairsTables)
    if found is None:
        pytest.skip(f"{type(subject.destination).__name__} has no begin_repair()")
    return found


def _changes(committed: Sequence[Change]) -> TableChanges:
    [step] = batch(committed).tables[ORDERS.id]
    assert isinstance(step, TableChanges)
    return step


def _hashes(hashing: HashesRows, row: Row) -> list[tuple[int, int]]:
    """The hashes of the key and of the whole row, for a row of `ORDERS` that is to be written."""
    return [
        pair
        for piece in chunk("copy", 0, ORDERS, [row]).pieces()
        for pair in zip(*hashing.hash_rows(ORDERS, piece.rows), strict=True)
    ]
