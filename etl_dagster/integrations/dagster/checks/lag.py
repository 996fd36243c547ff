"""Whether a table is in step with its source: the check `in_step_with_source`.

It is judged from the last status of the replicator and from the age of that status, so that
nothing passes for longer than `STALE_S` after the stream has ended.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dagster import AssetCheckEvaluation, AssetCheckResult, AssetKey, MetadataValue

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.between_ticks import kept_status
from etl_dagster.integrations.dagster.checks.check_names import LAG_CHECK
from etl_dagster.integrations.dagster.findings import Finding
from etl_dagster.integrations.dagster.phrases import as_of, with_solution
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds
from etl_dagster.model.states import Errored, TableState, state_name
from etl_dagster.model.stores import KnowsPipeline
from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus
from etl_dagster.runtime.showing.stopped import retry_at, what_to_do, where_it_stopped
from etl_dagster.words import human_bytes

#: A replicator publishes its status every 5 s; one that is this old says nothing about now.
STALE_S = 60.0
#: States in which a table has its rows, but not the changes since then, as after a `retry`.
CATCHING_UP = ("finished_copy", "sync_wait", "catchup")
#: How the kind of a verdict begins if the stream has ended.
_DEAD = "dead: "


@dataclass(frozen=True)
class LagVerdict:
    """The outcome of the check for one table."""

    passed: bool
    #: Whether the table's stream has ended, rather than being late only.
    is_severe: bool
    #: Two verdicts of one kind say the same, apart from numbers and times.
    kind: str
    words: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> tuple[bool, bool, str]:
        return self.passed, self.is_severe, self.kind

    @property
    def is_dead(self) -> bool:
        """Whether nothing streams, whatever the table."""
        return self.kind.startswith(_DEAD)

    def evaluation(self, key: AssetKey) -> AssetCheckEvaluation:
        """The verdict as an event outside of runs."""
        return self._finding.evaluation(LAG_CHECK, key)

    def result(self, key: AssetKey) -> AssetCheckResult:
        """The verdict as a step returns it."""
        return self._finding.result(LAG_CHECK, key)

    @property
    def _finding(self) -> Finding:
        return Finding(self.passed, self.words, self.is_severe, self.facts, self.kind)


def dead(reason: str, solution: str) -> LagVerdict:
    """The verdict on every table of a pipeline that does not stream."""
    return LagVerdict(False, True, f"{_DEAD}{reason}", with_solution(reason, solution))


def waits(words: str) -> LagVerdict:
    """The verdict on a table whose copy ended early and isn't requested again for now."""
    return LagVerdict(False, False, "waits", words)


def judge(
    status: PipelineStatus,
    table: TableStatus | None,
    *,
    now: float,
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
) -> LagVerdict:
    """The verdict on a table.

    Args:
        table: of the same status; None if the pipeline has not seen the table.
        now: seconds since 1970-01-01 UTC, as in `PipelineStatus.at`.
    """
    stopped = judge_dead(status, now=now)
    if stopped is not None:
        return stopped
    at, facts = as_of(status.at), _facts(status)
    if table is not None and table.state == "errored":
        error = table.error or "it stopped"
        where = where_it_stopped(table.stopped_since, table.stopped_lsn, table.wal_kept_bytes)
        words = with_solution(f"{error} ({where})" if where else error, table.solution)
        if table.retry_at is not None:
            return LagVerdict(False, False, f"retried: {error}", words, facts)
        return LagVerdict(False, True, f"errored: {error}", words, facts)
    waiting = judge_waiting(status)
    if waiting is not None:
        return waiting
    if table is None:
        words = "The pipeline has not seen this table. Is it in the publication?"
        return LagVerdict(False, False, "unknown", words, facts)
    if table.state not in ("ready", "sync_done"):
        words = (
            f"Changes since its copy, or since it stopped, are being applied (state {table.state})"
            if table.state in CATCHING_UP
            else f"The table is being copied (state {table.state})"
        )
        words += f", as of {at}."
        return LagVerdict(False, False, "copied", words, facts)
    late = judge_lag(status, thresholds)
    if late is not None:
        return late
    retained = status.retained_wal_bytes
    most = status.wal_warned_above_bytes
    if retained is not None and most is not None and retained > most:
        words = (
            f"The source keeps {human_bytes(retained)} of WAL for the slot, more than "
            f"{human_bytes(most)}, as of {at}."
        )
        return LagVerdict(False, False, "wal", words, facts)
    words = f"Changes of the source become durable in time, as of {at}."
    return LagVerdict(True, False, "in step", words, facts)


def judge_dead(status: PipelineStatus, *, now: float) -> LagVerdict | None:
    """The verdict on every table if the stream has ended; else None."""
    at = as_of(status.at)
    turn_on = f"Turn on the sensor {status.pipeline}_replication, or look at its last tick."
    if now - status.at > STALE_S:
        return dead(f"Nothing streams: the replicator last reported at {at}", turn_on)
    if status.phase in ("failed", "stopping", "stopped"):
        did = "is stopping" if status.phase == "stopping" else status.phase
        reason = status.error or f"Nothing streams: the replicator {did}"
        return dead(reason, status.solution or turn_on)
    return None


def judge_waiting(status: PipelineStatus) -> LagVerdict | None:
    """The verdict on every table while the stream starts or is interrupted; else None."""
    facts = _facts(status)
    if status.phase == "retrying":
        words = with_solution(f"The stream is interrupted: {status.error}", status.solution)
        return LagVerdict(False, False, "retrying", words, facts)
    if status.phase == "starting":
        error = status.error or f"The replicator is starting, as of {as_of(status.at)}"
        return LagVerdict(False, False, "starting", with_solution(error, status.solution), facts)
    return None


def judge_lag(status: PipelineStatus, thresholds: CheckThresholds) -> LagVerdict | None:
    """The verdict on every streamed table if changes wait for too long; else None."""
    if status.lag_seconds <= thresholds.lag_warn_s:
        return None
    is_severe = status.lag_seconds > thresholds.lag_error_s
    bound = thresholds.lag_error_s if is_severe else thresholds.lag_warn_s
    words = (
        f"Changes wait for {status.lag_seconds:.0f} s to become durable, longer than {bound:g} s, "
        f"as of {as_of(status.at)}."
    )
    return LagVerdict(False, is_severe, "late", words, _facts(status))


def _facts(status: PipelineStatus) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "lag_seconds": float(status.lag_seconds),
        "lag_bytes": status.lag_bytes,
        "confirmed_lsn": status.confirmed_lsn,
        "as_of": MetadataValue.timestamp(status.at),
    }
    if status.latency_seconds is not None:
        facts["latency_seconds"] = float(status.latency_seconds)
    if status.retained_wal_bytes is not None:
        facts["retained_wal_bytes"] = status.retained_wal_bytes
    return facts


# -- in a step, without the sensor --------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """What the state store knows about a pipeline, whichever process runs it."""

    #: The last one that the replicator published; None before the first.
    status: PipelineStatus | None
    #: Whether a process runs the pipeline now, or the next tick of the sensor will.
    is_running: bool
    states: Mapping[int, TableState]

    def dead_verdict(self, pipeline: str) -> LagVerdict | None:
        """The verdict on every table if nothing streams; else None."""
        turn_on = f"Turn on the sensor {pipeline}_replication, or run `etl-dagster run`."
        if self.status is None:
            return dead("Nothing streams: the pipeline has never run", turn_on)
        if not self.is_running:
            at = as_of(self.status.at)
            reason = f"Nothing streams: no replicator runs; the last one reported at {at}"
            if self.status.error is not None:
                reason += f": {self.status.error}"
            return dead(reason, self.status.solution or turn_on)
        return judge_dead(self.status, now=time.time())

    def verdict(
        self, pipeline: str, name: str, thresholds: CheckThresholds = DEFAULT_THRESHOLDS
    ) -> LagVerdict:
        """The verdict on the table called `name`."""
        stopped = self.dead_verdict(pipeline)
        if stopped is not None or self.status is None:
            assert stopped is not None
            return stopped
        table = self.status.tables.get(name)
        if table is not None and table.table_id in self.states:
            table = _with_state(table, self.states[table.table_id])
        return judge(self.status, table, now=time.time(), thresholds=thresholds)


def published(resource: EtlResource) -> Published:
    """Read it from the state store.

    Raises:
        EtlError: the store can't be reached.
    """
    with resource.get_store() as store:
        if isinstance(store, KnowsPipeline) and not store.knows_pipeline():
            return Published(None, False, {})
        states, is_running = store.get_table_replication_states(), store.is_leased("apply")
        payload = store.get_status("apply")
        status = PipelineStatus.from_json(payload) if payload is not None else None
        # When a tick starts to stream, the status is still the one with which the last tick ended.
        has_ended = status is None or status.phase in ("stopping", "stopped")
        if (has_ended or not is_running) and (kept := kept_status(store)) is not None:
            return Published(kept, True, states)
        return Published(status, is_running, states)


def unknown(error: EtlError) -> LagVerdict:
    """The verdict if the state store can't be reached."""
    words = with_solution(f"The state of the pipeline is not known: {error.reason}", error.solution)
    return LagVerdict(False, True, "unknown", words)


def _with_state(table: TableStatus, state: TableState) -> TableStatus:
    """The table with the state from the store, which is newer than the published status."""
    if isinstance(state, Errored):
        return replace(
            table,
            state="errored",
            error=state.reason,
            solution=what_to_do(state, table.name),
            stopped_since=None if state.since is None else state.since.isoformat(),
            stopped_lsn=None if state.lsn is None else str(state.lsn),
            wal_kept_bytes=table.wal_kept_bytes if state.is_kept else None,
            retry_at=retry_at(state),
        )
    return replace(table, state=state_name(state), error=None, solution=None, retry_at=None)
