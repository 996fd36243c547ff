"""A worker of a table without a server: a few chunks of rows, and a stream as a script has it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyChunk, CopyPlan, FinishedChunk
from etl_dagster.model.events import ChunkId, CopiedRows, TableRows
from etl_dagster.model.states import (
    Catchup,
    DataSync,
    Init,
    SyncWait,
    TableState,
)
from etl_dagster.model.stores import TableSyncWorker
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.copying.copy_helper import CopyHelper
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
from tests.support.scripted import ManualClock, ScriptedSource, ScriptedStream, config
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

    def open_stream(
        self, start_lsn: Lsn, also_of: Sequence[str] = ()
    ) -> Callable[[ReplicationSession], ScriptedStream]:
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
        #: The chunks that helpers have finished.
        self.helped: list[int] = []
        self.config = config(
            copy={"max_connections_per_table": 1, "chunk_rows": 100},
            retry={"initial_delay_ms": 10, "max_delay_ms": 20, "max_attempts": 3},
        )
        self.store.update_table_replication_states([(ORDERS, Init())])
        self.store.went.clear()
        lease = self.store.acquire_lease("apply")
        assert lease is not None
        self.pipeline = lease

    def run(self) -> TableSyncResult | None:
        return TableSync(
            self.config,
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

    def help(self) -> bool:
        """Another process copies what it can of the copy under way."""
        return CopyHelper(
            self.config,
            self.store,
            self.destination,
            ORDERS,
            stop=self.stop,
            on_chunk=lambda chunk: self.helped.append(chunk.index),
            clock=self.clock,
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
