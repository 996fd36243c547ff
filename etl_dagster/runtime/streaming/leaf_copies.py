"""Adds the rows of partitions that were attached to tables that are streamed already."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from etl_dagster.errors import EtlError, TableRewritten
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyChunk
from etl_dagster.model.events import INSERT, CopiedRows, EventBatch, TableChanges
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.pg.cancelling import cancelled_by
from etl_dagster.pg.encodings import stored_encoding
from etl_dagster.protocol.batch import Altered
from etl_dagster.protocol.pgoutput import Relation
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.membership.partitions import LeafCopy, Partitions
from etl_dagster.runtime.streaming.feed import Feed
from etl_dagster.runtime.streaming.role import Role
from etl_dagster.runtime.tables.odd_policies import log_odd
from etl_dagster.runtime.tables.representation import chosen, keep_choices
from etl_dagster.runtime.tables.schemas import SchemaTracker
from etl_dagster.runtime.tenure import Tenure
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import PublishedTable, emit_marker, fetch_published_tables
from etl_dagster.source.copy import CopyConnection, TableReader
from etl_dagster.source.partitions import fetch_read_from

_log = logging.getLogger(__name__)

#: The stream waits meanwhile, so it doesn't wait for another session's lock for long.
_LOCK_TIMEOUT_S = 2.0
#: After a failure that may pass.
_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class _Begun:
    """A partition whose rows are read once the stream has passed the marker."""

    leaf: LeafCopy
    #: As published before the marker was written.
    table: PublishedTable
    marker: Lsn


class LeafCopies:
    """Reads a partition while the stream waits; belongs to the thread that reads the stream.

    The stream is read up to a position P, past the moment at which the partition was found, and
    everything before is made durable. Then the partition is read in one snapshot, at or after P,
    and its rows are sent as inserts with positions just before P: after every change that was
    applied, before every change to come. Changes that the snapshot has seen already come again
    from the stream; with a key, to apply them again changes nothing in the end.

    What is interrupted is done again with a later P. Until all rows are durable, the partition
    counts as missing.
    """

    def __init__(
        self,
        parts: WorkerParts,
        role: Role,
        feed: Feed,
        partitions: Partitions,
        schemas: SchemaTracker,
        tenure: Tenure,
    ) -> None:
        self._config = parts.config
        self._control = parts.control
        self._clock = parts.clock
        self._stop = parts.stop
        self._partitions = partitions
        self._role = role
        self._feed = feed
        self._schemas = schemas
        self._tenure = tenure
        self._begun: _Begun | None = None
        self._done: set[LeafCopy] = set()
        self._paused_until = 0.0

    def advance(self, apply_from: Mapping[TableId, Lsn]) -> None:
        """Do what is due for the next partition, if there is one.

        Args:
            apply_from: the tables that are streamed, each from its LSN on.

        Raises:
            Stopped: the pipeline stops.
            EtlError: what the destination or the store failed with.
        """
        wanted = self._partitions.wanted
        self._done.intersection_update(wanted)
        leaf = next((w for w in wanted if w.table_id in apply_from and w not in self._done), None)
        if leaf is None or self._clock.now_s() < self._paused_until:
            self._begun = None
            return
        try:
            if self._begun is None or self._begun.leaf != leaf:
                self._begin(leaf)
            elif self._feed.has_passed(Lsn(self._begun.marker.offset + 1)):
                self._copy(self._begun, apply_from)
        except Stopped:
            raise
        except EtlError as error:
            if self._stop.is_set():
                raise Stopped from None
            self._feed.raise_failure()
            self._begun = None
            if not error.retryable and not isinstance(error, TableRewritten):
                # What is under way of the table must be known to be at the destination.
                self._feed.deliver_all()
                self._role.on_table_error(leaf.table_id, error)
            _log.warning("partition %s can't be added now: %s", leaf.partition.name, error.reason)
            self._paused_until = self._clock.now_s() + _PAUSE_S

    def _begin(self, leaf: LeafCopy) -> None:
        table = self._fetch(leaf.table_id)
        if table is not None:
            marker = self._control.ask("marking the stream", emit_marker)
            self._begun = _Begun(leaf, table, marker)

    def _fetch(self, table_id: TableId) -> PublishedTable | None:
        publication = self._config.source.publication
        tables = self._control.ask(
            "reading the publication", fetch_published_tables, publication, [table_id]
        )
        return tables[0] if tables else None

    def _copy(self, begun: _Begun, apply_from: Mapping[TableId, Lsn]) -> None:
        leaf, position = begun.leaf, self._feed.position
        self._feed.deliver_all()
        self._begun = None
        if position <= apply_from[leaf.table_id]:
            return  # a later marker leads past it
        schema = self._schema(begun)
        if schema is None:
            return
        name = f"etl_dagster partition {self._config.pipeline} {leaf.leaf_id}"
        source = self._control.ask(
            "looking at a partition", fetch_read_from, leaf.table_id, leaf.leaf_id
        )
        if source is None:
            return  # dropped meanwhile; the next look tells
        _log.info("adding the rows of partition %s to %s", leaf.partition.name, schema.name)
        encoding = self._control.ask("reading the encoding", stored_encoding)
        connection = CopyConnection(
            self._config.source, application_name=name, lock_timeout_s=_LOCK_TIMEOUT_S
        )
        reader = TableReader(
            schema, connection, row_filter=begun.table.row_filter, encoding=encoding
        )
        count = 0
        with contextlib.closing(connection), cancelled_by(self._stop, connection.cancel):
            chunk = CopyChunk(0, leaf.leaf_id)
            reader.hold(chunk, source)
            for batch in reader.read(chunk, source):
                if self._stop.is_set():
                    raise Stopped
                self._tenure.require()
                rows = _LeafRows(schema, batch, Lsn(position.offset - 1), count + 1)
                self._feed.put(rows, apply_from)
                count += batch.num_rows
            self._feed.deliver_all()
        _log.info("added %d rows of partition %s", count, leaf.partition.name)
        log_odd(schema, reader.replaced)
        self._done.add(leaf)
        self._partitions.copied(leaf)

    def _schema(self, begun: _Begun) -> TableSchema | None:
        """The schema of the rows; None while the table is altered, or when it is copied again.

        The table was the same before the marker and is so now, hence also where the stream stands.
        """
        now = self._fetch(begun.leaf.table_id)
        if (
            now is None
            or now.row_filter != begun.table.row_filter
            or not now.schema.describes_same_columns(begun.table.schema)
        ):
            return None
        applied = self._schemas.applied(now.schema.id)
        if applied is not None and not applied.describes_same_columns(
            keep_choices(now.schema, applied)
        ):
            # No row has come yet under the new columns, from which the stream would follow them.
            self._role.on_outdated(
                now.schema.id, "it has a new partition and was altered, with no row since"
            )
            return None
        return applied or chosen(now.schema, self._config)


class _LeafRows:
    """Rows of a partition, as `Delivery` takes what is to be decoded."""

    def __init__(
        self, schema: TableSchema, copied: CopiedRows, lsn: Lsn, first_ordinal: int
    ) -> None:
        self._schema = schema
        self._copied = copied
        self._lsn = lsn
        self._first_ordinal = first_ordinal
        self.first_commit_time_us = time.time_ns() // 1000

    def decode(
        self,
        schema_of: Callable[[Relation, Lsn], TableSchema],
        apply_from: Mapping[TableId, Lsn],
        epoch: int,
        altered: Altered,
    ) -> EventBatch:
        """The rows as inserts at their positions; nothing for a table that isn't wanted."""
        import numpy as np

        count = self._copied.num_rows
        if self._schema.id not in apply_from:
            return EventBatch({}, epoch=epoch)
        changes = TableChanges(
            schema=self._schema,
            ops=np.full(count, INSERT, np.uint8),
            commit_lsns=np.full(count, self._lsn.offset, np.uint64),
            ordinals=np.arange(self._first_ordinal, self._first_ordinal + count, dtype=np.int64),
            commit_times_us=np.full(count, self.first_commit_time_us, np.int64),
            sequence=np.arange(count, dtype=np.int64),
            rows=self._copied.rows,
            odd=self._copied.odd,
        )
        return EventBatch({self._schema.id: [changes]}, epoch=epoch)
