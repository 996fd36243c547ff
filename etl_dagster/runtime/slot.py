"""The pipeline's permanent slot: made once, and refused when it can't continue exactly."""

from __future__ import annotations

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import SlotAdvanced, SlotError, SlotMissing
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Ready, SyncDone
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.source.connection import connect
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import (
    Slot,
    apply_slot_name,
    create_slot,
    drop_slot,
    fetch_group_slots,
    fetch_slot,
    fetch_table_sync_slots,
    require_usable,
)

#: How long making the slot may wait for transactions that are open.
_SLOT_LOCK_TIMEOUT_S = 60.0


def prepare_apply_slot(
    store: CoordinatingStore, control: SourceControl, config: PipelineConfig
) -> Lsn:
    """Make sure of the pipeline's permanent slot; returns where to stream from.

    Changes between the slot and what is durable would be lost without a word, so a slot that
    can't continue exactly there is refused.

    Raises:
        SlotMissing: it is gone though tables depend on it.
        SlotOfAnotherDatabase: a pipeline of the same name has it.
        SlotInvalidated: Postgres removed WAL that it needs.
        SlotAdvanced: somebody else confirmed changes on it.
    """
    name = apply_slot_name(config.pipeline)
    slot = control.ask("looking at the slot", fetch_slot, name)
    start = require_continuable(slot, name, store)
    if slot is None or start is None:
        return _create(store, control, config, name)
    if store.get_replication_progress(ApplyWorker()) is None:
        # Made by a process that died before it could say so; no table has used it yet.
        store.upsert_replication_progress(ApplyWorker(), start)
    return start


def require_continuable(slot: Slot | None, name: str, store: CoordinatingStore) -> Lsn | None:
    """Where to stream from, None where there is no slot and none is needed; changes nothing.

    The slot may be behind the store: a server that crashed forgets what was confirmed last. The
    stream then begins at the slot. What is durable is skipped, and what was put in its place by a
    restore is recognised.

    Raises:
        SlotError: as `prepare_apply_slot`.
    """
    progress = store.get_replication_progress(ApplyWorker())
    states = store.get_table_replication_states()
    depending = [t for t, state in states.items() if isinstance(state, SyncDone | Ready)]
    if slot is None:
        if depending:
            raise SlotMissing(
                f"slot {name!r} is gone from the source, but {len(depending)} tables are "
                "streamed from it"
            )
        return None
    require_usable(slot)
    confirmed = slot.confirmed_flush_lsn
    if confirmed is None or slot.plugin != "pgoutput":
        raise SlotError(
            f"slot {name!r} is no logical slot of pgoutput: somebody else made it",
            solution=f"Drop it (select pg_drop_replication_slot('{name}')), or give the pipeline "
            "another name.",
        )
    if progress is None:
        if depending:
            raise SlotAdvanced(
                f"slot {name!r} exists, but the store knows nothing of how far it was read"
            )
        return confirmed
    if confirmed > progress:
        raise SlotAdvanced(
            f"slot {name!r} was confirmed up to {confirmed}, but only what is before {progress} "
            "is durable at the destination"
        )
    return confirmed


def _create(
    store: CoordinatingStore, control: SourceControl, config: PipelineConfig, name: str
) -> Lsn:
    # Progress of an earlier slot would be past the new one's beginning, or before it.
    store.delete_replication_progress(ApplyWorker())
    connection = connect(
        config.source,
        application_name=f"etl_dagster slot {config.pipeline}",
        replication=True,
        lock_timeout_s=_SLOT_LOCK_TIMEOUT_S,
    )
    with connection:
        slot = create_slot(connection, name)
    return store.upsert_replication_progress(ApplyWorker(), slot.consistent_point)


def drop_pipeline_slots(control: SourceControl, pipeline: str) -> list[str]:
    """Drop every slot of the pipeline; returns their names."""
    names = [
        *control.ask("listing slots", fetch_table_sync_slots, pipeline).values(),
        *control.ask("listing slots", fetch_group_slots, pipeline).values(),
    ]
    names.append(apply_slot_name(pipeline))
    return [name for name in names if control.ask("dropping a slot", drop_slot, name)]


def retained_wal_bytes(control: SourceControl, pipeline: str) -> int | None:
    """WAL that the pipeline's slot makes the server keep, bytes."""
    slot = control.ask("looking at the slot", fetch_slot, apply_slot_name(pipeline))
    return None if slot is None else slot.retained_bytes
