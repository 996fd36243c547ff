"""The pipeline's permanent slot: made once, and refused when it can't continue exactly."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import psycopg

from etl_dagster.config import PipelineConfig, SourceConfig
from etl_dagster.errors import EtlError, SlotAdvanced, SlotError, SlotMissing, SlotNotCreated
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import Ready, SyncDone
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.pg.cancelling import cancelled_by
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.timing import TIMING, Timing
from etl_dagster.source.connection import connect
from etl_dagster.source.control import SourceControl
from etl_dagster.source.retained_wal import RetainedWal
from etl_dagster.source.slots import (
    BlockingTransaction,
    CreatedSlot,
    Slot,
    apply_slot_name,
    create_slot,
    drop_slot,
    fetch_group_slots,
    fetch_slot,
    fetch_table_sync_slots,
    fetch_waited_for,
    make_failover_slot,
    require_usable,
)
from etl_dagster.source.standby_slots import helped

#: How long making the slot may wait for transactions that are open.
_SLOT_LOCK_TIMEOUT_S = 60.0
_LOOK_S = 0.05
#: From then on, what a slot waits for is worth a word.
_TELL_AFTER_S = 3.0

_log = logging.getLogger(__name__)


def prepare_apply_slot(
    store: CoordinatingStore,
    control: SourceControl,
    config: PipelineConfig,
    *,
    stop: threading.Event | None = None,
    timing: Timing = TIMING,
) -> Lsn:
    """Make sure of the pipeline's permanent slot; returns where to stream from.

    Changes between the slot and what is durable would be lost without a word, so a slot that
    can't continue exactly there is refused.

    Raises:
        SlotMissing: it is gone though tables depend on it.
        SlotOfAnotherDatabase: a pipeline of the same name has it.
        SlotInvalidated: Postgres removed WAL that it needs.
        SlotAdvanced: another reader confirmed changes on it.
    """
    name = apply_slot_name(config.pipeline)
    slot = fetch_idle_slot(control, name, stop or threading.Event(), timing)
    if slot is not None and slot.is_unfinished:
        # No process is at it: the lease is ours.
        control.ask("dropping a slot that was never finished", drop_slot, name)
        slot = None
    start = require_continuable(slot, name, store)
    if slot is None or start is None:
        return _create(store, control, config, name, stop)
    keep_for_standbys(control, config, slot, stop or threading.Event())
    if store.get_replication_progress(ApplyWorker()) is None:
        # Made by a process that died before it could say so; no table has used it yet.
        store.upsert_replication_progress(ApplyWorker(), start)
    return start


def keep_for_standbys(
    control: SourceControl, config: PipelineConfig, slot: Slot, stop: threading.Event
) -> None:
    """Have standbys keep a slot that was made before `source.failover` was set.

    Raises:
        Stopped: told to stop.
        EtlError: the source can't be reached or refuses, as while another process reads the slot.
    """
    if not config.source.failover or slot.is_failover:
        return
    fetch_idle_slot(control, slot.name, stop)
    with connect(
        config.source, application_name=f"etl_dagster slot {config.pipeline}", replication=True
    ) as connection:
        make_failover_slot(connection, slot.name)
    _log.info("slot %r is kept by standbys from now on, too", slot.name)


def fetch_idle_slot(
    control: SourceControl, name: str, stop: threading.Event, timing: Timing = TIMING
) -> Slot | None:
    """The slot as it is once it is not read; None when there is none.

    The server goes through what an earlier connection has confirmed also after that connection's
    end: until then, the slot may move on past where a stream was about to start. One that is still
    read after some seconds is returned as it is; starting to read it is refused then.

    Raises:
        Stopped: told to stop.
    """
    deadline = time.monotonic() + timing.idle_slot_s
    while True:
        slot = control.ask("looking at the slot", fetch_slot, name)
        if slot is None or slot.is_unfinished or not slot.active or time.monotonic() > deadline:
            return slot
        if stop.wait(_LOOK_S):
            raise Stopped


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
    if slot is None or slot.is_unfinished:
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
            f"slot {name!r} is not a logical slot of pgoutput: another program made it",
            solution=f"Drop it (select pg_drop_replication_slot('{name}')), or give the pipeline "
            "another name.",
        )
    if progress is None:
        if depending:
            raise SlotAdvanced(
                f"slot {name!r} exists, but the store has no record of how far it was read"
            )
        return confirmed
    if confirmed > progress:
        raise SlotAdvanced(
            f"slot {name!r} was confirmed up to {confirmed}, but only what is before {progress} "
            "is durable at the destination"
        )
    return confirmed


def make_slot(
    control: SourceControl,
    replication_connection: psycopg.Connection[Any],
    name: str,
    *,
    export_snapshot: bool = False,
    is_failover: bool = False,
    stop: threading.Event | None = None,
) -> CreatedSlot:
    """Create a slot, which waits for the transactions that are open now.

    After some seconds these are named in the log, and in the error when they stay open.

    Args:
        control: used by no other thread while it waits for this.
        is_failover: have standbys keep it, too.
        stop: ends the wait.

    Raises:
        Stopped: told to stop.
        SlotError: as `create_slot`.
    """
    stop = stop or threading.Event()
    pid = replication_connection.info.backend_pid
    waited_for: list[BlockingTransaction] = []

    def find_out() -> None:
        waited_for[:] = control.ask("looking at open transactions", fetch_waited_for, pid)
        for transaction in waited_for:
            _log.warning("slot %r waits for %s: %s", name, transaction, transaction.solution)

    try:
        with (
            cancelled_by(
                stop, replication_connection.cancel, after_s=_TELL_AFTER_S, on_waiting=find_out
            ),
            helped(control, replication_connection, name),
        ):
            return create_slot(
                replication_connection,
                name,
                export_snapshot=export_snapshot,
                is_failover=is_failover,
            )
    except EtlError as error:
        if stop.is_set():
            raise Stopped from None
        if isinstance(error, SlotNotCreated) and waited_for:
            first = waited_for[0]
            raise SlotNotCreated(
                f"slot {name!r} could not be created: it waits for {first}",
                solution=f"On the source: {first.solution} The pipeline tries again.",
            ) from error
        raise


def _create(
    store: CoordinatingStore,
    control: SourceControl,
    config: PipelineConfig,
    name: str,
    stop: threading.Event | None,
) -> Lsn:
    # Progress of an earlier slot would be past the new one's beginning, or before it.
    store.delete_replication_progress(ApplyWorker())
    begins = make_permanent_slot(control, config, name, stop=stop)
    return store.upsert_replication_progress(ApplyWorker(), begins)


def make_permanent_slot(
    control: SourceControl, config: PipelineConfig, name: str, *, stop: threading.Event | None
) -> Lsn:
    """Make a slot that stays; returns where it begins. Raises as `make_slot`."""
    connection = connect(
        config.source,
        application_name=f"etl_dagster slot {config.pipeline}",
        replication=True,
        lock_timeout_s=_SLOT_LOCK_TIMEOUT_S,
    )
    with connection:
        made = make_slot(control, connection, name, is_failover=config.source.failover, stop=stop)
        return made.consistent_point


def drop_pipeline_slots(control: SourceControl, config: PipelineConfig) -> list[str]:
    """Drop every slot of the pipeline; returns their names.

    Of one destination among several, the slots that are its alone; of a pipeline with several,
    those of all of them, too.
    """
    names = list_pipeline_slots(control, config)
    return [name for name in names if control.ask("dropping a slot", drop_slot, name)]


def list_pipeline_slots(control: SourceControl, config: PipelineConfig) -> list[str]:
    """The names of the slots that `drop_pipeline_slots` would drop; not all of them need exist."""
    names: list[str] = []
    for each in (config, *config.members().values()):
        names += control.ask("listing slots", fetch_table_sync_slots, each.pipeline).values()
        names += control.ask("listing slots", fetch_group_slots, each.pipeline).values()
        member = each.membership
        names.append(apply_slot_name(each.pipeline if member is None else member.own_slot_of))
    return names


def retained_wal(
    control: SourceControl, config: SourceConfig, slot_name: str
) -> RetainedWal | None:
    """WAL that the slot makes the server keep; None where there is no such slot."""
    slot = control.ask("looking at the slot", fetch_slot, slot_name)
    return None if slot is None else RetainedWal.of(slot, config)
