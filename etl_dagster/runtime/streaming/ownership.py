"""Which tables the apply worker applies, from where on, and how it takes a new one over."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Protocol

from etl_dagster.errors import DestinationUnreachable, EtlError
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import (
    Catchup,
    Errored,
    ManualRetry,
    Ready,
    SyncDone,
    SyncWait,
    TableState,
)
from etl_dagster.runtime.many import many
from etl_dagster.runtime.table_names import name_of
from etl_dagster.runtime.worker_parts import WorkerParts

_log = logging.getLogger(__name__)

_POLL_S = 0.02


class Positioned(Protocol):
    """A stream that stands somewhere."""

    @property
    def position(self) -> Lsn:
        """The smallest LSN past every transaction of which something was read."""
        ...


class FindsCopies(Protocol):
    """Knows what is at the destination that the apply worker writes to."""

    def missing_copies(self, table_ids: Collection[TableId]) -> Mapping[TableId, EtlError]:
        """Those of the tables, all of them copied, whose copy is not there."""
        ...


class Ownership:
    """The apply worker's view of the tables; belongs to the thread that reads the stream.

    The promise behind it: a change of a table in a transaction whose commit record begins at or
    after the table's `SyncDone` LSN is applied by the apply worker, and every one before by the
    table sync worker. It holds because the apply worker names a target that lies past everything
    it has passed over, and reads nothing more until the table sync worker is there (or has been
    told that the target no longer holds).
    """

    def __init__(self, parts: WorkerParts, stream: Positioned, copies: FindsCopies) -> None:
        self._store = parts.store
        self._many = many(parts.store)
        self._stream = stream
        self._copies = copies
        self._stop = parts.stop
        self._clock = parts.clock
        self._timing = parts.timing
        self._apply_from: dict[TableId, Lsn] = {}
        self._refresh_at = 0.0
        self._pause_until: dict[TableId, float] = {}
        #: How long a table that missed its targets is left alone now.
        self._pauses_s: dict[TableId, float] = {}

    @property
    def apply_from(self) -> Mapping[TableId, Lsn]:
        """The tables to apply, each from its LSN on. A snapshot; never changed afterwards."""
        return self._apply_from

    def start(self) -> None:
        """Before the first read: targets that an earlier apply worker named hold no longer."""
        promised = {
            table_id: state
            for table_id, state in self._store.get_table_replication_states().items()
            if isinstance(state, Catchup)
        }
        self._withdraw(promised)
        self._refresh_at = 0.0

    def invalidate(self) -> None:
        """Some state may have changed. From any thread."""
        self._refresh_at = 0.0

    def refresh(self) -> None:
        """Read the states if it is time, and take over the tables that are waiting for it."""
        now = self._clock.now_s()
        if now < self._refresh_at:
            return
        self._refresh_at = now + self._timing.refresh_s
        owned: dict[TableId, Lsn] = {}
        done: dict[TableId, SyncDone] = {}
        waiting: dict[TableId, SyncWait] = {}
        for table_id, state in self._store.get_table_replication_states().items():
            match state:
                case Ready(lsn):
                    owned[table_id] = lsn
                case SyncDone():
                    done[table_id] = state
                case SyncWait() if now >= self._pause_until.get(table_id, 0.0):
                    waiting[table_id] = state
                case Catchup() | SyncWait():
                    pass
                case _:
                    # Whatever worker it gets, that one didn't miss anything.
                    self._pause_until.pop(table_id, None)
                    self._pauses_s.pop(table_id, None)
        owned |= self._take(done)
        owned |= self._hand_over(waiting)
        self._apply_from = owned

    def _confirmed(self, waiting: Mapping[TableId, SyncWait]) -> dict[TableId, SyncWait]:
        """Those of the tables whose copy is where the apply worker writes.

        A worker of another process may have written another file under the same settings.
        """
        if not waiting:
            return {}
        try:
            missing = self._copies.missing_copies(waiting)
        except DestinationUnreachable as error:
            _log.warning("tables can't be taken over now: %s", error.reason)
            self._pause_until |= dict.fromkeys(
                waiting, self._clock.now_s() + self._timing.withdrawn_pause_s
            )
            return {}
        for table_id, why in missing.items():
            _log.error("table %s is not taken over: %s", table_id, why.reason)
            failed = Errored(why.reason, why.solution, ManualRetry())
            self._store.transition_table_state(table_id, waiting[table_id], failed)
        return {t: state for t, state in waiting.items() if t not in missing}

    def _alive(self, table_ids: Collection[TableId]) -> set[TableId]:
        """Those that a table sync worker has. The lease of one that died ended with it."""
        if not table_ids:
            return set()
        leased = self._many.leased([_lease(table_id) for table_id in table_ids])
        return {table_id for table_id in table_ids if _lease(table_id) in leased}

    def _hand_over(self, waiting: Mapping[TableId, SyncWait]) -> dict[TableId, Lsn]:
        """Name a target for each table and wait until all are reached; the tables that got there.

        The stream stands at one position meanwhile, so what holds for one table holds for many.
        Nothing is waited for that doesn't come: a table whose worker died, for the next worker
        begins with it elsewhere.
        """
        alive = self._alive(waiting)
        targets = self._name_targets(self._confirmed({t: waiting[t] for t in alive}))
        taken: dict[TableId, Lsn] = {}
        deadline = self._clock.now_s() + self._timing.catchup_wait_s
        check_at = self._clock.now_s() + self._timing.lease_check_s
        while targets and not self._stop.is_set():
            states = self._store.get_table_replication_states()
            done: dict[TableId, SyncDone] = {}
            for table_id, target in list(targets.items()):
                state = states.get(table_id)
                if state == target:
                    continue
                del targets[table_id]
                if isinstance(state, SyncDone):
                    done[table_id] = state
            taken |= self._take(done)
            if not targets:
                break
            if self._clock.now_s() >= check_at:
                check_at = self._clock.now_s() + self._timing.lease_check_s
                alive = self._alive(targets)
                dead = {t: target for t, target in targets.items() if t not in alive}
                for table_id in self._withdraw(dead):
                    _log.warning("the worker of table %s ended before its hand-over", table_id)
                    del targets[table_id]
                if not targets:
                    break
            if self._clock.now_s() > deadline:
                # From here on the stream continues without those tables, but for any that was done
                # just now: the next look finds it.
                withdrawn = self._withdraw(targets)
                self._pause(withdrawn)
                for table_id in withdrawn:
                    _log.warning(
                        "table %s did not reach %s in time", table_id, targets[table_id].target_lsn
                    )
                    del targets[table_id]
                continue
            self._store.wait_for_change(_POLL_S)
        return taken

    def _name_targets(self, waiting: Mapping[TableId, SyncWait]) -> dict[TableId, Catchup]:
        if not waiting:
            return {}
        position = self._stream.position
        targets = {t: Catchup(max(state.lsn, position)) for t, state in waiting.items()}
        named = self._many.transition_table_states([(t, waiting[t], targets[t]) for t in targets])
        return {table_id: targets[table_id] for table_id in named}

    def _withdraw(self, targets: Mapping[TableId, Catchup]) -> Collection[TableId]:
        """Take targets back; the tables where that was not too late."""
        if not targets:
            return ()
        return self._many.transition_table_states(
            [(t, target, SyncWait(target.target_lsn)) for t, target in targets.items()]
        )

    def _pause(self, table_ids: Collection[TableId]) -> None:
        """Name no target for these tables for a while, so that the others get on.

        A worker that hangs keeps its lease, so a table's pauses grow with each target that
        it misses.
        """
        now, timing = self._clock.now_s(), self._timing
        for table_id in table_ids:
            pause_s = self._pauses_s.get(table_id, timing.withdrawn_pause_s)
            self._pause_until[table_id] = now + pause_s
            self._pauses_s[table_id] = min(2 * pause_s, timing.longest_withdrawn_pause_s)

    def _take(self, done: Mapping[TableId, SyncDone]) -> dict[TableId, Lsn]:
        """Begin to apply the tables, each from its LSN on; those that are ours now."""
        if not done:
            return {}
        changes: list[tuple[TableId, TableState, TableState]] = []
        for table_id, state in done.items():
            if state.lsn < self._stream.position:
                # No worker of ours does this; continuing would silently lose what lies between.
                lost = Errored(
                    f"the table was handed over at {state.lsn}, which its stream has passed",
                    "Copy the table again: `etl-dagster resync TABLE`.",
                    ManualRetry(),
                )
                changes.append((table_id, state, lost))
            else:
                changes.append((table_id, state, Ready(state.lsn)))
        changed = self._many.transition_table_states(changes)
        taken = {
            table_id: new.lsn
            for table_id, _, new in changes
            if table_id in changed and isinstance(new, Ready)
        }
        for table_id in taken:
            self._pauses_s.pop(table_id, None)
            _log.info("%s is streamed from now on", name_of(self._store, table_id))
        return taken


def _lease(table_id: TableId) -> str:
    return f"table:{table_id}"
