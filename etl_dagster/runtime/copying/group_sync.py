"""The worker of a group: copies many small tables through one slot, then catches up with them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from etl_dagster.errors import (
    CopyOutdated,
    EtlError,
    HandoverTimeout,
    LeaseLost,
    SourceError,
    TableLocked,
    TableRewritten,
)
from etl_dagster.model.coordination import CopyChunk, CopyPlan, Lease
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import (
    Catchup,
    DataSync,
    Errored,
    FinishedCopy,
    SyncWait,
    TableState,
    TimedRetry,
)
from etl_dagster.runtime.checking.belonging import MISMATCHES, Belonging
from etl_dagster.runtime.checking.origin import OriginCheck
from etl_dagster.runtime.copy_source import PostgresSource
from etl_dagster.runtime.copying.group_copy import GroupCopy, TooLarge
from etl_dagster.runtime.copying.slot_watch import SlotWatch
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.failures import log_failure
from etl_dagster.runtime.many import copying_many, group_lease, many
from etl_dagster.runtime.retry import errored_state, is_sync_due
from etl_dagster.runtime.streaming.catchup import CatchUp
from etl_dagster.runtime.tables.identities import find_unidentified
from etl_dagster.runtime.tables.odd_counts import CopyOddCounts
from etl_dagster.runtime.tables.representation import chosen_tables
from etl_dagster.runtime.tables.reshaping import refused_shapes
from etl_dagster.runtime.tables.schemas import destination_metadata
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import (
    Leaf,
    PublishedTable,
    fetch_clock,
    fetch_leaves_of,
    fetch_published_tables,
)
from etl_dagster.source.copy import plan_chunks
from etl_dagster.source.slots import (
    CreatedSlot,
    drop_slot,
    fetch_table_sync_slots,
)

_log = logging.getLogger(__name__)


class GroupSync:
    """Does for a set of small tables what `TableSync` does for one.

    A table that fails, or that isn't like the others, leaves the group, and the others continue. A
    group that was interrupted isn't resumed: its tables are small, and copied again.

    Args:
        table_ids: the first of them names the group.
    """

    def __init__(self, parts: WorkerParts, table_ids: Collection[TableId]) -> None:
        config, store, destination = parts.config, parts.store, parts.destination
        self._config = config
        self._store = store
        self._many = many(store)
        self._odd = CopyOddCounts(store, destination)
        self._destination = destination
        self._belonging = Belonging(config, store, destination)
        self._table_ids = list(table_ids)
        self._name = self._table_ids[0]
        self._source = PostgresSource.of_group(config, self._name)
        self._slot = self._source.slot_name
        self._stop = parts.stop
        self._control = parts.make_control(
            config.source,
            application_name=f"etl_dagster sync control {config.pipeline} group",
            verify=OriginCheck(config, store).look,
        )
        self._parts = replace(parts, control=self._control)
        self._lease: Lease | None = None
        #: The tables that are in the group, with the state that each has by our doing. Another one
        #: in the store is another process's doing.
        self._states: dict[TableId, TableState] = {}
        #: The failures in a row of each table, one to come included.
        self._attempts: dict[TableId, int] = {}
        #: Tables that are better copied by a worker of their own.
        self.singly: set[TableId] = set()

    def run(self) -> None:
        """Work until every table is handed over or has left the group.

        What fails is in the tables' states, and in the log.

        Raises:
            DestinationReplaced, SourceReplaced, ...: the pipeline has another source or
                destination (`MISMATCHES`). The tables' states stay as they were.
        """
        leases = self._many.acquire_leases(
            [group_lease(self._name), *(_table_lease(t) for t in self._table_ids)]
        )
        try:
            self._lease = leases.get(group_lease(self._name))
            if self._lease is not None:
                self._begin(t for t in self._table_ids if _table_lease(t) in leases)
                if self._states:
                    self._run(self._lease)
        except Stopped:
            pass
        except MISMATCHES:
            raise
        except LeaseLost as error:
            _log.warning("a group of tables: %s", error.reason)
        except Exception as error:
            if not isinstance(error, EtlError):
                log_failure(_log, "a group of tables failed", error)
            self._fail(dict.fromkeys(self._states, error))
            if isinstance(error, HandoverTimeout):
                # No pipeline runs whose manager would drop it.
                self._control.ask("dropping the slot", drop_slot, self._slot)
        finally:
            self._control.close()
            for lease in leases.values():
                lease.release()

    def _begin(self, table_ids: Iterable[TableId]) -> None:
        states = self._store.get_table_replication_states()
        for table_id in table_ids:
            state = states.get(table_id)
            if state is not None and is_sync_due(state):
                self._states[table_id] = state
                self._attempts[table_id] = 1
                if isinstance(state, Errored) and isinstance(state.retry, TimedRetry):
                    self._attempts[table_id] = state.retry.attempt + 1

    def _run(self, lease: Lease) -> None:
        self._belonging.require_known()
        tables = self._known_only_here(self._fetch_tables())
        # First: of a table in a later state, the destination is expected to have the copy.
        self._move(self._states, DataSync())
        tables = {t: table for t, table in tables.items() if t in self._states}
        if not tables:
            return
        self._forget_earlier_copies(tables)
        started_at = self._control.ask("reading the clock", fetch_clock)
        with self._source.new_slot(self._control, export_snapshot=True, stop=self._stop) as slot:
            copied = self._copy(self._unchanged(tables), slot, started_at)
        if not copied or self._stop.is_set():
            return
        CatchUp(
            self._parts,
            list(copied.values()),
            lease,
            open_stream=self._source.open_stream(slot.consistent_point),
            worker=None,
            replay_from=slot.consistent_point,
            must_reach=slot.consistent_point,
            on_table_error=self._fail_one,
        ).run()
        self._control.ask("dropping the slot", drop_slot, self._slot)

    # -- who is in the group ---------------------------------------------------------------------

    def _fail_one(self, table_id: TableId, error: Exception) -> None:
        if isinstance(error, CopyOutdated):
            self._copy_again(table_id, error)
        else:
            self._fail({table_id: error})

    def _copy_again(self, table_id: TableId, error: CopyOutdated) -> None:
        state = self._store.get_table_replication_state(table_id)
        is_ours = state == self._states[table_id] or isinstance(state, SyncWait | Catchup)
        self._to_single([table_id])
        if is_ours and self._lease is not None and self._lease.is_held:
            _log.warning("%s; it is copied again", error.reason)
            self._store.request_copy(table_id)

    def _fail(self, failures: Mapping[TableId, Exception]) -> None:
        """Show what tables failed with, unless another process has them by now; they leave."""
        current = self._store.get_table_replication_states()
        changes: list[tuple[TableId, TableState, TableState]] = []
        for table_id, error in failures.items():
            ours, state = self._states.pop(table_id), current.get(table_id)
            errored = errored_state(error, self._config.retry, self._attempts[table_id])
            _log.error("table %s: %s", table_id, errored.reason)
            if state is not None and (state == ours or isinstance(state, SyncWait | Catchup)):
                changes.append((table_id, state, errored))
        if changes and self._lease is not None and self._lease.is_held:
            self._many.transition_table_states(changes)

    def _leave_out(self, table_id: TableId, error: Exception) -> None:
        """A table that can't be copied with the others."""
        if isinstance(error, TooLarge | TableLocked):
            _log.info("table %s is copied by itself: %s", table_id, error)
            self._to_single([table_id])
        else:
            self._fail({table_id: error})

    def _to_single(self, table_ids: Iterable[TableId]) -> None:
        for table_id in table_ids:
            del self._states[table_id]
            self.singly.add(table_id)

    def _move(self, table_ids: Iterable[TableId], new: TableState) -> None:
        """Change the tables' states; those that another process has changed leave the group."""
        changes = [(table_id, self._states[table_id], new) for table_id in table_ids]
        moved = self._many.transition_table_states(changes)
        for table_id, _, _ in changes:
            if table_id in moved:
                self._states[table_id] = new
            else:
                _log.info("another process changed the state of table %s", table_id)
                del self._states[table_id]

    # -- before the copy -------------------------------------------------------------------------

    def _fetch_tables(self) -> dict[TableId, PublishedTable]:
        publication = self._config.source.publication
        doing = "reading the publication"
        try:
            found = self._control.ask(
                doing, fetch_published_tables, publication, list(self._states)
            )
        except TableLocked:
            # One with a row filter, which can't be read meanwhile.
            found = self._control.ask(
                doing, fetch_published_tables, publication, list(self._states), with_filters=False
            )
            self._to_single(t.schema.id for t in found if t.has_row_filter)
        chosen = chosen_tables(found, self._config)
        tables = {table.schema.id: table for table in chosen if table.schema.id in self._states}
        missing = self._states.keys() - tables.keys()
        if missing:
            error = SourceError(
                f"the table is not in publication {publication!r}",
                solution="Add it to the publication to have it copied; else the pipeline "
                "forgets the table when it next looks at the publication.",
            )
            self._fail(dict.fromkeys(missing, error))
        unidentified = self._control.ask(
            "looking at keys", find_unidentified, list(tables.values())
        )
        refused: dict[TableId, EtlError] = {
            **unidentified,
            **refused_shapes(
                [table.schema for table in tables.values()], self._store, self._config
            ),
        }
        self._fail(refused)
        return {t_id: table for t_id, table in tables.items() if t_id not in refused}

    def _known_only_here(
        self, tables: dict[TableId, PublishedTable]
    ) -> dict[TableId, PublishedTable]:
        """The tables whose names no other table ever had; the others need a worker's whole care."""
        owners: dict[str, set[TableId]] = {}
        for schema in self._store.get_table_schemas():
            owners.setdefault(str(schema.target).lower(), set()).add(schema.id)
        for table_id, table in tables.items():
            owners.setdefault(str(table.schema.target).lower(), set()).add(table_id)
        shared = {t for ids in owners.values() if len(ids) > 1 for t in ids}
        self._to_single(tables.keys() & shared)
        return {table_id: table for table_id, table in tables.items() if table_id not in shared}

    def _forget_earlier_copies(self, tables: Mapping[TableId, PublishedTable]) -> None:
        # Of an earlier copy the destination knows the table as it was then.
        known: dict[TableId, TableSchema] = {}
        for schema in self._store.get_table_schemas():
            newest = known.get(schema.id)
            if newest is None or newest.snapshot_id <= schema.snapshot_id:
                known[schema.id] = schema
        as_written = [known.get(table_id, table.schema) for table_id, table in tables.items()]
        together = copying_many(self._destination)
        if together is not None:
            together.drop_tables_for_copy(as_written)
        else:
            for schema in as_written:
                self._destination.drop_table_for_copy(schema)
        own = self._control.ask("listing slots", fetch_table_sync_slots, self._config.pipeline)
        # A worker of the table's own would take up with its slot what isn't its copy.
        for slot_name in [self._slot, *(own[table_id] for table_id in tables if table_id in own)]:
            self._control.ask("dropping the earlier slot", drop_slot, slot_name)
        self._many.clear_table_copy_states(list(tables))

    def _unchanged(self, before: Mapping[TableId, PublishedTable]) -> dict[TableId, PublishedTable]:
        """The tables as they are now that the slot keeps every change, also of their columns."""
        tables = self._fetch_tables()
        for table_id, table in list(tables.items()):
            if not table.schema.describes_same_columns(before[table_id].schema):
                # The first changes in the slot would take the new columns away again.
                self._fail_one(
                    table_id,
                    TableRewritten(f"{table.schema.name} was altered while its copy was prepared"),
                )
                del tables[table_id]
        return tables

    # -- the copy --------------------------------------------------------------------------------

    def _copy(
        self, tables: dict[TableId, PublishedTable], slot: CreatedSlot, started_at: datetime
    ) -> dict[TableId, TableSchema]:
        """Copy the tables; those that are copied and still ours."""
        assert slot.snapshot_name is not None
        leaves = self._control.ask(
            "measuring the tables", fetch_leaves_of, list(tables), without_locked=True
        )
        self._to_single(tables.keys() - leaves.keys())
        tables = {table_id: table for table_id, table in tables.items() if table_id in leaves}
        plans = {t: self._plan(table, leaves[t], slot, started_at) for t, table in tables.items()}
        self._many.store_table_schemas([table.schema for table in tables.values()])
        self._many.store_copy_plans(plans)
        _log.info("copying a group of %d tables", len(tables))
        copy = GroupCopy(
            self._config,
            self._destination,
            self._control,
            tables,
            {t: sum(leaf.bytes for leaf in leaves[t]) for t in tables},
            plans,
            snapshot_name=slot.snapshot_name,
            stop=self._stop,
            leave_out=self._leave_out,
            memory=self._parts.memory,
            watch=SlotWatch(
                self._control,
                self._slot,
                self._parts.clock,
                what="a group of tables",
                retry="--all",
            ).require,
        )
        finished = copy.run()
        for table_id in finished & copy.odd.keys():
            counts = copy.odd[table_id]
            self._odd.add_chunk(table_id, slot.consistent_point, 0, counts)
        self._many.finish_chunks(
            [
                (table_id, plans[table_id].copy_id, chunk)
                for (table_id, _), chunk in copy.chunks.items()
                if table_id in finished
            ]
        )
        self._many.store_destination_tables_metadata(
            {t: destination_metadata(tables[t].schema, "applied") for t in finished}
        )
        self._move(finished, FinishedCopy())
        return {table_id: tables[table_id].schema for table_id in finished & self._states.keys()}

    def _plan(
        self,
        table: PublishedTable,
        leaves: Iterable[Leaf],
        slot: CreatedSlot,
        started_at: datetime,
    ) -> CopyPlan:
        chunks: tuple[CopyChunk, ...] = ()
        if self._config.table(table.schema.name).copy_rows:
            chunks = plan_chunks(list(leaves), self._config.copy_tables.chunk_rows)
        return CopyPlan(
            copy_id=str(uuid.uuid4()),
            chunks=chunks,
            finished={},
            slot_lsn=slot.consistent_point,
            started_at=started_at,
        )


def _table_lease(table_id: TableId) -> str:
    return f"table:{table_id}"
