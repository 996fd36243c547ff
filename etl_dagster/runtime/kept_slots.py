"""Slots that keep the changes of tables that stopped: what they cost, and when that is too much."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from etl_dagster.config import PipelineConfig
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Errored, ManualRetry
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.clock import Clock
from etl_dagster.runtime.table_names import name_of
from etl_dagster.runtime.timing import TIMING, Timing
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import Slot, drop_slot, fetch_copying_slots, table_sync_slot_name
from etl_dagster.words import human_bytes

_log = logging.getLogger(__name__)


class KeptSlots:
    """Watches these slots; belongs to one thread, but for `wal`.

    A table whose slot keeps more than `retry.max_retained_wal`, or is lost, needs a copy: the slot
    is dropped, and the table's state says so. That is never done to a table that a worker resumes.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        control: SourceControl,
        clock: Clock,
        timing: Timing = TIMING,
    ) -> None:
        self._config = config
        self._store = store
        self._control = control
        self._clock = clock
        self._every_s = timing.kept_slots_s
        self._due_s = 0.0
        #: WAL that the source keeps for each table that stopped, bytes. A new one for each look.
        self.wal: Mapping[TableId, int] = {}

    def look(self) -> None:
        """Measure, where it is time to, and drop what is too much.

        Raises:
            EtlError: source or store can't be asked.
        """
        now = self._clock.now_s()
        if now < self._due_s:
            return
        self._due_s = now + self._every_s
        kept = {
            table_id: state
            for table_id, state in self._store.get_table_replication_states().items()
            if isinstance(state, Errored) and state.is_kept
        }
        if not kept:
            self.wal = {}
            return
        found = self._control.ask("looking at slots", fetch_copying_slots, self._config.pipeline)
        slots = {slot.name: slot for slot in found}
        wal: dict[TableId, int] = {}
        for table_id, state in kept.items():
            slot = slots.get(table_sync_slot_name(self._config.pipeline, table_id))
            reason = self._reason_to_give_up(slot)
            if reason is not None:
                self._give_up(table_id, state, slot, reason)
            elif slot is not None:
                wal[table_id] = slot.retained_bytes
        self.wal = wal

    def _reason_to_give_up(self, slot: Slot | None) -> str | None:
        if slot is None:
            return "its slot is gone from the source"
        if slot.is_lost:
            return (
                f"its slot {slot.name!r} is lost: {slot.invalidation_reason or 'WAL was removed'}"
            )
        most = self._config.retry.max_retained_wal
        if slot.retained_bytes > most:
            return (
                f"its slot {slot.name!r} kept {human_bytes(slot.retained_bytes)} of WAL, more than "
                f"retry.max_retained_wal ({human_bytes(most)}), and was dropped"
            )
        return None

    def _give_up(self, table_id: TableId, state: Errored, slot: Slot | None, reason: str) -> None:
        lease = self._store.acquire_lease(f"table:{table_id}")
        if lease is None:
            return  # a worker resumes it
        try:
            # Its state first: a table that says its changes are kept has a slot.
            lost = replace(
                state,
                reason=f"{state.reason}; {reason}",
                retry=ManualRetry(),
                is_kept=False,
            )
            if not self._store.transition_table_state(table_id, state, lost):
                return
            if slot is not None:
                self._control.ask("dropping a slot", drop_slot, slot.name)
        finally:
            lease.release()
        name = name_of(self._store, table_id)
        _log.error(
            "%s can't be resumed any more: %s. It needs a copy: `etl-dagster resync %s`",
            name,
            reason,
            name,
        )
