"""Cancels the copy of a table; what the table had before stays in service."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from etl_dagster.config import PipelineConfig
from etl_dagster.config.commands import command
from etl_dagster.errors import InvalidState, SlotInUse
from etl_dagster.model.coordination import Lease
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import DataSync, Errored, Init, ManualRetry, TableState, state_name
from etl_dagster.model.stores import CoordinatingStore, TableSyncWorker
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import drop_slot, table_sync_slot_name

_REASON = "its copy was cancelled; rows from before that copy stay as they were"
#: A worker ends after the chunk that it copies.
_WAIT_S = 60.0
_LOOK_S = 0.2


def cancel_copy(
    config: PipelineConfig,
    store: CoordinatingStore,
    control: SourceControl,
    table_id: TableId,
    name: str,
    *,
    wait_s: float = _WAIT_S,
) -> None:
    """Stop a copy that is due or under way, and drop its slot. May be called again.

    Raises:
        InvalidState: no copy can be cancelled.
        SlotInUse: its worker has not ended yet.
        EtlError: source or store can't be reached.
    """
    state = store.get_table_replication_state(table_id)
    if not _is_cancelled(state):
        _require_copying(state, name)
        assert state is not None
        cancelled = Errored(
            _REASON,
            f"Copy the table when you want it: `{command(config, 'resync', name)}`.",
            ManualRetry(),
            since=datetime.now(UTC),
        )
        if not store.transition_table_state(table_id, state, cancelled):
            raise InvalidState(
                f"{name} has another state meanwhile", solution="Look at `etl-dagster status`."
            )
        store.wake()
    lease = _lease_once_free(store, table_id, wait_s)
    if lease is None:
        raise SlotInUse(
            f"the copy of {name} is cancelled, but its worker has not ended yet",
            solution="Run the same command again in a moment: it drops the slot.",
        )
    try:
        if _is_cancelled(store.get_table_replication_state(table_id)):
            slot_name = table_sync_slot_name(config.pipeline, table_id)
            control.ask("dropping a slot", drop_slot, slot_name)
            store.delete_replication_progress(TableSyncWorker(table_id))
    finally:
        lease.release()


def _is_cancelled(state: TableState | None) -> bool:
    return isinstance(state, Errored) and state.reason == _REASON


def _require_copying(state: TableState | None, name: str) -> None:
    if isinstance(state, Init | DataSync):
        return
    is_ = "not known" if state is None else state_name(state)
    raise InvalidState(
        f"{name} is {is_}: no copy of it can be cancelled",
        solution="No action needed. From finished_copy on, the new copy is the table.",
    )


def _lease_once_free(store: CoordinatingStore, table_id: TableId, wait_s: float) -> Lease | None:
    deadline = time.monotonic() + wait_s
    while (lease := store.acquire_lease(f"table:{table_id}")) is None:
        if time.monotonic() > deadline:
            return None
        store.wait_for_change(_LOOK_S)
    return lease
