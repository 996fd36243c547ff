"""Copies many small tables under one snapshot, some dozens in one write."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import (
    EtlError,
    InvalidState,
    SlotInvalidated,
    SlotMissing,
    SourceError,
    SourceUnreachable,
    Superseded,
    TableRewritten,
    TableWriteFailed,
)
from etl_dagster.model.coordination import CopyPlan, FinishedChunk
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import ChunkId, CopiedRows, TableRows
from etl_dagster.model.schema import TableId
from etl_dagster.pg.cancelling import cancelled_by
from etl_dagster.pg.encodings import StoredEncoding, stored_encoding
from etl_dagster.runtime.durable import Stopped, wait_durable
from etl_dagster.runtime.failures import of_destination
from etl_dagster.runtime.many import copying_many
from etl_dagster.runtime.memory import MemoryBudget
from etl_dagster.runtime.retry import backoff
from etl_dagster.runtime.tables.odd_policies import OddPolicies, log_odd
from etl_dagster.runtime.tables.representation import keep_choices
from etl_dagster.shaping.pushing import with_pushed
from etl_dagster.source.catalog import (
    PublishedTable,
    StoredRelation,
    fetch_published_tables,
    fetch_relations,
)
from etl_dagster.source.control import SourceControl
from etl_dagster.source.copy import CopyConnection, TableReader
from etl_dagster.source.partitions import ReadFrom

_log = logging.getLogger(__name__)

#: Read in one transaction, which keeps their locks, and written in one.
_TABLES_AT_ONCE = 50
_BYTES_AT_ONCE = 8 * 1024**2
#: A table that grew past this since it was measured is too large for a group.
_LARGEST_BYTES = 32 * 1024**2
#: No other table waits for one that another session has locked.
_LOCK_TIMEOUT_S = 2.0

#: The rows of some tables.
Read: TypeAlias = dict[TableId, Sequence[CopiedRows]]
#: Called with a table that can't be copied here, and why.
LeaveOut: TypeAlias = Callable[[TableId, Exception], None]


class TooLarge(EtlError):
    """A table has too many rows by now to be one of a group."""

    retryable = True


class GroupCopy:
    """Copies whole tables; what fails of one is reported, and the others continue.

    All are read under the snapshot that the group's slot exported, so each is the source's as of
    the slot's consistent point, and nothing needs to be repaired while changes are replayed.

    Args:
        tables: as they are published since the slot exists.
        sizes: of each on the source's disk, bytes.
        leave_out: called for a table that is left out, and why.
        watch: called all the time while rows are copied; raises where that is useless.
        memory: each write is a chunk of it.
    """

    def __init__(
        self,
        config: PipelineConfig,
        destination: Destination,
        control: SourceControl,
        tables: Mapping[TableId, PublishedTable],
        sizes: Mapping[TableId, int],
        plans: Mapping[TableId, CopyPlan],
        *,
        snapshot_name: str,
        stop: threading.Event,
        leave_out: LeaveOut,
        memory: MemoryBudget,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._destination = destination
        self._control = control
        self._tables = tables
        self._sizes = sizes
        self._plans = plans
        self._snapshot_name = snapshot_name
        self._stop = stop
        self._leave_out = leave_out
        self._memory = memory
        self._watch = watch
        #: What was written, by table and number of the chunk.
        self.chunks: dict[tuple[TableId, int], FinishedChunk] = {}
        #: By table and column, how many values of it the column's type can't hold.
        self.odd: dict[TableId, Mapping[str, int]] = {}
        self._encoding: StoredEncoding | None = None
        #: As last handed to the destination.
        self._written: dict[TableId, TableRows] = {}

    def run(self) -> set[TableId]:
        """Copy all tables; returns those whose copy is durable and complete.

        Raises:
            Stopped: told to stop.
            EtlError: what source or destination failed with, where that isn't one table's.
        """
        self._encoding = self._control.ask("reading the encoding", stored_encoding)
        name = f"etl_dagster copy {self._config.pipeline} group"
        connection = CopyConnection(
            self._config.source,
            snapshot_name=self._snapshot_name,
            application_name=name,
            lock_timeout_s=_LOCK_TIMEOUT_S,
        )
        finished: set[TableId] = set()
        with contextlib.closing(connection), cancelled_by(self._stop, connection.cancel):
            for some in self._pieces():
                with self._memory.chunk(self._stop):
                    finished |= self._write(self._read(some, connection))
        for table_id in finished & self._written.keys():
            self._take_off(table_id, self._written[table_id].left_out)
        return finished

    def _take_off(self, table_id: TableId, left_out: int) -> None:
        """Count rows of a table's chunks that were read and not written no more."""
        for chunk in self._plans[table_id].chunks:
            known = self.chunks[table_id, chunk.index]
            some = min(left_out, known.row_count)
            self.chunks[table_id, chunk.index] = replace(known, row_count=known.row_count - some)
            left_out -= some

    def _pieces(self) -> Iterator[list[TableId]]:
        piece: list[TableId] = []
        size = 0
        for table_id in self._tables:
            piece.append(table_id)
            size += self._sizes[table_id]
            if len(piece) == _TABLES_AT_ONCE or size > _BYTES_AT_ONCE:
                yield piece
                piece, size = [], 0
        if piece:
            yield piece

    # -- the source --------------------------------------------------------------------------------

    def _read(self, table_ids: Collection[TableId], connection: CopyConnection) -> Read:
        """The rows of the tables, without those of tables that were left out."""
        todo = list(table_ids)
        while todo:
            # An error ends the transaction with its locks. What was read in it counts no longer.
            connection.renew()
            relations = self._fetch_relations(todo)
            read: Read = {}
            for table_id in todo:
                if self._stop.is_set():
                    raise Stopped
                self._watch()
                try:
                    read[table_id] = self._read_table(table_id, relations, connection)
                except (SourceError, TooLarge) as error:
                    if self._stop.is_set():
                        raise Stopped from None
                    if isinstance(error, SourceUnreachable):
                        raise
                    self._leave_out(table_id, error)
                    todo.remove(table_id)
                    break
            else:
                for table_id, change in self._changed(read, relations).items():
                    self._leave_out(table_id, change)
                    del read[table_id]
                # What is written to the tables doesn't wait for the destination.
                connection.release()
                return read
        return {}

    def _fetch_relations(self, table_ids: Iterable[TableId]) -> Mapping[int, StoredRelation]:
        chunks = [c.relation_id for t in table_ids for c in self._plans[t].chunks]
        return self._control.ask("reading tables' names", fetch_relations, chunks)

    def _read_table(
        self, table_id: TableId, relations: Mapping[int, StoredRelation], connection: CopyConnection
    ) -> list[CopiedRows]:
        table = self._tables[table_id]
        reader = TableReader(
            table.schema,
            connection,
            row_filter=with_pushed(table.schema, table.row_filter),
            encoding=self._encoding,
            shape=OddPolicies(self._config).copied(table.schema),
        )
        batches: list[CopiedRows] = []
        size = 0
        plan = self._plans[table_id]
        for chunk in plan.chunks:
            first, began, before = len(batches), time.monotonic(), size
            relation = relations.get(chunk.relation_id)
            if relation is None:
                raise TableRewritten(f"{table.schema.name} was dropped meanwhile")
            source = ReadFrom(relation.schema_name, relation.name)
            for batch in reader.read(chunk, source):
                batches.append(batch)
                size += batch.nbytes
                if size > _LARGEST_BYTES:
                    raise TooLarge(f"{table.schema.name} has grown since it was measured")
            self.chunks[table_id, chunk.index] = FinishedChunk(
                chunk.index,
                sum(batch.num_rows for batch in batches[first:]),
                size - before,
                plan.slot_lsn,
                time.monotonic() - began,
            )
        log_odd(table.schema, reader.replaced)
        self.odd[table_id] = dict(reader.replaced)
        return batches

    def _changed(
        self, read: Iterable[TableId], relations: Mapping[int, StoredRelation]
    ) -> dict[TableId, SourceError]:
        """The tables that aren't any more what was read, while the locks of the reading last.

        A session may have given a name to another table, before that was locked by reading it.
        """
        now = self._fetch_relations(read)
        published = {
            table.schema.id: table.schema
            for table in self._control.ask(
                "reading the publication",
                fetch_published_tables,
                self._config.source.publication,
                list(read),
                with_filters=False,
            )
        }
        changed: dict[TableId, SourceError] = {}
        for table_id in read:
            schema, today = self._tables[table_id].schema, published.get(table_id)
            if today is None or not keep_choices(today, schema).describes_same_columns(schema):
                changed[table_id] = TableRewritten(f"{schema.name} was altered while it was copied")
            for chunk in self._plans[table_id].chunks:
                relation = now.get(chunk.relation_id)
                is_same = relation == relations[chunk.relation_id]
                if not is_same or relation is None or relation.file_node != chunk.file_node:
                    changed[table_id] = TableRewritten(
                        f"{schema.name} was rewritten while it was copied"
                    )
        return changed

    # -- the destination ---------------------------------------------------------------------------

    def _write(self, read: Read) -> set[TableId]:
        """Write until durable; returns the tables that are."""
        together = copying_many(self._destination)
        if together is None:
            return {table_id for table_id in read if self._write_one(table_id, read[table_id])}

        def write(tables: Read) -> None:
            copies = [(self._tables[t].schema, self._rows(t, rows)) for t, rows in tables.items()]
            wait_durable(together.write_whole_tables(copies), self._stop)

        return set(self._until_durable(write, read))

    def _write_one(self, table_id: TableId, batches: Sequence[CopiedRows]) -> bool:
        schema, destination = self._tables[table_id].schema, self._destination

        def write(tables: Read) -> None:
            for rows in tables.values():
                if self._plans[table_id].chunks:
                    copied = destination.write_table_rows(schema, self._rows(table_id, rows))
                    wait_durable(copied, self._stop)
                end = destination.write_table_rows(schema, self._end(table_id))
                wait_durable(end, self._stop)

        # Without a key, rows that were written twice under one copy ID are there twice.
        is_repeatable = (
            self._destination.capabilities.transactional or self._tables[table_id].can_resume_copy
        )
        try:
            tables = {table_id: batches}
            return bool(self._until_durable(write, tables, is_repeatable=is_repeatable))
        except (SlotInvalidated, SlotMissing):
            raise
        except EtlError as error:
            is_of_all = error.retryable and is_repeatable
            if is_of_all or isinstance(error, Superseded | InvalidState):
                raise
            self._leave_out(table_id, error)
            return False

    def _until_durable(
        self, write: Callable[[Read], None], tables: Read, *, is_repeatable: bool = True
    ) -> Read:
        """Write the tables, again where waiting may help, and without those that are refused."""
        pauses = backoff(self._config.retry)
        left = dict(tables)
        while left:
            self._watch()
            try:
                write(left)
                break
            except TableWriteFailed as error:
                if error.table_id not in left:
                    raise
                self._leave_out(error.table_id, error)
                del left[error.table_id]
            except Stopped:
                raise
            except Exception as raised:
                failure = of_destination(raised, self._destination.name, pauses.attempt, _log)
                if not (failure.retryable and is_repeatable) or pauses.is_exhausted:
                    raise failure from failure.__cause__
                delay_s = pauses.next_delay_s()
                _log.warning(
                    "%s refused copies (%s); again in %.1f s",
                    self._destination.name,
                    failure.reason,
                    delay_s,
                )
                if self._stop.wait(delay_s):
                    raise Stopped from None
        return left

    def _rows(self, table_id: TableId, batches: Sequence[CopiedRows]) -> TableRows:
        plan = self._plans[table_id]
        rows = self._written[table_id] = TableRows(
            plan.copy_id, batches, ChunkId(plan.copy_id, 0), plan.slot_lsn, plan.started_at_us
        )
        return rows

    def _end(self, table_id: TableId) -> TableRows:
        plan = self._plans[table_id]
        return TableRows(plan.copy_id, replay_from=plan.slot_lsn, copied_at_us=plan.started_at_us)
