"""The checks of a pipeline as a whole, on one asset: one event each, however many tables it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dagster import MetadataValue

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.checks.check_names import (
    LAG,
    PIPELINE_CHECKS,
    SLOT,
    STATE,
    WAL,
)
from etl_dagster.integrations.dagster.checks.lag import LagVerdict, judge_lag, judge_waiting
from etl_dagster.integrations.dagster.checks.slot_look import SlotLook
from etl_dagster.integrations.dagster.findings import Finding, not_looked
from etl_dagster.integrations.dagster.phrases import as_of, with_solution
from etl_dagster.integrations.dagster.thresholds import CheckThresholds
from etl_dagster.runtime.showing.status import PipelineStatus
from etl_dagster.words import human_bytes, names


def judge_pipeline(
    status: PipelineStatus | None,
    stopped: LagVerdict | None,
    look: SlotLook | EtlError,
    thresholds: CheckThresholds,
) -> Mapping[str, Finding]:
    """The outcome of each of the checks.

    Args:
        status: the last one that the replicator has published.
        stopped: the verdict if nothing streams. Then nothing passes.
        look: what was found out about the slots, or why that was not possible.
    """
    found = {LAG: _lag(status, thresholds)}
    if isinstance(look, EtlError):
        found |= dict.fromkeys((WAL, SLOT, STATE), not_looked("Not known", look))
    else:
        found |= {
            WAL: wal_retained(look, thresholds),
            SLOT: slot_health(
                look, is_streaming=status is not None and status.phase == "streaming"
            ),
            STATE: state_matches_slot(look, thresholds),
        }
    if stopped is not None:
        found = {name: _stopped(each, stopped, name) for name, each in found.items()}
    return found


def judge_stopped(stopped: LagVerdict) -> Mapping[str, Finding]:
    """The outcome of each check if nothing streams, and nothing else was examined."""
    return dict.fromkeys(PIPELINE_CHECKS, _of(stopped))


def _stopped(found: Finding, stopped: LagVerdict, name: str) -> Finding:
    """What a check found, with the fact that nothing streams.

    A severe finding, such as a lost slot, stays as it is: it matters more.
    """
    if name == LAG or not found.facts:
        return _of(stopped)
    if found.is_severe:
        return found
    return replace(_of(stopped), words=f"{stopped.words}\n\n{found.words}", facts=dict(found.facts))


def _of(verdict: LagVerdict) -> Finding:
    return Finding(
        verdict.passed, verdict.words, verdict.is_severe, dict(verdict.facts), verdict.kind
    )


# -- lag -------------------------------------------------------------------------------------------


def _lag(status: PipelineStatus | None, thresholds: CheckThresholds) -> Finding:
    if status is None:
        return Finding(False, "The pipeline has not reported its position yet.", kind="unknown")
    verdict = judge_waiting(status) or judge_lag(status, thresholds)
    if verdict is not None:
        return _of(verdict)
    words = (
        f"Changes become durable in time: the oldest waits for {status.lag_seconds:.1f} s, as of "
        f"{as_of(status.at)}."
    )
    facts: dict[str, Any] = {
        "lag_seconds": float(status.lag_seconds),
        "lag_bytes": status.lag_bytes,
        "confirmed_lsn": status.confirmed_lsn,
        "as_of": MetadataValue.timestamp(status.at),
    }
    if status.latency_seconds is not None:
        facts["latency_seconds"] = float(status.latency_seconds)
    return Finding(True, words, facts=facts, kind="in time")


# -- retained WAL ----------------------------------------------------------------------------------


def wal_retained(look: SlotLook, thresholds: CheckThresholds) -> Finding:
    """Whether the WAL that the source keeps for the slot is past one of the bounds."""
    wal = look.wal
    if wal is None:
        return Finding(False, f"There is no slot {look.name!r}.", kind="no slot")
    warn = thresholds.wal_warn_bytes
    warn = wal.warned_above_bytes if warn is None else warn
    error = thresholds.wal_error_bytes
    if error is None:
        error = 2 * warn
        if wal.limit_bytes is not None:
            error = max(min(error, wal.limit_bytes * 9 // 10), warn)
    facts: dict[str, Any] = {
        "retained_wal_bytes": wal.retained_bytes,
        "warns_above_bytes": warn,
        "fails_above_bytes": error,
    }
    if wal.limit_bytes is not None:
        facts["max_slot_wal_keep_size_bytes"] = wal.limit_bytes
    kept = f"The source keeps {human_bytes(wal.retained_bytes)} of WAL for slot {wal.slot_name!r}"
    for bound, is_severe in ((error, True), (warn, False)):
        if wal.retained_bytes > bound:
            end = (
                "max_slot_wal_keep_size is unlimited, so it may grow until the disk is full"
                if wal.limit_bytes is None
                else f"past {human_bytes(wal.limit_bytes)} the slot is lost"
            )
            words = with_solution(f"{kept}, more than {human_bytes(bound)}; {end}", wal.solution)
            return Finding(False, words, is_severe, facts, "too much")
    words = f"{kept}; the check warns above {human_bytes(warn)}."
    return Finding(True, words, facts=facts, kind="little")


# -- the slot --------------------------------------------------------------------------------------


def slot_health(look: SlotLook, *, is_streaming: bool) -> Finding:
    """Whether the slots exist, can be read, and are being read."""
    from etl_dagster.source.slots import require_usable

    slot = look.slot
    if slot is None:
        is_needed = look.problem is not None
        words = f"There is no slot {look.name!r}."
        if look.problem is not None:
            words = with_solution(look.problem.reason, look.problem.solution)
        return Finding(False, words, is_needed, {"slot": look.name}, "no slot")
    facts: dict[str, Any] = {
        "slot": slot.name,
        "wal_status": slot.wal_status or "unknown",
        "active": slot.active,
        "confirmed_lsn": str(slot.confirmed_flush_lsn),
        "restart_lsn": str(slot.restart_lsn),
        "slots_of_copies": len(look.copying),
    }
    try:
        require_usable(slot)
    except EtlError as error:
        words = with_solution(error.reason, error.solution)
        return Finding(False, words, True, facts, "not usable")
    if slot.wal_status == "unreserved":
        words = with_solution(
            f"slot {slot.name!r} is about to be lost: the server's next checkpoint may remove WAL "
            "that the slot needs",
            "Raise max_slot_wal_keep_size on the source and reload its configuration; then find "
            "out what holds up the pipeline.",
        )
        return Finding(False, words, True, facts, "unreserved")
    if lost := [each.name for each in look.copying if each.is_lost]:
        words = with_solution(
            f"slots of copies are lost: {names(lost, at_most=3)}",
            "Raise max_slot_wal_keep_size on the source. No other action is needed: these tables "
            "are copied again.",
        )
        return Finding(False, words, False, facts, f"lost: {','.join(sorted(lost))}")
    if look.is_run and is_streaming and not slot.active and not slot.is_unfinished:
        words = f"A process runs the pipeline, but does not read its slot {slot.name!r}."
        return Finding(False, words, False, facts, "not read")
    if look.wants_failover and not slot.is_failover:
        words = with_solution(
            f"source.failover is set, but standbys don't keep slot {slot.name!r}",
            "Start the pipeline again: it alters the slot, from PostgreSQL 17 on.",
        )
        return Finding(False, words, False, facts, "no failover")
    return Finding(True, f"Slot {slot.name!r} is {slot.wal_status}.", facts=facts, kind="healthy")


# -- the store's position and the slot's -----------------------------------------------------------


def state_matches_slot(look: SlotLook, thresholds: CheckThresholds) -> Finding:
    """Whether the stream would continue exactly where the destination is."""
    confirmed = None if look.slot is None else look.slot.confirmed_flush_lsn
    facts: dict[str, Any] = {"slot": look.name}
    if confirmed is not None:
        facts["confirmed_lsn"] = str(confirmed)
    if look.progress is not None:
        facts["durable_lsn"] = str(look.progress)
    if look.problem is not None:
        words = with_solution(look.problem.reason, look.problem.solution)
        return Finding(False, words, True, facts, type(look.problem).__name__)
    if confirmed is None or look.progress is None:
        return Finding(False, "The pipeline has not started to stream.", False, facts, "not begun")
    behind = look.progress.offset - confirmed.offset
    facts["slot_behind_bytes"] = behind
    if behind > thresholds.slot_behind_warn_bytes:
        most = thresholds.slot_behind_error_bytes
        words = with_solution(
            f"slot {look.name!r} is {human_bytes(behind)} behind what is durable at the "
            "destination: the source keeps WAL that is not needed",
            "Nothing is lost. If it stays so, restart the pipeline: it confirms what is durable.",
        )
        return Finding(False, words, most is not None and behind > most, facts, "behind")
    if look.leftover:
        words = with_solution(
            "slots of copies of tables that the pipeline doesn't have keep WAL: "
            f"{names(look.leftover, at_most=3)}",
            "Drop them: select pg_drop_replication_slot('NAME').",
        )
        facts["leftover"] = list(look.leftover)
        return Finding(False, words, False, facts, f"leftover: {','.join(look.leftover)}")
    words = f"Everything before {look.progress} is durable, and the slot is at {confirmed}."
    return Finding(True, words, facts=facts, kind="match")
