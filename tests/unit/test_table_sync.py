"""The worker of one table, from its start to the hand-over, without a server.

The source is a few chunks of rows and a stream that does as the script says; the apply worker is
played by the script.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
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
from etl_dagster.model.coordination import CopyChunk, CopyPlan, FinishedChunk
from etl_dagster.model.events import ChunkId, CopiedRows, TableRows
from etl_dagster.model.schema import ColumnSchema
from etl_dagster.model.states import (
    Catchup,
    DataSync,
    Errored,
    FinishedCopy,
    Init,
    ManualRetry,
    Ready,
    SyncWait,
    TableState,
    TimedRetry,
)
from etl_dagster.model.stores import TableSyncWorker
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.copying.table_sync import CopyProgress, TableSync, TableSyncResult
from etl_dagster.runtime.tables.identities import find_unidentified
from etl_dagster.runtime.timing import Timing
from etl_dagster.source.catalog import (
    Leaf,
    PublishedTable,
    emit_marker,
    fetch_clock,
    fetch_leaves,
    fetch_published_tables,
)
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import CreatedSlot, Slot, drop_slot, fetch_slot
from etl_dagster.stores.memory import MemoryStore
from tests.support.deliveries import ORDERS, schema
from tests.support.scripted import ManualClock, ScriptedSource, ScriptedStream, config, transaction
from tests.unit import wire

SLOT = "the_slot"
FILE_NODE = 7
#: Consistent point of the slot, and where a chunk's reading ends.
SLOT_LSN, READ_LSN = Lsn(1000), Lsn(1500)


class Store(MemoryStore):
    """Keeps the states that the table went through."""

    def __init__(self) -> None:
        super().__init__()
        self.went: list[str] = []

    def update_table_replication_states(self, updates: Any) -> None:
        self.went += [type(state).__name__ for _, state in updates]
        super().update_table_replication_states(updates)

    def transition_table_state(self, table_id: int, expected: TableState, new: TableState) -> bool:
        is_changed = super().transition_table_state(table_id, expected, new)
        if is_changed:
            self.went.append(type(new).__name__)
        return is_changed


class Chunks:
    """A reader of the source's chunks."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.replaced: Mapping[str, int] = {}

    def read(self, chunk: CopyChunk) -> Iterator[CopiedRows]:
        self._source.chunks_read.append(chunk.index)
        if self._source.while_reading:
            self._source.while_reading.pop(0)()
        yield CopiedRows(pa.record_batch({"id": pa.array([chunk.index], pa.int32())}))

    def file_node(self, relation_id: int) -> int | None:
        return self._source.file_node

    def insert_lsn(self) -> Lsn:
        return READ_LSN

    def cancel(self) -> None: ...

    def close(self) -> None:
        self._source.readers_closed += 1


class Source:
    """A table of three chunks with a row each; its slot's stream is a script."""

    slot_name = SLOT

    def __init__(self, store: Store) -> None:
        self._store = store
        self.table = PublishedTable(schema(ORDERS), None, 0)
        self.slot: Slot | None = None
        self.file_node = FILE_NODE
        self.chunks_read: list[int] = []
        self.readers_closed = 0
        #: What happens while a chunk is read, one step for each.
        self.while_reading: list[Callable[[], None]] = []
        #: What happens while the slot is made.
        self.while_preparing: Callable[[], None] = lambda: None
        #: Where each stream began.
        self.streamed_from: list[Lsn] = []
        self.script: list[Callable[[], None] | bytes] = []
        self.end = Lsn(2000)
        self.control = ScriptedSource(
            {
                fetch_published_tables: lambda *_, **__: [self.table] if self.table else [],
                find_unidentified: lambda tables: {},
                fetch_clock: lambda: datetime(2026, 1, 1, tzinfo=UTC),
                fetch_leaves: lambda table_id: [Leaf(ORDERS, 3, 300, self.file_node)],
                fetch_slot: lambda name: self.slot,
                drop_slot: self._drop,
                emit_marker: lambda: self.end,
            }
        )

    def _drop(self, name: str) -> bool:
        assert name == SLOT
        was_there, self.slot = self.slot is not None, None
        return was_there

    def answer(self) -> None:
        """As the apply worker: where both are by now is far enough."""
        state = self._store.get_table_replication_state(ORDERS)
        if isinstance(state, SyncWait):
            target = Catchup(max(state.lsn, self.end))
            assert self._store.transition_table_state(ORDERS, state, target)

    @contextmanager
    def new_slot(
        self, control: SourceControl, *, export_snapshot: bool, stop: threading.Event
    ) -> Iterator[CreatedSlot]:
        self.while_preparing()
        self.slot = slot_at(SLOT_LSN)
        yield CreatedSlot(SLOT, SLOT_LSN, "snapshot" if export_snapshot else None)

    def open_reader(self, table: Any, shape: Any, *, snapshot_name: str | None) -> Chunks:
        return Chunks(self)

    def open_stream(self, start_lsn: Lsn) -> Callable[[ReplicationSession], ScriptedStream]:
        self.streamed_from.append(start_lsn)
        return lambda session: Answering(session, self, start_lsn)


class Answering(ScriptedStream):
    """A keepalive with each read, and the script's next step; without one, the apply worker's."""

    is_over = False

    def __init__(self, session: ReplicationSession, source: Source, start_lsn: Lsn) -> None:
        super().__init__(session, source.script)
        self.start_lsn = start_lsn
        self._source = source

    def read(self, timeout_s: float) -> bool:
        if not self.script:
            self.script.append(self._source.answer)
            self.script.append(wire.keepalive(self._source.end.offset))
        return super().read(timeout_s)


def slot_at(lsn: Lsn) -> Slot:
    return Slot(SLOT, "pgoutput", "d", False, None, "reserved", lsn, lsn, 0)


class Fixture:
    """A worker of a table, and all that it meets."""

    def __init__(self) -> None:
        self.store, self.destination = Store(), MemoryDestination()
        self.source = Source(self.store)
        self.clock, self.stop = ManualClock(), threading.Event()
        self.progress: list[CopyProgress] = []
        self.store.update_table_replication_states([(ORDERS, Init())])
        self.store.went.clear()
        lease = self.store.acquire_lease("apply")
        assert lease is not None
        self.pipeline = lease

    def run(self) -> TableSyncResult | None:
        return TableSync(
            config(
                copy={"max_connections_per_table": 1, "chunk_rows": 100},
                retry={"initial_delay_ms": 10, "max_delay_ms": 20, "max_attempts": 3},
            ),
            self.store,
            self.destination,
            ORDERS,
            stop=self.stop,
            on_progress=self.progress.append,
            clock=self.clock,
            timing=Timing(handover_s=300.0),
            control=self.source.control,
            source=self.source,
        ).run()

    def has_been_copied(self, *chunks: int) -> None:
        """An earlier worker copied these chunks, and died."""
        plan = CopyPlan(
            "earlier",
            tuple(CopyChunk(n, ORDERS, n, None, 100, FILE_NODE) for n in range(3)),
            {},
            SLOT_LSN,
            datetime(2026, 1, 1, tzinfo=UTC),
        )
        self.store.store_table_schema(schema(ORDERS))
        self.store.store_copy_plan(ORDERS, plan)
        self.store.upsert_replication_progress(TableSyncWorker(ORDERS), SLOT_LSN)
        for index in chunks:
            rows = CopiedRows(pa.record_batch({"id": pa.array([index], pa.int32())}))
            self.destination.write_table_rows(
                schema(ORDERS), TableRows("earlier", [rows], ChunkId("earlier", index))
            )
            self.store.finish_chunk(ORDERS, "earlier", FinishedChunk(index, 1, 4, READ_LSN, 0.1))
        self.store.update_table_replication_states([(ORDERS, DataSync())])
        self.store.went.clear()
        self.source.slot = slot_at(SLOT_LSN)

    @property
    def state(self) -> TableState | None:
        return self.store.get_table_replication_state(ORDERS)

    @property
    def ids(self) -> list[int]:
        return sorted(row["id"] for row in self.destination.rows("public.table_1"))


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


def test_the_hand_over_is_asked_for_past_every_snapshot_of_the_copy(fixture: Fixture) -> None:
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
def test_a_copy_whose_slot_lacks_changes_begins_again(fixture: Fixture, slot: Slot | None) -> None:
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


def test_a_copy_that_was_asked_for_begins_again(fixture: Fixture) -> None:
    fixture.has_been_copied(0, 2)
    fixture.store.update_table_replication_states([(ORDERS, Init())])

    fixture.run()

    assert fixture.source.chunks_read == [0, 1, 2]


# -- what may happen meanwhile ---------------------------------------------------------------------


def test_a_table_that_is_altered_while_its_slot_is_made_is_tried_again(fixture: Fixture) -> None:
    """The slot's first changes would take the new column away again."""
    columns = (*schema(ORDERS).columns, ColumnSchema("more", 25, base_type_oid=25))

    def alter() -> None:
        fixture.source.table = PublishedTable(replace(schema(ORDERS), columns=columns), None, 0)

    fixture.source.while_preparing = alter
    with pytest.raises(TableRewritten, match="altered while its copy was prepared"):
        fixture.run()

    assert isinstance(fixture.state, Errored)
    assert isinstance(fixture.state.retry, TimedRetry)


def test_a_chunk_of_a_table_that_is_rewritten_meanwhile_counts_not_as_copied(
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


def test_what_waiting_does_not_cure_waits_for_a_person(fixture: Fixture) -> None:
    def refuse() -> None:
        raise SourceError("permission denied")

    fixture.source.while_reading = [refuse]
    with pytest.raises(SourceError):
        fixture.run()

    assert isinstance(fixture.state, Errored)
    assert fixture.state.retry == ManualRetry()


def test_a_copy_ends_once_another_one_is_asked_for(fixture: Fixture) -> None:
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


def test_a_copy_waits_as_long_as_a_process_runs_the_pipeline(fixture: Fixture) -> None:
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
    """The rest of a copy of many hours would be in vain."""
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
