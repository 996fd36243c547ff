"""A table that is repaired in place of a copy, up to where its changes can be replayed.

1. The state becomes `DataSync`: the apply worker applies the table no longer. The destination is
   told to leave out what it still sends (`begin_repair`), so the table doesn't change.
2. The table's own slot is made, after that: what the destination has was committed before its
   consistent point C. The slot's snapshot shows the source as of C.
3. Both sides are compared, and the destination's rows that differ become the source's
   (`comparing/range_repair.py`).
4. `end_repair`: the table is the source's as of C, and its position just before. That is what the
   end of a copy leaves, under an ID of its own, so that from `FinishedCopy` on everything is as
   after a copy: the slot's changes are replayed from C, and the table is handed over.

Nothing of it is recorded before 4. A worker that follows an interrupted one begins again at 1, and
finds the rows that are repaired already equal. Where a table can't be repaired, it is copied as a
whole, and the log says why.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import replace

from etl_dagster.errors import TableRewritten
from etl_dagster.lsn import LSN_MAX, LSN_ZERO
from etl_dagster.model.coordination import CopyPlan
from etl_dagster.model.destination import ReadsRows, RepairsTables, offered
from etl_dagster.model.events import TableChanges
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import DataSync
from etl_dagster.model.stores import TableSyncWorker
from etl_dagster.runtime.comparing.eligible import why_not_compared
from etl_dagster.runtime.comparing.range_repair import NotByRange, RangeRepair
from etl_dagster.runtime.comparing.sides import Side, Sides
from etl_dagster.runtime.copy_source import CopySource
from etl_dagster.runtime.copying.claim import Claim
from etl_dagster.runtime.copying.preparing import Prepared
from etl_dagster.runtime.durable import wait_durable
from etl_dagster.runtime.repair_requests import (
    RepairOutcome,
    RepairRequest,
    keep_outcome,
    wanted_repairs,
)
from etl_dagster.runtime.tables.schemas import destination_metadata
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import PublishedTable, fetch_clock, fetch_publication
from etl_dagster.source.slots import drop_slot

_log = logging.getLogger(__name__)


class TableRepair:
    """One table's, for its table sync worker.

    Args:
        fetch_table: the table as it is published now.
        on_rows: as of `Sides`.
    """

    def __init__(
        self,
        parts: WorkerParts,
        source: CopySource,
        table_id: TableId,
        fetch_table: Callable[[], PublishedTable],
        *,
        on_rows: Callable[[Side, int], None] = lambda side, count: None,
    ) -> None:
        self._parts = parts
        self._store = parts.store
        self._control = parts.control
        self._source = source
        self._table_id = table_id
        self._worker = TableSyncWorker(table_id)
        self._fetch_table = fetch_table
        self._on_rows = on_rows

    def run(self, table: PublishedTable, claim: Claim) -> Prepared | None:
        """Repair the table, if that was asked for; None where it is to be copied.

        Raises:
            Stopped: told to stop.
            LeaseLost: the table is another's.
            EtlError: what source, store or destination failed with.
        """
        # Once there is a plan, a copy is under way, or the repair is over.
        if self._store.get_copy_plan(self._table_id) is not None:
            return None
        request = wanted_repairs(self._store, [self._table_id]).get(self._table_id)
        if request is None:
            return None
        try:
            return self._repair(table, claim, request)
        except NotByRange as why:
            _log.warning("%s is copied as a whole: %s", table.schema.name, why.reason)
            outcome = RepairOutcome(request.request_id, "copy", reason=why.reason)
            keep_outcome(self._store, self._table_id, outcome)
            return None

    def _repair(self, table: PublishedTable, claim: Claim, request: RepairRequest) -> Prepared:
        parts, name = self._parts, table.schema.name
        reading = offered(parts.destination, ReadsRows)
        repairing = offered(parts.destination, RepairsTables)
        if reading is None or repairing is None:
            raise NotByRange(f"{parts.destination.name} cannot replace single rows")
        known = self._require_repairable(table)
        table = replace(table, schema=known)
        sides = Sides(
            parts.config,
            self._control,
            self._source,
            reading,
            table,
            stop=parts.stop,
            on_rows=self._on_rows,
        )
        claim.move(DataSync())
        repair_id = str(uuid.uuid4())
        try:
            repairing.begin_repair(sides.target, repair_id)
        except TableRewritten as why:
            raise NotByRange(why.reason) from why
        self._control.ask("dropping the earlier slot", drop_slot, self._source.slot_name)
        started_at = self._control.ask("reading the clock", fetch_clock)

        def write(changes: TableChanges) -> None:
            claim.require(name)
            wait_durable(repairing.write_repair(changes, repair_id), parts.stop)

        with self._source.new_slot(self._control, export_snapshot=True, stop=parts.stop) as slot:
            if not self._fetch_table().schema.describes_same_columns(known):
                raise NotByRange("it was altered meanwhile")
            assert slot.snapshot_name is not None
            _log.info("comparing %s with the source at %s", name, slot.consistent_point)
            repair = RangeRepair(sides, lsn=slot.consistent_point, write=write)
            repair.run(slot.snapshot_name)
        claim.require(name)
        repairing.end_repair(sides.target, repair_id, slot.consistent_point)
        missing, extra, changed = repair.counts.totals
        _log.info(
            "repaired %s: %d rows were missing, %d too many, %d had other values",
            name,
            missing,
            extra,
            changed,
        )
        schema = known.at(LSN_ZERO)
        self._store.clear_table_copy_state(self._table_id)
        self._store.store_table_schema(schema)
        self._store.store_destination_table_metadata(
            self._table_id, destination_metadata(schema, "applied")
        )
        plan = CopyPlan(
            copy_id=repair_id,
            chunks=(),
            finished={},
            slot_lsn=slot.consistent_point,
            started_at=started_at,
        )
        self._store.store_copy_plan(self._table_id, plan)
        self._store.upsert_replication_progress(self._worker, plan.slot_lsn)
        outcome = RepairOutcome(
            request.request_id,
            "ranges",
            lsn=plan.slot_lsn,
            source_rows=repair.source_rows,
            destination_rows=repair.destination_rows,
            missing=missing,
            extra=extra,
            changed=changed,
            ranges=repair.counts.differing(),
        )
        keep_outcome(self._store, self._table_id, outcome)
        return Prepared(replace(table, schema=schema), plan, None, is_copied=True)

    def _require_repairable(self, table: PublishedTable) -> TableSchema:
        """The schema that the destination has the table under.

        Raises:
            NotByRange: with the reason.
        """
        config, known = self._parts.config, self._store.get_table_schema(self._table_id, LSN_MAX)
        if known is None:
            raise NotByRange("it was never copied")
        if not table.schema.describes_same_columns(known) or table.schema.mode != known.mode:
            raise NotByRange("its columns or settings have changed")
        publication = self._control.ask(
            "reading the publication", fetch_publication, config.source.publication
        )
        reason = why_not_compared(table, known, publication, config)
        if reason is not None:
            raise NotByRange(reason)
        if not known.key_columns:
            raise NotByRange("it has no key")
        key = [c.shape for c in known.columns if c.name in known.key_columns]
        if any(shape is not None and (shape.mask or shape.left_out) for shape in key):
            raise NotByRange("its key is masked or left out")
        return known
