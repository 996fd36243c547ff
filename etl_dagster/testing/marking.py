"""What a destination promises that can be distinguished from others (`KeepsMark`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from etl_dagster.errors import Superseded
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch, TransactionMark
from etl_dagster.model.identity import DestinationMark, KeepsMark
from etl_dagster.testing.changes import ORDERS, VISITS, batch, insert, order
from etl_dagster.testing.subject import DestinationChecks, Subject, needs

_PIPELINE = "shop"


class MarkChecks(DestinationChecks):
    """The mark and the copies that are held: what is in them, and that they outlive the process."""

    def test_looking_for_a_mark_makes_nothing(self, subject: Subject) -> None:
        """Else a destination that was removed would come back as an empty one."""
        empty = subject.folder / "empty"
        empty.mkdir()
        other = _marking(self.make_destination(empty))
        # A destination in memory has an identity from the beginning.
        mark = other.read_mark(_PIPELINE)

        assert mark is None or mark.revision == 0, "a destination without a batch has a revision"
        assert other.held_copies([ORDERS.id]) == {}
        assert list(empty.iterdir()) == [], "read_mark() or held_copies() made files"

    def test_two_destinations_have_differing_identities(self, subject: Subject) -> None:
        mark = _mark(subject)
        folder = subject.folder / "another"
        folder.mkdir()
        another = self._started(folder)
        try:
            other = _marking(another).read_mark(_PIPELINE)
        finally:
            another.shutdown()

        assert mark.identity, "choose an identity at random when the destination is created"
        assert other is not None
        assert other.identity not in ("", mark.identity)

    def _started(self, folder: Path) -> Destination:
        from etl_dagster.stores.memory import MemoryStore

        made = self.make_destination(folder)
        made.startup(MemoryStore())
        return made

    def test_each_batch_makes_the_revision_larger(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1)])
        found = [_mark(subject).revision]
        for key in (2, 3):
            subject.write_batch(_batch(subject, key))
            found.append(_mark(subject).revision)
            assert _marking(subject.destination).written_revision(_PIPELINE) == found[-1]

        assert found[0] < found[1] < found[2], "each batch must increase the revision"

    def test_a_mark_says_what_its_batches_said(self, subject: Subject) -> None:
        begin = TransactionMark(Lsn(1000), 7, 1_000_000)
        subject.write_batch(
            EventBatch({}, commit_end_lsn=Lsn(1100), epoch=5, pipeline=_PIPELINE, last_begin=begin)
        )
        subject.write_batch(EventBatch({}, epoch=5, pipeline=_PIPELINE, stored_lsn=Lsn(1100)))

        mark = _mark(subject)
        assert (mark.epoch, mark.durable_lsn, mark.stored_lsn) == (5, Lsn(1100), Lsn(1100))
        assert mark.last_begin == begin

    def test_a_new_epoch_begins_its_positions_again(self, subject: Subject) -> None:
        """After a reset the source may be another one, with smaller positions."""
        old = EventBatch({}, commit_end_lsn=Lsn(9000), epoch=5, pipeline=_PIPELINE)
        subject.write_batch(replace(old, stored_lsn=Lsn(9000)))
        subject.write_batch(EventBatch({}, epoch=6, pipeline=_PIPELINE))

        mark = _mark(subject)
        assert (mark.epoch, mark.durable_lsn, mark.stored_lsn) == (6, LSN_ZERO, LSN_ZERO)
        assert mark.revision > 1

    def test_each_pipeline_has_a_mark_of_its_own(self, subject: Subject) -> None:
        marking = _marking(subject.destination)
        subject.write_batch(EventBatch({}, epoch=5, pipeline=_PIPELINE))
        subject.write_batch(EventBatch({}, epoch=9, pipeline="other"))
        subject.write_batch(EventBatch({}, epoch=5, pipeline=_PIPELINE))

        other = marking.read_mark("other")
        assert other is not None
        assert (_mark(subject).epoch, other.epoch) == (5, 9)
        assert _mark(subject).identity == other.identity

    @needs("transactional")
    def test_a_refused_batch_leaves_the_mark_alone(self, subject: Subject) -> None:
        subject.write_batch(EventBatch({}, epoch=5, pipeline=_PIPELINE))
        before = _mark(subject)
        with pytest.raises(Superseded):
            subject.write_batch(EventBatch({}, epoch=4, pipeline=_PIPELINE))

        assert _mark(subject) == before

    def test_a_mark_outlives_the_process(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1)])
        subject.write_batch(_batch(subject, 2))
        before = _mark(subject)

        subject.reopen()

        assert _mark(subject) == before

    def test_copies_are_held_until_they_are_given_up(self, subject: Subject) -> None:
        destination = _marking(subject.destination)
        assert destination.held_copies([ORDERS.id]) == {}
        subject.destination.drop_table_for_copy(ORDERS)
        subject.write_chunk(ORDERS, 3, [order(1)], copy_id="first")
        running = destination.held_copies([ORDERS.id, VISITS.id])
        assert list(running) == [ORDERS.id]
        assert running[ORDERS.id].copy_id == "first"
        assert not running[ORDERS.id].is_complete
        assert running[ORDERS.id].chunks == {3}

        subject.end_copy(ORDERS, copy_id="first")
        assert destination.held_copies([ORDERS.id])[ORDERS.id].is_complete
        assert destination.held_copies([VISITS.id]) == {}

        subject.destination.drop_table_for_copy(ORDERS)
        assert destination.held_copies([ORDERS.id]) == {}

    def test_a_complete_copy_is_held_after_the_process(self, subject: Subject) -> None:
        subject.copy(ORDERS, [order(1)], copy_id="first")

        subject.reopen()

        held = _marking(subject.destination).held_copies([ORDERS.id])[ORDERS.id]
        assert (held.copy_id, held.is_complete) == ("first", True)


def _marking(destination: Destination) -> KeepsMark:
    if not isinstance(destination, KeepsMark):
        pytest.skip(f"{type(destination).__name__} has no read_mark()")
    return destination


def _mark(subject: Subject) -> DestinationMark:
    mark = _marking(subject.destination).read_mark(_PIPELINE)
    assert mark is not None, "a destination that was started has a mark"
    return mark


def _batch(subject: Subject, key: int) -> EventBatch:
    changes = subject.stream.commit(insert(ORDERS, **order(key)))
    return replace(batch(changes), pipeline=_PIPELINE)
