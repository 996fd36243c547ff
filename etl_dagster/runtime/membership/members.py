"""Which tables the pipeline has: the publication's, kept in step with the store's."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence

from etl_dagster.config import PipelineConfig
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import (
    Catchup,
    DataSync,
    Errored,
    FinishedCopy,
    Init,
    ManualRetry,
    Ready,
    SyncDone,
    SyncWait,
    TableState,
)
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.runtime.many import group_lease
from etl_dagster.runtime.membership.member_notes import MemberNotes
from etl_dagster.runtime.membership.partitions import Partitions
from etl_dagster.runtime.moved import held_error
from etl_dagster.runtime.sharding import held_by_others
from etl_dagster.runtime.table_names import name_of
from etl_dagster.runtime.tables.identities import find_unidentified
from etl_dagster.runtime.tables.representation import chosen
from etl_dagster.source.catalog import (
    PublishedTable,
    emit_marker,
    fetch_publication,
    fetch_published_tables,
)
from etl_dagster.source.control import SourceControl
from etl_dagster.source.membership import Look, Membership, PublicationTrace, Rewrite, look
from etl_dagster.source.slots import drop_slot, fetch_group_slots, fetch_table_sync_slots

_log = logging.getLogger(__name__)

#: So many truncates of a table are remembered, by transaction.
_TRUNCATES_KEPT = 100


class Members:
    """The tables of the publication, as last read.

    Each look at the publication is compared with the one before, which the store keeps. `refresh`
    and `settle` belong to one thread; the rest may be called from any.
    """

    def __init__(
        self, config: PipelineConfig, store: CoordinatingStore, control: SourceControl
    ) -> None:
        self._config = config
        self._store = store
        self._control = control
        self._tables: Mapping[TableId, PublishedTable] = {}
        self._notes: MemberNotes | None = None
        self._last_saved: object = None
        #: Tables with new files that a TRUNCATE may explain, once the stream has passed the LSN.
        self._unclear: dict[TableId, tuple[Lsn, Membership]] = {}
        self._truncates: dict[TableId, deque[int]] = {}
        self.partitions = Partitions(config, store, control)
        self._lock = threading.Lock()

    @property
    def ids(self) -> list[TableId]:
        return list(self._tables)

    @property
    def tables(self) -> Mapping[TableId, PublishedTable]:
        return self._tables

    @property
    def relation_ids(self) -> set[int]:
        """The tables, and the partitions of those that are published through their roots."""
        notes = self._notes
        roots = [] if notes is None else list(notes.partitions.values())
        return {*self._tables, *(leaf for root in roots for leaf in list(root.leaves))}

    @property
    def waits_for(self) -> Lsn | None:
        """The LSN that the stream must pass before something can be decided; None without one."""
        leaving = self._notes.leaving.values() if self._notes is not None else ()
        marks = [*leaving, *(lsn for lsn, _ in self._unclear.values()), *self.partitions.marks]
        return max(marks, default=None)

    @property
    def is_settled(self) -> bool:
        """Whether everything that the last look found is dealt with, but for tables that left."""
        return not self._unclear and self.partitions.is_settled

    @property
    def partitions_kept(self) -> Mapping[TableId, Sequence[str]]:
        """Names of partitions that are gone at the source while their rows stayed; latest last."""
        notes = self._notes
        known = [] if notes is None else list(notes.partitions.items())
        return {table_id: tuple(part.kept.values()) for table_id, part in known if part.kept}

    def truncated(self, table_id: TableId, xid: int) -> None:
        """The stream brought a TRUNCATE of the table by this transaction."""
        with self._lock:
            self._truncates.setdefault(table_id, deque(maxlen=_TRUNCATES_KEPT)).append(xid)

    def refresh(self) -> None:
        """Read the publication again.

        Raises:
            PublicationMissing: it is gone.
        """
        name = self._config.source.publication
        self._control.ask("reading the publication", fetch_publication, name)
        tables = self._control.ask(
            "reading the publication", fetch_published_tables, name, with_filters=False
        )
        self.update(tables)

    def update(self, members: Sequence[PublishedTable]) -> None:
        """Take over what the publication holds now.

        New tables begin at `Init`. A table that was out of the publication meanwhile is copied
        again. What is kept of one that left is removed once its last changes are applied; its rows
        at the destination stay. Slots that no table needs any more are dropped, so that they don't
        keep WAL for ever.
        """
        now = self._control.ask("reading the publication", look, self._config.source.publication)
        published = {table.schema.id: table for table in members if table.schema.id in now.members}
        notes = self._notes = self._notes or MemberNotes.load(self._store)
        states = self._store.get_table_replication_states()
        self._let_go(notes, states, published)
        held_back = self._add_new(notes, states, published)
        # A reader sees each table of this look with its state.
        self._tables = published
        mark = _OneMarker(self._control)
        self._find_missed(notes, states, published, now, mark)
        for table_id, reason in self.partitions.look(notes, states, published, now, mark).items():
            self._copy_again(table_id, reason)
        self._stop_unidentified(states, published)
        notes.publication = now.publication
        for table_id in published:
            if table_id not in self._unclear and table_id not in held_back:
                notes.tables[table_id] = now.members[table_id]
        notes.earlier.clear()
        self._save()
        self.settle()
        self._drop_unneeded_slots()

    # -- tables that left ------------------------------------------------------------------------

    def _let_go(
        self,
        notes: MemberNotes,
        states: Mapping[TableId, TableState],
        published: Mapping[TableId, PublishedTable],
    ) -> None:
        """The stream may still bring changes from before a table left, if it is streamed."""
        gone = [t for t in states if t not in published and t not in notes.leaving]
        mark = _OneMarker(self._control)
        for table_id in gone:
            match states[table_id]:
                case Init() | DataSync() | Errored():
                    self._forget(notes, table_id)
                case FinishedCopy() | SyncWait() | Catchup() | SyncDone() | Ready():
                    notes.leaving[table_id] = mark()
                    _log.warning(
                        "%s left the publication; its last changes are still applied, "
                        "then its rows stay",
                        name_of(self._store, table_id),
                    )

    def settle(self) -> bool:
        """Decide what has waited for the stream to pass an LSN; whether a table was let go."""
        notes = self._notes
        if notes is None:
            return False
        if self.partitions.take_copied(notes):
            self._save()
        if self.waits_for is None:
            return False
        known = len(notes.leaving)
        durable = self._store.get_replication_progress(ApplyWorker()) or LSN_ZERO
        for table_id, last in list(notes.leaving.items()):
            state = self._store.get_table_replication_state(table_id)
            if state is None:
                notes.forget(table_id)
            elif durable > last and not self._is_arriving(table_id, state):
                self._forget(notes, table_id)
        for table_id, (last, member) in list(self._unclear.items()):
            if durable > last:
                self._explain(notes, table_id, member)
        for table_id, reason in self.partitions.settle(
            notes, self._tables, durable, self._truncated_by
        ).items():
            self._copy_again(table_id, reason)
        self._save()
        return len(notes.leaving) < known

    def _is_arriving(self, table_id: TableId, state: TableState) -> bool:
        """Whether a table sync worker is about to hand the table over."""
        if isinstance(state, SyncDone):
            return True
        is_between = isinstance(state, FinishedCopy | SyncWait | Catchup)
        return is_between and self._is_worked_on(table_id)

    def _forget(self, notes: MemberNotes, table_id: TableId) -> None:
        if table_id in notes.leaving:
            _log.info("the last changes of %s are applied", name_of(self._store, table_id))
        else:
            _log.warning("%s left the publication; its rows stay", name_of(self._store, table_id))
        # A worker that still copies it ends at its next step: the state is not its own any more.
        self._store.delete_table_pipeline_state(table_id)
        notes.forget(table_id)
        self._unclear.pop(table_id, None)

    # -- tables that are new ---------------------------------------------------------------------

    def _add_new(
        self,
        notes: MemberNotes,
        states: Mapping[TableId, TableState],
        published: Mapping[TableId, PublishedTable],
    ) -> set[TableId]:
        """Give new tables their first state; returns those that have to wait for it."""
        new = [table_id for table_id in published if table_id not in states]
        # The last changes of a table that was dropped go where one of the same name would go.
        taken = {
            metadata.destination_table_id
            for table_id in notes.leaving.keys() - published.keys()
            if (metadata := self._store.get_destination_table_metadata(table_id)) is not None
        }
        named = {table_id: chosen(published[table_id].schema, self._config) for table_id in new}
        held_back = {table_id for table_id in new if str(named[table_id].target) in taken}
        added = [table_id for table_id in new if table_id not in held_back]
        if added:
            names = ", ".join(published[table_id].schema.name for table_id in added)
            _log.info("new in the publication: %s", names)
            for table_id in added:
                notes.forget(table_id)
            self._store.update_table_replication_states(self._first_states(added, published))
        return held_back

    def _first_states(
        self, added: Collection[TableId], published: Mapping[TableId, PublishedTable]
    ) -> list[tuple[TableId, TableState]]:
        """`Init`, but for those that another shard of the pipeline has."""
        first: dict[TableId, TableState] = dict.fromkeys(added, Init())
        for table_id, other in held_by_others(self._config, self._store, added).items():
            name = published[table_id].schema.name
            error = held_error(self._config, self._store, table_id, name, other)
            _log.error("%s", error.reason)
            first[table_id] = Errored(error.reason, error.solution, ManualRetry())
        return list(first.items())

    # -- tables that missed something --------------------------------------------------------------

    def _find_missed(
        self,
        notes: MemberNotes,
        states: Mapping[TableId, TableState],
        published: Mapping[TableId, PublishedTable],
        now: Look,
        mark: _OneMarker,
    ) -> None:
        """Copy again what the stream may lack changes of."""
        of_all = self._of_publication(notes.publication, now.publication)
        for table_id in published:
            if table_id not in states:
                continue
            before, member = notes.tables.get(table_id), now.members[table_id]
            was_out = (
                notes.leaving.pop(table_id, None) is not None
                or notes.was_out_by_earlier(table_id, now)
                or (before is not None and not member.is_unbroken_since(before))
            )
            rewrite = Rewrite.NONE if before is None else member.rewrite_since(before)
            reason = of_all
            if was_out:
                reason = reason or "was out of the publication"
            elif before is not None and member.may_have_been_attached_since(before):
                reason = reason or "may have been a partition of another table for a while"
            elif rewrite is Rewrite.ALTERED:
                reason = reason or "was written again, perhaps while it was unlogged"
            if reason is not None:
                self._unclear.pop(table_id, None)
                self._copy_again(table_id, reason)
            elif rewrite is Rewrite.UNCLEAR:
                known = self._unclear.get(table_id)
                if known is None or known[1] != member:
                    self._unclear[table_id] = mark(), member

    def _of_publication(self, before: PublicationTrace | None, now: PublicationTrace) -> str | None:
        """Why every table must be copied again, if so."""
        if before is None or before == now:
            return None
        if before.oid != now.oid:
            return "was in another publication of this name"
        is_narrowed = (
            set(now.operations) < set(before.operations)
            and now.via_partition_root == before.via_partition_root
        )
        if is_narrowed:
            # A copy would take rows away that are kept on purpose.
            _log.warning(
                "publication %r publishes less than before (%s). If it published even less for a "
                "moment, those changes are missing: then `etl-dagster reset --all`",
                self._config.source.publication,
                _spelled(now.operations),
            )
            return None
        return "was published otherwise for a while: its publication was altered"

    def _explain(self, notes: MemberNotes, table_id: TableId, member: Membership) -> None:
        """New files: by a TRUNCATE that the stream brought, or by what it may not know of."""
        del self._unclear[table_id]
        if table_id not in self._tables:
            return
        if member.storage.changed_by not in self._truncated_by(table_id):
            self._copy_again(table_id, "was written again, perhaps while it was unlogged")
        notes.tables[table_id] = member

    def _truncated_by(self, table_id: TableId) -> set[str]:
        with self._lock:
            return {str(xid) for xid in self._truncates.get(table_id, ())}

    def _copy_again(self, table_id: TableId, reason: str) -> None:
        name = self._tables[table_id].schema.name
        if not self._config.table(name).copy_rows:
            _log.warning(
                "%s %s; changes meanwhile are missing, since its rows are not copied "
                "(tables.%s.copy is false)",
                name,
                reason,
                name,
            )
        elif not isinstance(self._store.get_table_replication_state(table_id), Init | None):
            _log.warning("%s %s; copying it again", name, reason)
            self._store.request_copy(table_id)

    # -- tables whose changes can't be applied ----------------------------------------------------

    def _stop_unidentified(
        self,
        states: Mapping[TableId, TableState],
        published: Mapping[TableId, PublishedTable],
    ) -> None:
        """Stop tables that are streamed; a copy of one looks at its partitions itself."""
        streamed = [t for t_id, t in published.items() if isinstance(states.get(t_id), Ready)]
        found = self._control.ask("looking at partitions", find_unidentified, streamed)
        for table_id, error in found.items():
            _log.error("%s stopped: %s", published[table_id].schema.name, error.reason)
            failed = Errored(error.reason, error.solution, ManualRetry())
            self._store.transition_table_state(table_id, states[table_id], failed)

    # -- plumbing --------------------------------------------------------------------------------

    def _save(self) -> None:
        assert self._notes is not None
        content = self._notes.to_json()
        if content != self._last_saved:
            self._notes.save(self._store)
            self._last_saved = content

    def _drop_unneeded_slots(self) -> None:
        slots = self._control.ask("listing slots", fetch_table_sync_slots, self._config.pipeline)
        for table_id, slot_name in slots.items():
            # In this order: who makes a slot holds the lease until the state says what it is for.
            if self._is_worked_on(table_id):
                continue
            state = self._store.get_table_replication_state(table_id)
            if table_id not in self._tables or not _is_slot_needed(state):
                self._control.ask("dropping a slot", drop_slot, slot_name)
        groups = self._control.ask("listing slots", fetch_group_slots, self._config.pipeline)
        for table_id, slot_name in groups.items():
            # A group begins with a slot of its own, whatever was left of an earlier one.
            if not self._store.is_leased(group_lease(table_id)):
                self._control.ask("dropping a slot", drop_slot, slot_name)

    def _is_worked_on(self, table_id: TableId) -> bool:
        return self._store.is_leased(f"table:{table_id}")


class _OneMarker:
    """Gives an LSN past everything that a look found; the same each time."""

    def __init__(self, control: SourceControl) -> None:
        self._control = control
        self._marker: Lsn | None = None

    def __call__(self) -> Lsn:
        if self._marker is None:
            self._marker = self._control.ask("marking the stream", emit_marker)
        return self._marker


def _is_slot_needed(state: TableState | None) -> bool:
    """Whether a slot of the table's own has changes that it still lacks."""
    if isinstance(state, Errored):
        return state.is_kept or state.lsn is None  # else it has been streamed, and needs a copy
    return not isinstance(state, Ready)


def _spelled(operations: str) -> str:
    words = {"i": "insert", "u": "update", "d": "delete", "t": "truncate"}
    return ", ".join(words[letter] for letter in operations) or "nothing"
