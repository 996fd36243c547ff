"""Copying everything again: by the caller, or by the process that runs the pipeline when asked.

A replicator is kept alive by Dagster's sensor, so it can't simply be stopped for a reset. It looks
for requests in the state store, ends its pipeline, resets it and starts it again. Of several
destinations, a request for one is in the store of its pipeline, and one for all in that of the
pipeline as a whole. One destination keeps the store of the whole where it was the only one before,
so both have keys of their own. A request is a note: one that was followed halfway is followed
again.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from etl_dagster.config import PipelineConfig
from etl_dagster.model.states import Init
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.repair_requests import Why, forget_repairs, note_repairs
from etl_dagster.runtime.runner import RUNNER, RUNNER_OF_SEVERAL, in_use
from etl_dagster.runtime.slot import drop_pipeline_slots
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import fetch_apply_slot

_log = logging.getLogger(__name__)

_POLL_S = 0.5
#: The request of a command that was killed while it waited is not followed any more.
_EXPIRES_S = 600.0


@dataclass(frozen=True, slots=True)
class Extent:
    """What a request is for: the keys of its note and of the offer to follow one, and the lease of
    who follows."""

    request: str
    offer: str
    runner: str
    lease: str


#: A pipeline, also that of one destination among several. Earlier versions looked for requests
#: among the statuses, and offered so under another key.
ONE = Extent("reset", "reset by note offer", RUNNER, "apply")
#: All destinations of a pipeline with several.
ALL = Extent("fan out reset", "fan out reset offer", RUNNER_OF_SEVERAL, "fan out")


def reset_pipeline(
    config: PipelineConfig,
    store: CoordinatingStore,
    control: SourceControl,
    *,
    by_repair: bool = False,
) -> list[str]:
    """Have every table copied from the beginning, and drop the slots; returns their names.

    Args:
        by_repair: have those that were copied before compared, and rows that differ replaced.

    Raises:
        PipelineInUse: a process runs the pipeline.
        SlotInUse: a copy under way still reads its slot. A second reset drops what is left.
    """
    lease = store.acquire_lease("apply")
    if lease is None:
        raise in_use(store, config.pipeline, "a process")
    try:
        _note_repairs(store, "asked" if by_repair else None)
        # In this order: should it end in between, a second reset finds the rest.
        store.reset_for_resync()
        return drop_pipeline_slots(control, config)
    finally:
        lease.release()


def reset_several(
    whole: PipelineConfig,
    stores: Mapping[str, CoordinatingStore],
    control: SourceControl,
    *,
    by_repair: bool = False,
) -> list[str]:
    """As `reset_pipeline`, for all destinations; the shared slot is dropped last.

    Args:
        stores: of each destination's pipeline.
    """
    dropped: list[str] = []
    for name, member in whole.members().items():
        dropped += reset_pipeline(member, stores[name], control, by_repair=by_repair)
    return dropped + drop_pipeline_slots(control, whole)


def begin_again_without_slot(
    config: PipelineConfig, store: CoordinatingStore, control: SourceControl
) -> bool:
    """Where the slot is lost and `on_lost_slot` isn't ``stop``: forget what was streamed from it.

    Every table is at `Init` then, and no slot is left. To be called with the lease.
    """
    if config.on_lost_slot == "stop":
        return False
    slot = control.ask("looking at the slot", fetch_apply_slot, config)
    if slot is None or not slot.is_lost or not slot.is_of_this_database:
        return False
    _log.warning(
        "slot %r is lost (%s); every table is %s, see on_lost_slot",
        slot.name,
        slot.invalidation_reason or "WAL that it needs was removed",
        "copied again" if config.on_lost_slot == "recopy" else "compared and repaired",
    )
    _note_repairs(store, "lost slot" if config.on_lost_slot == "repair" else None)
    # In this order: should it end in between, the next start finds the slot lost still.
    store.reset_for_resync()
    drop_pipeline_slots(control, config)
    return True


def _note_repairs(store: CoordinatingStore, why: Why | None) -> None:
    """Have the next copies of tables that were copied before be repairs, or none of them."""
    forget_repairs(store)
    if why is None:
        return
    states = store.get_table_replication_states()
    copied = [table_id for table_id, state in states.items() if not isinstance(state, Init)]
    note_repairs(store, copied, why)


def offer_resets(store: CoordinatingStore, of: Extent = ONE) -> None:
    """Note that this process, which has just started its pipeline, follows requests."""
    store.publish_status(of.offer, store.get_status(of.runner) or {})


def are_resets_offered(store: CoordinatingStore, of: Extent = ONE) -> bool:
    """Whether the process that runs the pipeline follows requests.

    One that runs several destinations follows those for each of them, too.
    """
    runner = store.get_status(of.runner)
    return bool(runner) and runner == store.get_status(of.offer) and store.is_leased(of.lease)


def request_reset(
    store: CoordinatingStore, of: Extent = ONE, *, timeout_s: float = 180.0
) -> list[str] | None:
    """Ask the running process for a reset and wait until it is done.

    Returns:
        The names of the dropped slots; None where nothing was done in time, and the request was
        taken back.
    """
    name = str(uuid.uuid4())
    store.put_note(of.request, {"id": name, "asked_at": time.time()})
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            answer = store.get_note(of.request) or {}
            if answer.get("id") == name and "dropped" in answer:
                return list(answer["dropped"])
            time.sleep(_POLL_S)
        return None
    finally:
        if "dropped" not in (store.get_note(of.request) or {}):
            store.put_note(of.request, {})


def is_reset_wanted(store: CoordinatingStore, of: Extent = ONE) -> bool:
    """Whether a request waits to be followed."""
    request = store.get_note(of.request) or {}
    return "asked_at" in request and time.time() - float(request["asked_at"]) < _EXPIRES_S


def answer_request(store: CoordinatingStore, dropped: Sequence[str], of: Extent = ONE) -> None:
    """Tell who asked that it is done, and which slots were dropped."""
    request = store.get_note(of.request) or {}
    store.put_note(of.request, {"id": request.get("id"), "dropped": list(dropped)})


def follow_request(
    config: PipelineConfig,
    store: CoordinatingStore,
    stores: Mapping[str, CoordinatingStore] | None = None,
) -> None:
    """Reset the pipeline, which this process does not run now, and answer the request.

    Args:
        stores: of a pipeline with several destinations, those of the pipelines to each.

    Raises:
        PipelineInUse, SlotInUse: as `reset_pipeline`; the request stays.
    """
    control = SourceControl(config.source, application_name="etl_dagster reset")
    with contextlib.closing(control):
        if stores is None:
            answer_request(store, reset_pipeline(config, store, control))
        else:
            answer_request(store, reset_several(config, stores, control), ALL)
