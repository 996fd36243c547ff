"""A delivery with a destination that a test controls, and a stream made by hand."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import EtlError
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import EventBatch, TableRows, TransactionMark
from etl_dagster.model.schema import ColumnSchema, TableId, TableSchema
from etl_dagster.model.stores import ApplyWorker
from etl_dagster.protocol.batch import RawBatch
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.streaming.delivery import Delivery, Kept
from etl_dagster.runtime.tables.schemas import SchemaTracker, destination_metadata
from etl_dagster.source.columns import TableToday
from etl_dagster.source.types import TypeCatalog
from etl_dagster.stores.memory import MemoryStore
from tests.support.scripted import ManualClock, config, worker_parts
from tests.unit import wire

ORDERS, VISITS, ITEMS, PAYMENTS = 1, 2, 3, 4
FROM_THE_START = dict.fromkeys((ORDERS, VISITS, ITEMS, PAYMENTS), Lsn(0))


def schema(table_id: TableId) -> TableSchema:
    column = ColumnSchema("id", 23, primary_key_ordinal=1, is_identity=True, base_type_oid=23)
    return TableSchema(table_id, "public", f"table_{table_id}", (column,))


class Flaky(MemoryDestination):
    """Raises the given errors, then works."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []
        self.written = 0
        self.durable: Future[None] | None = None

    def write_events(self, events: EventBatch) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        super().write_events(events)
        self.written += 1
        return self.durable


D = TypeVar("D", bound=MemoryDestination)


class Side(Generic[D]):
    """A delivery with a store, a destination, and a stream made by hand."""

    def __init__(
        self,
        destination: D,
        batch: Mapping[str, Any] | None = None,
        renames: Any = None,
        expected: TransactionMark | None = None,
    ) -> None:
        self.store = MemoryStore()
        self.destination = destination
        self.stop = threading.Event()
        self.durable: list[Lsn | None] = []
        #: The store's progress when each batch was reported as written.
        self.progress_when_written: list[Lsn | None] = []
        self.failed: list[tuple[TableId, str]] = []
        self.outdated: list[tuple[TableId, str]] = []
        self._session = ReplicationSession()
        self._lsn = 1000
        for table_id in FROM_THE_START:
            self.store.store_table_schema(schema(table_id))
            self.store.store_destination_table_metadata(
                table_id, destination_metadata(schema(table_id), "applied")
            )
            self.destination.write_table_rows(schema(table_id), TableRows("copy"))
        retry = {"initial_delay_ms": 1, "max_delay_ms": 2, "max_attempts": 3}
        self.clock = ManualClock()
        self.parts = worker_parts(
            settings=config(retry=retry, batch=batch or {}),
            store=self.store,
            destination=destination,
            stop=self.stop,
            clock=self.clock,
        )
        self.schemas = SchemaTracker(
            self.store,
            lambda table_id: TableToday(schema(table_id)),
            lambda oids: TypeCatalog({}),
        )
        self.delivery = Delivery(
            self.parts,
            self,
            self.schemas,
            kept=Kept(ApplyWorker(), expected=expected),
            renames=renames,
            name="delivery under test",
        )

    # -- the role that the delivery has ----------------------------------------------------------

    def between_reads(self) -> bool:
        return True

    @property
    def apply_from(self) -> Mapping[TableId, Lsn]:
        return FROM_THE_START

    def prepare(self, events: EventBatch) -> EventBatch:
        return events

    def on_written(self, events: EventBatch) -> None:
        self.progress_when_written.append(self.progress)

    def on_durable(self, lsn: Lsn | None, events: EventBatch | None) -> None:
        self.durable.append(lsn)

    def on_table_error(self, table_id: TableId, error: EtlError) -> None:
        self.failed.append((table_id, error.reason))

    def on_outdated(self, table_id: TableId, reason: str) -> None:
        self.outdated.append((table_id, reason))

    # -- the stream made by hand -----------------------------------------------------------------

    def transaction(self, *rows: tuple[TableId, int]) -> RawBatch:
        self._lsn += 100
        messages = [wire.begin(self._lsn)]
        for table_id in {table_id for table_id, _ in rows}:
            column = RelationColumn("id", 23, -1, True)
            messages.append(
                wire.relation(Relation(table_id, "public", f"table_{table_id}", "d", (column,)))
            )
        messages += [wire.insert(table_id, [str(value)]) for table_id, value in rows]
        messages.append(wire.commit(self._lsn, self._lsn + 50))
        for message in messages:
            self._session.feed(wire.xlog_data(message))
        return self._session.take_batch()

    def ids(self, table_id: TableId) -> list[int]:
        return [row["id"] for row in self.destination.rows(f"public.table_{table_id}")]

    @property
    def progress(self) -> Lsn | None:
        return self.store.get_replication_progress(ApplyWorker())
