"""Which tables the apply worker applies, from where on, and how it takes a new one over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Catchup, Errored, ManualRetry, Ready, SyncDone, SyncWait
from etl_dagster.model.stores import CoordinatingStore

_log = logging.getLogger(__name__)

#: How long the stream stands still for one table that was given its target. Table sync workers
#: ask when they are close, so it takes a moment; one that stalls is told to ask again.
_CATCHUP_WAIT_S = 5.0
#: How long a table whose target was withdrawn waits before it is given one again.
_WITHDRAWN_PAUSE_S = 2.0
_POLL_S = 0.02
#: States are read again at least this often, should a notification get lost.
_REFRESH_S = 1.0


class Ownership:
    """The apply worker's view of the tables; belongs to the thread that reads the stream.

    The promise behind it: a change of a table in a transaction whose commit record begins at or
    after the table's `SyncDone` LSN is applied by the apply worker, and every one before by the
    table sync worker. It holds because the apply worker names a target that lies past everything
    it has passed over, and reads nothing more until the table sync worker is there (or has been
    told that the target no longer holds).
    """

    def __init__(
        self,
        store: CoordinatingStore,
        *,
        position: Callable[[], Lsn],
        on_taken: Callable[[TableId], None],
        stop: threading.Event,
    ) -> None:
        """Args:
        position: the smallest LSN past every transaction of which something was read.
        on_taken: called when a table was taken over.
        """
        self._store = store
        self._position = position
        self._on_taken = on_taken
        self._stop = stop
        self._apply_from: dict[TableId, Lsn] = {}
        self._refresh_at = 0.0
        self._pause_until: dict[TableId, float] = {}

    @property
    def apply_from(self) -> Mapping[TableId, Lsn]:
        """The tables to apply, each from its LSN on. A snapshot; never changed afterwards."""
        return self._apply_from

    def start(self) -> None:
        """Before the first read: targets that an earlier apply worker named hold no longer."""
        for table_id, state in self._store.get_table_replication_states().items():
            if isinstance(state, Catchup):
                self._store.transition_table_state(table_id, state, SyncWait(state.target_lsn))
        self._refresh_at = 0.0

    def invalidate(self) -> None:
        """Some state may have changed. From any thread."""
        self._refresh_at = 0.0

    def refresh(self) -> None:
        """Read the states if it is time, and take over the tables that are waiting for it."""
        now = time.monotonic()
        if now < self._refresh_at:
            return
        self._refresh_at = now + _REFRESH_S
        owned: dict[TableId, Lsn] = {}
        for table_id, state in self._store.get_table_replication_states().items():
            match state:
                case Ready(lsn):
                    owned[table_id] = lsn
                case SyncDone():
                    taken = self._take(table_id, state)
                    if taken is not None:
                        owned[table_id] = taken
                case SyncWait() if now >= self._pause_until.get(table_id, 0.0):
                    taken = self._hand_over(table_id, state)
                    if taken is not None:
                        owned[table_id] = taken
                case _:
                    pass
        self._apply_from = owned

    def _hand_over(self, table_id: TableId, waiting: SyncWait) -> Lsn | None:
        """Name a target and wait until it is reached; None when it wasn't, for this time."""
        target = Catchup(max(waiting.lsn, self._position()))
        if not self._store.transition_table_state(table_id, waiting, target):
            return None
        deadline = time.monotonic() + _CATCHUP_WAIT_S
        while not self._stop.is_set():
            state = self._store.get_table_replication_state(table_id)
            if isinstance(state, SyncDone):
                return self._take(table_id, state)
            if state != target:
                return None
            if time.monotonic() > deadline:
                # From here on the stream goes on without the table, unless it was done just now.
                if self._store.transition_table_state(
                    table_id, target, SyncWait(target.target_lsn)
                ):
                    _log.warning("table %s did not reach %s in time", table_id, target.target_lsn)
                    self._pause_until[table_id] = time.monotonic() + _WITHDRAWN_PAUSE_S
                    return None
                continue
            self._store.wait_for_change(_POLL_S)
        return None

    def _take(self, table_id: TableId, done: SyncDone) -> Lsn | None:
        if done.lsn < self._position():
            # No worker of ours does this; going on would lose what lies between without a word.
            lost = Errored(
                f"the table was handed over at {done.lsn}, but its stream is past that already",
                "Copy the table again: `etl-dagster reset`.",
                ManualRetry(),
            )
            self._store.transition_table_state(table_id, done, lost)
            return None
        if not self._store.transition_table_state(table_id, done, Ready(done.lsn)):
            return None
        self._on_taken(table_id)
        return done.lsn
