"""Copying everything again: by the caller, or by the process that runs the pipeline when asked.

A replicator is kept alive by Dagster's sensor, so it can't simply be stopped for a reset. It looks
for requests in the state store, ends its pipeline, resets it and starts it again.
"""

from __future__ import annotations

import contextlib
import time
import uuid

from etl_dagster.config import PipelineConfig
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.runner import RUNNER, in_use
from etl_dagster.runtime.slot import drop_pipeline_slots
from etl_dagster.source.control import SourceControl

_REQUEST, _OFFER = "reset", "reset offer"
_POLL_S = 0.5
#: The request of a command that was killed while it waited is not followed any more.
_EXPIRES_S = 600.0


def reset_pipeline(
    config: PipelineConfig, store: CoordinatingStore, control: SourceControl
) -> list[str]:
    """Have every table copied from the beginning, and drop the slots; returns their names.

    Raises:
        PipelineInUse: a process runs the pipeline.
        SlotInUse: a copy under way still reads its slot. A second reset drops what is left.
    """
    lease = store.acquire_lease("apply")
    if lease is None:
        raise in_use(store, config.pipeline, "a process")
    try:
        # In this order: should it end in between, a second reset finds the rest.
        store.reset_for_resync()
        return drop_pipeline_slots(control, config)
    finally:
        lease.release()


def offer_resets(store: CoordinatingStore) -> None:
    """Note that this process, which has just started its pipeline, follows requests."""
    store.publish_status(_OFFER, store.get_status(RUNNER) or {})


def are_resets_offered(store: CoordinatingStore) -> bool:
    """Whether the process that runs the pipeline follows requests."""
    runner = store.get_status(RUNNER)
    return bool(runner) and runner == store.get_status(_OFFER) and store.is_leased("apply")


def request_reset(store: CoordinatingStore, *, timeout_s: float = 180.0) -> list[str] | None:
    """Ask the running process for a reset and wait until it is done.

    Returns:
        The names of the dropped slots; None where nothing was done in time, and the request was
        taken back.
    """
    name = str(uuid.uuid4())
    store.publish_status(_REQUEST, {"id": name, "asked_at": time.time()})
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            answer = store.get_status(_REQUEST) or {}
            if answer.get("id") == name and "dropped" in answer:
                return list(answer["dropped"])
            time.sleep(_POLL_S)
        return None
    finally:
        if "dropped" not in (store.get_status(_REQUEST) or {}):
            store.publish_status(_REQUEST, {})


def is_reset_wanted(store: CoordinatingStore) -> bool:
    """Whether a request waits to be followed."""
    request = store.get_status(_REQUEST) or {}
    return "asked_at" in request and time.time() - float(request["asked_at"]) < _EXPIRES_S


def follow_request(config: PipelineConfig, store: CoordinatingStore) -> None:
    """Reset the pipeline, which this process does not run now, and answer the request.

    Raises:
        PipelineInUse, SlotInUse: as `reset_pipeline`; the request stays.
    """
    request = store.get_status(_REQUEST) or {}
    control = SourceControl(config.source, application_name="etl_dagster reset")
    with contextlib.closing(control):
        dropped = reset_pipeline(config, store, control)
    store.publish_status(_REQUEST, {"id": request.get("id"), "dropped": dropped})
