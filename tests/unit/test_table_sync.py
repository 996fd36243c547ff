"""The worker of one table, from its start to the hand-over, without a server.

The source is a few chunks of rows and a stream that does as the script says; the apply worker is
played by the script.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import (
    CopyOutdated,
    HandoverTimeout,
    InvalidState,
    LeaseLost,
    SlotInvalidated,
    SourceError,
    SourceUnreachable,
    TableRewritten,
)
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import ColumnSchema
from etl_dagster.model.states import (
    DataSync,
    Errored,
    FinishedCopy,
    Init,
    ManualRetry,
    Ready,
    TableState,
    TimedRetry,
)
from etl_dagster.model.stores import TableSyncWorker
from etl_dagster.source.catalog import (
    PublishedTable,
)
from etl_dagster.source.slots import Slot
from tests.support.copied_table import (
    FILE_NODE,
    READ_LSN,
    SLOT_LSN,
    Chunks,
    Fixture,
    Source,
    slot_at,
)
from tests.support.deliveries import ORDERS, schema
from tests.support.scripted import transaction
from tests.unit import wire


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


# -- all the way -----------------------------------------------------------------------------------


def test_a_table_is_prepared_copied_and_handed_over(fixture: Fixture) -> None:
    result = fixture.run()

    assert result is not None
    assert (result.row_count, result.chunk_count, result.resumed_chunks) == (3, 3, 0)
    assert (result.snapshot_lsn, result.handover_lsn) == (SLOT_LSN, fixture.source.end)
    assert fixture.ids == [0, 1, 2]
    # DataSync for the preparation, and again for the copy.
    assert fixture.store.went == [
        *("DataSync", "DataSync", "FinishedCopy", "SyncWait", "Catchup", "SyncDone")
    ]
    assert [progress.chunks_done for progress in fixture.progress] == [0, 1, 2, 3, 3, 3, 3]


def test_nothing_is_left_at_the_source_once_a_table_is_handed_over(fixture: Fixture) -> None:
    fixture.run()

    assert fixture.source.slot is None
    assert fixture.store.get_replication_progress(TableSyncWorker(ORDERS)) is None
    assert not fixture.store.is_leased(f"table:{ORDERS}")
    assert fixture.source.readers_closed == 1


def test_the_hand_over_is_requested_past_every_snapshot_of_the_copy(fixture: Fixture) -> None:
    """Before, the destination's table is not the source's at any moment."""
    seen: list[TableState | None] = []
    fixture.source.end = Lsn(READ_LSN.offset - 100)
    fixture.source.script += [
        lambda: seen.append(fixture.state),
        wire.keepalive(READ_LSN.offset - 1),
        *[lambda: seen.append(fixture.state)] * 3,
        wire.keepalive(READ_LSN.offset),
    ]

    fixture.run()

    assert seen == [FinishedCopy()] * 4


def test_changes_since_the_slot_was_made_are_replayed(fixture: Fixture) -> None:
    fixture.source.script += transaction(1200, 10)

    result = fixture.run()

    assert fixture.source.streamed_from == [SLOT_LSN]
    assert fixture.ids == [0, 1, 2, 10]
    assert result is not None
    assert result.handover_lsn == fixture.source.end


# -- beginning, or resuming ------------------------------------------------------------------------


def test_a_copy_is_resumed_with_the_chunks_that_are_left(fixture: Fixture) -> None:
    fixture.has_been_copied(0, 2)

    result = fixture.run()

    assert fixture.source.chunks_read == [1]
    assert fixture.ids == [0, 1, 2]
    assert result is not None
    assert (result.copy_id, result.resumed_chunks, result.row_count) == ("earlier", 2, 3)


def test_a_copy_that_was_finished_is_not_made_again(fixture: Fixture) -> None:
    fixture.has_been_copied()
    fixture.source.script.append(the_line_breaks)
    with pytest.raises(SourceUnreachable):
        fixture.run()
    fixture.source.chunks_read.clear()
    fixture.store.went.clear()

    assert fixture.run() is not None

    assert fixture.source.chunks_read == []
    assert fixture.store.went == ["FinishedCopy", "SyncWait", "Catchup", "SyncDone"]


@pytest.mark.parametrize(
    "slot",
    [
        None,
        slot_at(Lsn(SLOT_LSN.offset + 1)),
        replace(slot_at(SLOT_LSN), wal_status="lost"),
        replace(slot_at(SLOT_LSN), plugin="test_decoding"),
    ],
    ids=["gone", "moved past what is durable", "lost", "of another plugin"],
)
def test_a_copy_whose_slot_has_lost_changes_begins_again(
    fixture: Fixture, slot: Slot | None
) -> None:
    fixture.has_been_copied(0, 2)
    fixture.source.slot = slot

    result = fixture.run()

    assert fixture.source.chunks_read == [0, 1, 2]
    assert result is not None
    assert (result.copy_id != "earlier", result.resumed_chunks) == (True, 0)


def test_a_copy_begins_again_where_the_table_was_rewritten(fixture: Fixture) -> None:
    """The rows are at other places than the plan's block ranges say."""
    fixture.has_been_copied(0, 2)
    fixture.source.file_node = FILE_NODE + 1

    fixture.run()

    assert fixture.source.chunks_read == [0, 1, 2]


def test_a_copy_begins_again_where_the_table_was_altered(fixture: Fixture) -> None:
    fixture.has_been_copied(0, 2)
    columns = (*schema(ORDERS).columns, ColumnSchema("more", 25, base_type_oid=25))
    fixture.source.table = PublishedTable(replace(schema(ORDERS), columns=columns), None, 0)

    fixture.run()

    assert fixture.source.chunks_read == [0, 1, 2]


def test_a_copy_begins_again_where_the_destination_lacks_what_was_finished(
    fixture: Fixture,
) -> None:
    fixture.has_been_copied(0, 2)
    fixture.destination = MemoryDestination()

    fixture.run()

    assert fixture.ids == [0, 1, 2]


def test_a_requested_copy_begins_again(fixture: Fixture) -> None:
    fixture.has_been_copied(0, 2)
    fixture.store.update_table_replication_states([(ORDERS, Init())])

    fixture.run()

    assert fixture.source.chunks_read == [0, 1, 2]


# -- what may happen meanwhile ---------------------------------------------------------------------


def test_a_table_altered_while_its_slot_is_created_is_tried_again(fixture: Fixture) -> None:
    """The slot's first changes would take the new column away again."""
    columns = (*schema(ORDERS).columns, ColumnSchema("more", 25, base_type_oid=25))

    def alter() -> None:
        fixture.source.table = PublishedTable(replace(schema(ORDERS), columns=columns), None, 0)

    fixture.source.while_preparing = alter
    with pytest.raises(TableRewritten, match="altered while its copy was prepared"):
        fixture.run()

    assert isinstance(fixture.state, Errored)
    assert isinstance(fixture.state.retry, TimedRetry)


def test_a_chunk_of_a_table_that_is_rewritten_meanwhile_does_not_count_as_copied(
    fixture: Fixture,
) -> None:
    def rewrite() -> None:
        fixture.source.file_node += 1

    fixture.source.while_reading = [lambda: None, rewrite]
    with pytest.raises(TableRewritten, match="rewritten while it was copied"):
        fixture.run()

    plan = fixture.store.get_copy_plan(ORDERS)
    assert plan is not None
    assert list(plan.finished) == [0]


def test_a_chunk_that_fails_is_read_again_by_another_connection(fixture: Fixture) -> None:
    fixture.source.while_reading = [the_line_breaks, the_line_breaks]

    assert fixture.run() is not None

    assert fixture.source.chunks_read == [0, 0, 0, 1, 2]
    assert fixture.source.readers_closed == 3


def test_a_table_that_keeps_failing_is_tried_again_later(fixture: Fixture) -> None:
    fixture.source.while_reading = [the_line_breaks] * 4
    with pytest.raises(SourceUnreachable):
        fixture.run()

    assert isinstance(fixture.state, Errored)
    assert isinstance(fixture.state.retry, TimedRetry)
    assert fixture.source.slot is not None


def test_an_error_that_waiting_cannot_cure_waits_for_an_operator(fixture: Fixture) -> None:
    def refuse() -> None:
        raise SourceError("permission denied")

    fixture.source.while_reading = [refuse]
    with pytest.raises(SourceError):
        fixture.run()

    assert isinstance(fixture.state, Errored)
    assert fixture.state.retry == ManualRetry()


def test_a_copy_ends_once_another_one_is_requested(fixture: Fixture) -> None:
    fixture.source.while_reading = [lambda: fixture.store.request_copy(ORDERS)]
    with pytest.raises(LeaseLost, match="another copy"):
        fixture.run()

    assert fixture.source.chunks_read == [0]
    assert fixture.state == Init()


def test_a_stop_ends_the_copy_and_what_is_finished_stays_so(fixture: Fixture) -> None:
    fixture.source.while_reading = [lambda: None, fixture.stop.set]

    assert fixture.run() is None

    plan = fixture.store.get_copy_plan(ORDERS)
    assert plan is not None
    assert list(plan.finished) == [0]
    assert fixture.state == DataSync()


def test_a_copy_that_cannot_follow_the_stream_is_made_again(fixture: Fixture) -> None:
    def outdated() -> None:
        raise CopyOutdated("it was altered")

    fixture.source.script.append(outdated)

    assert fixture.run() is not None

    assert fixture.source.chunks_read == [0, 1, 2] * 2
    assert fixture.store.went.count("FinishedCopy") == 2


def test_a_table_that_is_streamed_is_left_alone(fixture: Fixture) -> None:
    fixture.store.update_table_replication_states([(ORDERS, Ready(Lsn(1)))])
    with pytest.raises(InvalidState, match="streamed already"):
        fixture.run()

    assert fixture.state == Ready(Lsn(1))


def test_two_workers_never_have_the_same_table(fixture: Fixture) -> None:
    assert fixture.store.acquire_lease(f"table:{ORDERS}") is not None
    with pytest.raises(LeaseLost):
        fixture.run()
    assert fixture.source.control.asked == []


def test_a_copy_that_no_process_takes_over_is_given_up(fixture: Fixture) -> None:
    """It leaves nothing at the source that keeps WAL."""
    fixture.pipeline.release()
    fixture.source.answer = lambda: fixture.clock.pass_by(1.0)  # type: ignore[method-assign]

    with pytest.raises(HandoverTimeout, match=r"public\.table_1 is copied, but for 30\d s"):
        fixture.run()

    assert fixture.source.slot is None
    assert isinstance(fixture.state, Errored)
    assert "Start the pipeline" in fixture.state.solution


def test_a_copy_waits_for_as_long_as_a_process_runs_the_pipeline(fixture: Fixture) -> None:
    waits = 0

    def slow() -> None:
        nonlocal waits
        waits += 1
        fixture.clock.pass_by(1.0)
        if waits > 1000:
            Source.answer(fixture.source)

    fixture.source.answer = slow  # type: ignore[method-assign]

    assert fixture.run() is not None
    assert fixture.clock.now_s() > 1000


def the_line_breaks() -> None:
    raise SourceUnreachable("the line is cut")


def test_a_copy_ends_as_soon_as_its_slot_is_lost(fixture: Fixture) -> None:
    """The rest of a copy of many hours would be useless."""
    cancelled = threading.Event()

    class Cancelled(Chunks):
        def cancel(self) -> None:
            cancelled.set()

    def lose() -> None:
        fixture.source.slot = replace(slot_at(SLOT_LSN), wal_status="lost")
        fixture.clock.pass_by(60.0)
        assert cancelled.wait(60)

    fixture.source.while_reading = [lose]
    fixture.source.open_reader = (  # type: ignore[method-assign]
        lambda *_, **__: Cancelled(fixture.source)
    )
    with pytest.raises(SlotInvalidated, match=r"is lost while .* is copied"):
        fixture.run()

    assert fixture.source.chunks_read == [0]
    assert isinstance(fixture.state, Errored)
    assert "etl-dagster retry public.table_1" in fixture.state.solution
