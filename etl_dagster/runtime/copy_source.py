"""What the worker of one table needs of its source, besides answers to questions."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyChunk
from etl_dagster.model.events import CopiedRows
from etl_dagster.model.schema import TableId
from etl_dagster.pg.encodings import stored_encoding
from etl_dagster.runtime.slot import make_slot
from etl_dagster.runtime.streaming.feed import OpenStream, stream_of_slot
from etl_dagster.shaping.pushing import with_pushed
from etl_dagster.source.catalog import PublishedTable, fetch_file_node
from etl_dagster.source.connection import connect
from etl_dagster.source.control import SourceControl
from etl_dagster.source.copy import ChunkReader
from etl_dagster.source.partitions import fetch_read_from
from etl_dagster.source.slots import CreatedSlot, group_slot_name, table_sync_slot_name
from etl_dagster.source.standby import fetch_seen_lsn, require_replayed

#: How long making a slot may wait for transactions that are open.
_SLOT_LOCK_TIMEOUT_S = 60.0


class ReadsChunks(Protocol):
    """Reads rows of one table. Belongs to one thread, but for `cancel`."""

    @property
    def replaced(self) -> Mapping[str, int]:
        """How many values of each column were odd in the chunk that was read last."""
        ...

    def read(self, chunk: CopyChunk) -> Iterator[CopiedRows]:
        """The rows of a chunk; none where its relation is gone."""
        ...

    def file_node(self, relation_id: int) -> int | None:
        """Where the relation's rows are kept now; None when it is gone."""
        ...

    def insert_lsn(self) -> Lsn:
        """Every transaction that was seen so far was committed before."""
        ...

    def cancel(self) -> None: ...

    def close(self) -> None: ...


class CopySource(Protocol):
    """Where a table is copied from, and its changes come from."""

    @property
    def slot_name(self) -> str: ...

    def new_slot(
        self, control: SourceControl, *, export_snapshot: bool, stop: threading.Event
    ) -> AbstractContextManager[CreatedSlot]:
        """Make the slot; its snapshot lasts until the context's end.

        Raises:
            Stopped: told to stop.
            EtlError: the slot can't be made.
        """
        ...

    def open_stream(self, start_lsn: Lsn, also_of: Sequence[str] = ()) -> OpenStream:
        """The slot's changes, of these publications, too."""
        ...

    def open_reader(
        self,
        table: PublishedTable,
        shape: Callable[[CopiedRows], CopiedRows],
        *,
        snapshot_name: str | None,
    ) -> ReadsChunks:
        """A connection that reads chunks.

        Raises:
            psycopg.Error, EtlError: the source can't be reached or refuses.
        """
        ...


class PostgresSource:
    """The real one, by connections of its own."""

    def __init__(self, config: PipelineConfig, table_id: TableId) -> None:
        self._config = config
        self._table_id = table_id
        self.slot_name = table_sync_slot_name(config.pipeline, table_id)

    @classmethod
    def of_group(cls, config: PipelineConfig, name: TableId) -> PostgresSource:
        """That of a group of tables, which is named after one of them."""
        made = cls(config, name)
        made.slot_name = group_slot_name(config.pipeline, name)
        return made

    @contextlib.contextmanager
    def new_slot(
        self, control: SourceControl, *, export_snapshot: bool, stop: threading.Event
    ) -> Iterator[CreatedSlot]:
        # The snapshot lasts as long as the connection that made the slot does nothing else.
        connection = connect(
            self._config.source,
            application_name=f"etl_dagster slot {self._config.pipeline} {self._table_id}",
            replication=True,
            lock_timeout_s=_SLOT_LOCK_TIMEOUT_S,
        )
        with contextlib.closing(connection):
            yield make_slot(
                control, connection, self.slot_name, export_snapshot=export_snapshot, stop=stop
            )

    def open_stream(self, start_lsn: Lsn, also_of: Sequence[str] = ()) -> OpenStream:
        return stream_of_slot(
            self._config.source,
            self.slot_name,
            start_lsn,
            application_name=f"etl_dagster sync {self._config.pipeline} {self._table_id}",
            also_of=also_of,
        )

    def open_reader(
        self,
        table: PublishedTable,
        shape: Callable[[CopiedRows], CopiedRows],
        *,
        snapshot_name: str | None,
    ) -> ReadsChunks:
        return _Chunks(self._config, table, shape, snapshot_name)


class _Chunks:
    """Two connections: one that reads rows, and one to ask about them."""

    def __init__(
        self,
        config: PipelineConfig,
        table: PublishedTable,
        shape: Callable[[CopiedRows], CopiedRows],
        snapshot_name: str | None,
    ) -> None:
        self._table_id = table.schema.id
        name = f"etl_dagster copy {config.pipeline} {table.schema.id}"
        self._asking: psycopg.Connection[Any] = connect(config.source, application_name=name)
        try:
            if config.source.standby:
                # Each chunk's snapshot is to be taken after the slot's consistent point.
                require_replayed(self._asking)
            self._reader = ChunkReader(
                config.source,
                table.schema,
                row_filter=with_pushed(table.schema, table.row_filter),
                snapshot_name=snapshot_name,
                application_name=name,
                encoding=stored_encoding(self._asking),
                shape=shape,
            )
        except BaseException:
            self._asking.close()
            raise

    @property
    def replaced(self) -> Mapping[str, int]:
        return self._reader.replaced

    def read(self, chunk: CopyChunk) -> Iterator[CopiedRows]:
        self._reader.replaced.clear()
        source = fetch_read_from(self._asking, self._table_id, chunk.relation_id)
        return self._reader.read(chunk, source) if source else iter(())

    def file_node(self, relation_id: int) -> int | None:
        return fetch_file_node(self._asking, relation_id)

    def insert_lsn(self) -> Lsn:
        return fetch_seen_lsn(self._asking)

    def cancel(self) -> None:
        self._reader.cancel()

    def close(self) -> None:
        with contextlib.closing(self._asking):
            self._reader.close()
