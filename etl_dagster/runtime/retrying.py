"""Has tables resumed that stopped, without a copy."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from etl_dagster.config import PipelineConfig
from etl_dagster.config.commands import command
from etl_dagster.errors import CopyNeeded, InvalidState
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Errored, TimedRetry, state_name
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import fetch_slot, table_sync_slot_name


def stopped_tables(store: CoordinatingStore) -> list[TableId]:
    """The tables that `request_retry` may resume."""
    states = store.get_table_replication_states()
    return [table_id for table_id, state in states.items() if isinstance(state, Errored)]


def require_retryable(
    config: PipelineConfig,
    store: CoordinatingStore,
    control: SourceControl,
    table_id: TableId,
    name: str,
) -> Errored:
    """The state of a table that a retry leads on; changes nothing.

    Raises:
        InvalidState: the table has not stopped.
        CopyNeeded: its changes since it stopped are not kept.
        EtlError: source or store can't be reached.
    """
    state = store.get_table_replication_state(table_id)
    if not isinstance(state, Errored):
        is_ = "not known" if state is None else state_name(state)
        raise InvalidState(
            f"{name} has not stopped: it is {is_}",
            solution=f"No action needed. To copy it again: `{command(config, 'resync', name)}`.",
        )
    plan = store.get_copy_plan(table_id)
    is_copied = state.lsn is not None or (plan is not None and not plan.remaining)
    if is_copied:
        slot = control.ask(
            "looking at the slot", fetch_slot, table_sync_slot_name(config.pipeline, table_id)
        )
        if slot is None or slot.is_lost or plan is None:
            since = "" if state.lsn is None else f", since {state.lsn},"
            raise CopyNeeded(name, f"{name} can't be resumed: its changes{since} are not kept")
    return state


def request_retry(store: CoordinatingStore, table_id: TableId, state: Errored) -> Lsn | None:
    """Have a table sync worker take the table up at once; from where it resumes.

    None for a table whose copy is not finished: that is resumed, or begins again.

    Args:
        state: as `require_retryable` found it.

    Raises:
        InvalidState: the table has another state meanwhile.
    """
    # Attempts count from here on.
    due = replace(state, retry=TimedRetry(datetime.now(UTC), attempt=0))
    if not store.transition_table_state(table_id, state, due):
        raise InvalidState(
            "the table's state changed meanwhile", solution="Look at `etl-dagster status`."
        )
    store.wake()
    return state.lsn
