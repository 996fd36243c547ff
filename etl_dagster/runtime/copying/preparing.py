"""Before a table is copied: what is to be copied, from when on, and what is done of it already."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from etl_dagster.errors import SourceError, TableRewritten
from etl_dagster.lsn import LSN_MAX, LSN_ZERO
from etl_dagster.model.coordination import CopyChunk, CopyPlan
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import DataSync, Init, TableState
from etl_dagster.model.stores import TableSyncWorker
from etl_dagster.runtime.checking.belonging import Belonging
from etl_dagster.runtime.copy_source import CopySource
from etl_dagster.runtime.copying.claim import Claim
from etl_dagster.runtime.copying.free_names import require_free_name
from etl_dagster.runtime.membership.partitions import note_copied_partitions
from etl_dagster.runtime.tables.identities import find_unidentified
from etl_dagster.runtime.tables.representation import chosen_tables
from etl_dagster.runtime.tables.reshaping import refused_shapes
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import (
    PublishedTable,
    fetch_clock,
    fetch_leaves,
    fetch_published_tables,
)
from etl_dagster.source.copy import plan_chunks
from etl_dagster.source.membership import Partition, fetch_partitions
from etl_dagster.source.slots import drop_slot, fetch_slot

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A copy that may begin, or be resumed."""

    #: As it is copied.
    table: PublishedTable
    plan: CopyPlan
    #: What every chunk is read under; None where each has a snapshot of its own.
    snapshot_name: str | None
    #: Whether an earlier worker copied every row, and made the copy the table.
    is_copied: bool = False


class Preparation:
    """Resumes an earlier worker's copy where its slot kept every change since, else begins one."""

    def __init__(
        self, parts: WorkerParts, source: CopySource, belonging: Belonging, table_id: TableId
    ) -> None:
        self._parts = parts
        self._config = parts.config
        self._store = parts.store
        self._control = parts.control
        self._source = source
        self._belonging = belonging
        self._table_id = table_id
        self._worker = TableSyncWorker(table_id)

    def fetch_table(self) -> PublishedTable:
        """The table as it is published now, once it may be copied under its name.

        Raises:
            Stopped: told to stop.
            EtlError: the table can't be copied.
        """
        publication = self._config.source.publication
        tables = self._control.ask(
            "reading the publication", fetch_published_tables, publication, [self._table_id]
        )
        if not tables:
            known = self._store.get_table_schema(self._table_id, LSN_MAX)
            name = f"table {self._table_id}" if known is None else known.name
            raise SourceError(
                f"{name} is not in publication {publication!r}",
                solution="Add it to the publication to have it copied; else the pipeline forgets "
                "the table when it next looks at the publication.",
            )
        unidentified = self._control.ask("looking at partitions", find_unidentified, tables)
        if unidentified:
            raise unidentified[self._table_id]
        [table] = chosen_tables(tables, self._config)
        refused = refused_shapes([table.schema], self._store, self._config)
        if refused:
            raise refused[self._table_id]
        require_free_name(self._parts, table.schema)
        return table

    @contextlib.contextmanager
    def begin(
        self, table: PublishedTable, claim: Claim, state: TableState | None
    ) -> Iterator[Prepared]:
        """What is to be copied, while its snapshot lasts.

        Args:
            table: as `fetch_table` found it.
            state: as the worker found it.

        Raises:
            Stopped: told to stop.
            LeaseLost: the table is another's.
            EtlError: the table can't be copied.
        """
        plan = self._store.get_copy_plan(self._table_id)
        if plan is not None and not isinstance(state, Init | None):
            known = self._resumable(table, plan)
            if known is not None:
                _log.info("the copy of %s is resumed", known.schema.name)
                yield Prepared(known, plan, None, is_copied=self._is_copied(plan))
                return
        with self._new_copy(table, claim) as prepared:
            yield prepared

    # -- resuming --------------------------------------------------------------------------------

    def _resumable(self, table: PublishedTable, plan: CopyPlan) -> PublishedTable | None:
        """The table as the earlier worker copied it, where its work can be resumed."""
        slot = self._control.ask("looking at the slot", fetch_slot, self._source.slot_name)
        schema = self._store.get_table_schema(self._table_id, LSN_ZERO)
        if self._is_copied(plan):
            # Of one that was streamed since, the version that was copied may be forgotten.
            schema = schema or self._store.get_table_schema(self._table_id, LSN_MAX)
        if slot is None or slot.is_lost or slot.plugin != "pgoutput" or schema is None:
            return None
        durable = max(self._store.get_replication_progress(self._worker) or LSN_ZERO, plan.slot_lsn)
        if slot.confirmed_flush_lsn is None or slot.confirmed_flush_lsn > durable:
            return None  # another process made it, or moved it past what is durable
        is_complete = self._is_copied(plan)
        if not self._belonging.has_finished(self._table_id, plan, is_complete=is_complete):
            _log.warning("the destination lacks what was copied of %s", schema.name)
            return None
        if is_complete:
            return replace(table, schema=schema)
        return table if self.fits(table, plan) else None

    def fits(self, table: PublishedTable, plan: CopyPlan) -> bool:
        """Whether chunks of the plan can be copied from the table as it is now."""
        schema = self._store.get_table_schema(self._table_id, LSN_ZERO)
        if schema is None or not table.can_resume_copy:
            return False
        if not table.schema.describes_same_columns(schema) or table.schema.mode != schema.mode:
            return False
        leaves = self._control.ask("measuring the table", fetch_leaves, self._table_id)
        planned = {(chunk.relation_id, chunk.file_node) for chunk in plan.chunks}
        there = {(leaf.relation_id, leaf.file_node) for leaf in leaves}
        return planned <= there  # rewritten rows are at other places

    def _is_copied(self, plan: CopyPlan) -> bool:
        """Whether an earlier worker finished the plan's copy at the destination.

        An apply worker that has not heard of the copy yet may describe the table as it was before.
        """
        metadata = self._store.get_destination_table_metadata(self._table_id)
        if metadata is None or plan.remaining:
            return False
        return metadata.snapshot_id == LSN_ZERO or metadata.snapshot_id >= plan.slot_lsn

    # -- a new copy ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _new_copy(self, table: PublishedTable, claim: Claim) -> Iterator[Prepared]:
        # First: of a table in a later state, the destination is expected to have the copy.
        claim.move(DataSync())
        # Of an earlier copy the destination knows the table as it was then.
        known = self._store.get_table_schema(self._table_id, LSN_MAX)
        self._parts.destination.drop_table_for_copy(known or table.schema)
        self._control.ask("dropping the earlier slot", drop_slot, self._source.slot_name)
        self._store.clear_table_copy_state(self._table_id)
        partitions = self._partitions(table)
        started_at = self._control.ask("reading the clock", fetch_clock)
        with self._source.new_slot(
            self._control, export_snapshot=not table.can_resume_copy, stop=self._parts.stop
        ) as slot:
            # The slot keeps every change from here on, also of the table's columns. Were they
            # others before, the first changes would take the new ones away again.
            before, table = table, self.fetch_table()
            if not table.schema.describes_same_columns(before.schema):
                raise TableRewritten(f"{table.schema.name} was altered while its copy was prepared")
            self._store.store_table_schema(table.schema)
            copy_id = str(uuid.uuid4())
            if self._partitions(table) != partitions:
                raise TableRewritten(
                    f"partitions of {table.schema.name} changed while its copy was prepared"
                )
            if table.is_partitioned:
                # One that is attached from now on is added later.
                note_copied_partitions(self._store, self._table_id, copy_id, partitions)
            plan = CopyPlan(
                copy_id=copy_id,
                chunks=self._chunks(table),
                finished={},
                slot_lsn=slot.consistent_point,
                started_at=started_at,
            )
            self._store.store_copy_plan(self._table_id, plan)
            self._store.upsert_replication_progress(self._worker, plan.slot_lsn)
            count = len(plan.chunks)
            _log.info(
                "copying %s: %d %s", table.schema.name, count, "chunk" if count == 1 else "chunks"
            )
            yield Prepared(table, plan, slot.snapshot_name)

    def _partitions(self, table: PublishedTable) -> Mapping[int, Partition]:
        if not table.is_partitioned:
            return {}
        found = self._control.ask("looking at partitions", fetch_partitions, [self._table_id])
        return found[self._table_id]

    def _chunks(self, table: PublishedTable) -> tuple[CopyChunk, ...]:
        if not self._config.table(table.schema.name).copy_rows:
            return ()
        leaves = self._control.ask("measuring the table", fetch_leaves, self._table_id)
        return plan_chunks(leaves, self._config.copy_tables.chunk_rows)
