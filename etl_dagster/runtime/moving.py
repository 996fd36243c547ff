"""Brings a table from one shard to another: without a copy, and without losing a change.

Neither of the two runs meanwhile. The shard that has the table was brought up to now before, so
what its slot still keeps was written since the other shard's slot was made. Then, in this order:

1. The table gets a slot: a copy of that of the shard that has it, which begins at or before
   everything that the destination lacks of it.
2. The other shard's store is told all that is known of the table: its schemas, its copy, and that
   everything before the position of the shard that had it is at the destination.
3. The publications change, in one transaction.
4. The other shard gets the table, in the state of one that was copied and has still to catch up.
   Its worker streams the slot with both publications, skips what is applied by the position that
   the destination keeps of the table, and hands it over as ever.
5. The shard that had the table forgets it.

After a crash before 3 nothing has changed; what was made is made again by the next move, or dropped
by the next start. After 3 the table is in the other publication. A start of that shard refuses it
with a named error (`MoveNotFinished`) or, where the first one has forgotten it by then, copies it.
After 4 no worker writes the table before the shard that had it has let go of it (`moved.py`), which
it does by itself. In both cases the move that is repeated continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from etl_dagster.config import PipelineConfig
from etl_dagster.config.commands import command
from etl_dagster.errors import LeaseLost, MoveRefused
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Errored, FinishedCopy, Init, Ready, TableState, state_name
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore, TableSyncWorker
from etl_dagster.runtime.checking.belonging import marking
from etl_dagster.runtime.copying.pausing import paused_tables
from etl_dagster.runtime.membership.member_notes import MemberNotes
from etl_dagster.runtime.moved import Moved, find_move, note_move
from etl_dagster.runtime.runner import in_use
from etl_dagster.runtime.slot import prepare_apply_slot
from etl_dagster.runtime.tables.handing_on import hand_on_traces
from etl_dagster.runtime.tables.odd_counts import hand_on_counts
from etl_dagster.source.catalog import emit_marker
from etl_dagster.source.control import SourceControl
from etl_dagster.source.membership import look
from etl_dagster.source.moving import move_between_publications, require_movable
from etl_dagster.source.own_slots import copy_apply_slot, keep_on_standbys
from etl_dagster.source.slots import fetch_slot, table_sync_slot_name


@dataclass(frozen=True)
class Shard:
    """One of a pipeline's shards, with its store, open."""

    config: PipelineConfig
    store: CoordinatingStore

    @property
    def name(self) -> str:
        assert self.config.sharding is not None
        return self.config.sharding.name

    @property
    def publication(self) -> str:
        return self.config.source.publication


class Move:
    """Between two shards, while neither runs.

    Args:
        of: has the tables.
        to: is to have them.
        control: of the source.
        destination: of both, not started; asked what it offers.
    """

    def __init__(
        self, of: Shard, to: Shard, control: SourceControl, destination: Destination
    ) -> None:
        self._of, self._to = of, to
        self._control = control
        self._marking = marking(destination)

    def run(
        self, tables: Mapping[TableId, str], bring_up: Callable[[Lsn], None]
    ) -> dict[TableId, Lsn]:
        """Move the tables; returns from where on the other shard applies each.

        Args:
            tables: by OID, the names.
            bring_up: runs the shard that has them until everything before an LSN is durable.

        Raises:
            PipelineInUse: one of the shards runs.
            MoveRefused: a table can't be moved as it is; none was.
            EtlError: source, store or destination can't be asked. What was moved stays moved.
        """
        with ExitStack() as leases:
            self._take_lease(self._to, leases)
            begun = {t: name for t, name in tables.items() if self._is_begun(t)}
            found = self._go_on(begun) if begun else {}
            tables = {t: name for t, name in tables.items() if t not in begun}
            if not tables:
                return found
            # Before anything takes time. It is looked at again once both have stopped.
            self._require_all(tables)
            prepare_apply_slot(self._to.store, self._control, self._to.config)
            # From here on, no transaction is open that began before the other publication.
            bring_up(self._control.ask("marking the stream", emit_marker))
            self._take_lease(self._of, leases)
            for table_id, name in tables.items():
                for shard in (self._of, self._to):
                    self._take_table(shard, table_id, name, leases)
            self._require_all(tables)
            return found | {t: self._move(t, name) for t, name in tables.items()}

    def check(self, tables: Mapping[TableId, str]) -> None:
        """See that the tables can be moved, as far as that is known before both have stopped.

        Raises:
            MoveRefused: one can't, as it is.
            EtlError: source, store or destination can't be asked.
        """
        new = {t: name for t, name in tables.items() if not self._is_begun(t)}
        if new:
            self._require_all(new)

    # -- who else is at it -----------------------------------------------------------------------

    def _take_lease(self, shard: Shard, leases: ExitStack) -> None:
        lease = shard.store.acquire_lease("apply")
        if lease is None:
            error = in_use(shard.store, shard.config.pipeline, "a process")
            error.solution = (
                "Stop it first: Ctrl-C where it runs, or turn the sensor off in Dagster. It "
                "continues from where it was."
            )
            raise error
        leases.callback(lease.release)

    def _take_table(self, shard: Shard, table_id: TableId, name: str, leases: ExitStack) -> None:
        lease = shard.store.acquire_lease(f"table:{table_id}")
        if lease is None:
            raise LeaseLost(f"a worker still has {name}, of the shard {shard.name!r}")
        leases.callback(lease.release)

    # -- what stands in the way ------------------------------------------------------------------

    def _require_all(self, tables: Mapping[TableId, str]) -> None:
        if self._marking is None:
            raise MoveRefused(
                f"a destination of type {self._to.config.destination.type} keeps no position of "
                "each table that another shard could begin at"
            )
        publications = self._of.publication, self._to.publication
        held = self._control.ask("looking at the publication", look, self._of.publication).members
        if held.keys() <= tables.keys():
            raise MoveRefused(
                f"no table would be left in publication {self._of.publication!r}, and a shard "
                "without one can't run",
                solution="Leave one there; or name that publication for the other shard, too, in "
                "place of its own.",
            )
        paused = paused_tables(self._of.store)
        for table_id, name in tables.items():
            self._require_known(table_id, name)
            if table_id in paused:
                resume = command(self._of.config, "resume", name)
                raise MoveRefused(f"{name} is paused", solution=f"First: `{resume}`.")
            self._control.ask(
                "looking at the publications",
                require_movable,
                table_id,
                name,
                *publications,
            )
            hand_on_traces(self._of.store, self._to.store, table_id, dry_run=True)

    def _require_known(self, table_id: TableId, name: str) -> None:
        state = self._of.store.get_table_replication_state(table_id)
        if not isinstance(state, Ready):
            is_ = "not known" if state is None else state_name(state)
            raise MoveRefused(
                f"{name} can be moved while it is streamed (ready), and is {is_}",
                solution=(
                    f"First: `{command(self._of.config, 'retry', name)}`, once the cause is "
                    "gone; then let that shard run until the table is ready."
                    if isinstance(state, Errored)
                    else "Let the pipeline run until it is, see `etl-dagster status`."
                ),
            )
        there = self._to.store.get_table_replication_state(table_id)
        if there is not None and not _is_untouched(there):
            raise MoveRefused(
                f"the shard {self._to.name!r} has begun with {name} itself ({state_name(there)})",
                solution=f"Take it out of publication {self._to.publication!r}, let that shard run "
                "until it has forgotten the table, and move it then.",
            )
        metadata = self._of.store.get_destination_table_metadata(table_id)
        plan = self._of.store.get_copy_plan(table_id)
        assert self._marking is not None
        held = self._marking.held_copies([table_id]).get(table_id)
        if metadata is None or metadata.status != "applied" or plan is None:
            raise MoveRefused(f"the state store has no complete record of {name}")
        if held is None or not held.is_complete or held.copy_id != plan.copy_id:
            raise MoveRefused(f"the destination does not have the copy of {name} that is known")

    # -- the steps -------------------------------------------------------------------------------

    def _move(self, table_id: TableId, name: str) -> Lsn:
        progress = self._of.store.get_replication_progress(ApplyWorker()) or LSN_ZERO
        slot_name = table_sync_slot_name(self._to.config.pipeline, table_id)
        self._control.ask(
            "keeping the changes of a table",
            copy_apply_slot,
            self._of.config,
            slot_name,
            needed_from=progress,
        )
        keep_on_standbys(self._to.config, slot_name)
        self._tell(table_id, progress)
        self._control.ask(
            "altering the publications",
            move_between_publications,
            table_id,
            name,
            self._of.publication,
            self._to.publication,
        )
        self._take_over(table_id)
        return progress

    def _take_over(self, table_id: TableId) -> None:
        """The other shard gets the table, and this one forgets it."""
        there = self._control.ask("looking at the publication", look, self._to.publication)
        # What the next look is compared with: the table has been in the publication since.
        notes = MemberNotes.load(self._to.store)
        notes.forget(table_id)
        notes.tables[table_id] = there.members[table_id]
        notes.save(self._to.store)
        self._to.store.update_table_replication_states([(table_id, FinishedCopy())])
        self._let_go(table_id)

    def _let_go(self, table_id: TableId) -> None:
        notes = MemberNotes.load(self._of.store)
        notes.forget(table_id)
        notes.save(self._of.store)
        self._of.store.delete_table_pipeline_state(table_id)

    # -- after a crash ---------------------------------------------------------------------------

    def _is_begun(self, table_id: TableId) -> bool:
        """Whether an earlier move has changed the publications."""
        moved = find_move(self._to.store, table_id)
        if moved is None or moved.shard != self._of.name:
            return False
        of = self._control.ask("looking at the publication", look, self._of.publication)
        to = self._control.ask("looking at the publication", look, self._to.publication)
        return table_id in to.members and table_id not in of.members

    def _go_on(self, tables: Mapping[TableId, str]) -> dict[TableId, Lsn]:
        with ExitStack() as leases:
            self._take_lease(self._of, leases)
            for table_id, name in tables.items():
                for shard in (self._of, self._to):
                    self._take_table(shard, table_id, name, leases)
                if _is_untouched(self._to.store.get_table_replication_state(table_id)):
                    self._require_kept(table_id, name)
                    self._take_over(table_id)
                else:
                    self._let_go(table_id)
        return {t: self._progress_there(t) for t in tables}

    def _require_kept(self, table_id: TableId, name: str) -> None:
        slot_name = table_sync_slot_name(self._to.config.pipeline, table_id)
        slot = self._control.ask("looking at the slot", fetch_slot, slot_name)
        plan = self._to.store.get_copy_plan(table_id)
        assert self._marking is not None
        held = self._marking.held_copies([table_id]).get(table_id)
        is_kept = slot is not None and not slot.is_lost
        is_held = held is not None and held.is_complete and plan and held.copy_id == plan.copy_id
        if not (is_kept and is_held):
            raise MoveRefused(
                f"the move of {name} was interrupted, and its changes since are not kept",
                solution=f"Copy it there: let the shard {self._of.name!r} run until it has let go "
                f"of the table, then `{command(self._to.config, 'resync', name)}`.",
            )

    def _progress_there(self, table_id: TableId) -> Lsn:
        return self._to.store.get_replication_progress(TableSyncWorker(table_id)) or LSN_ZERO

    def _tell(self, table_id: TableId, progress: Lsn) -> None:
        """All that the other shard has to know of the table, but that it has it."""
        of, to = self._of.store, self._to.store
        plan, metadata = of.get_copy_plan(table_id), of.get_destination_table_metadata(table_id)
        assert plan is not None
        assert metadata is not None
        to.clear_table_copy_state(table_id)
        for schema in of.get_table_schemas():
            if schema.id == table_id:
                to.store_table_schema(schema)
        to.store_destination_table_metadata(table_id, metadata)
        to.store_copy_plan(table_id, plan)
        for chunk in plan.finished.values():
            to.finish_chunk(table_id, plan.copy_id, chunk)
        hand_on_counts(of, to, table_id)
        hand_on_traces(of, to, table_id)
        note_move(to, table_id, Moved(plan.copy_id, self._of.name, self._of.publication))
        worker = TableSyncWorker(table_id)
        to.delete_replication_progress(worker)
        to.upsert_replication_progress(worker, progress)


def _is_untouched(state: TableState | None) -> bool:
    """Whether a shard has done nothing with a table but to write down that it is published."""
    return isinstance(state, Init | None) or (
        isinstance(state, Errored) and state.lsn is None and not state.is_kept
    )
