"""Compares tables in a step, has the rows that differ replaced, and waits for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dagster import MetadataValue, TableRecord

from etl_dagster.errors import EtlError, InvalidState, TablesLeft
from etl_dagster.integrations.dagster.checks.comparisons import (
    ComparedTable,
    compare_tables,
    range_facts,
)
from etl_dagster.integrations.dagster.outcome import Outcome
from etl_dagster.integrations.dagster.resources.pipeline_parts import PipelineParts
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.copying.pausing import ask_for_copies
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.repair_requests import (
    RepairOutcome,
    await_repairs,
    repair_outcome,
    request_repairs,
)

_POLL_S, _STOP_S = 0.2, 60.0
#: Dagster keeps every event for good; the counts next to the tables are complete.
_TABLES_SHOWN = 100


@dataclass
class Repaired:
    """What a run of the repair job found and did."""

    differing: list[ComparedTable] = field(default_factory=list)
    #: Tables whose rows changed all the time while they were compared.
    unsettled: list[ComparedTable] = field(default_factory=list)
    #: Tables of which nothing is known, also where that is all right as they are configured.
    not_compared: list[ComparedTable] = field(default_factory=list)
    #: By table, of the repairs that were waited for.
    outcomes: dict[str, RepairOutcome] = field(default_factory=dict)
    #: Repairs that could not be requested.
    not_requested: list[str] = field(default_factory=list)
    #: Repairs that were requested, but whose end this run did not see.
    left: list[str] = field(default_factory=list)
    #: Why the run fails, by table; empty where it doesn't.
    failures: dict[str, EtlError] = field(default_factory=dict)
    #: How many tables there were.
    tables: int = 0

    @property
    def failure(self) -> TablesLeft | None:
        """What the run ends with, once it has done what can be done."""
        return TablesLeft(self.failures, tables=self.tables) if self.failures else None

    @property
    def facts(self) -> dict[str, Any]:
        """For the step's metadata. Numbers and tables: Dagster hides lists behind a link."""
        facts: dict[str, Any] = {
            "tables": self.tables,
            "tables_equal": self.tables
            - len(self.differing)
            - len(self.unsettled)
            - len(self.not_compared),
            "tables_differing": len(self.differing),
        }
        if self.differing:
            shown = self.differing[:_TABLES_SHOWN]
            rows = [_record(each, self.outcomes.get(each.name)) for each in shown]
            facts["repairs"] = MetadataValue.table(rows)
        if without := self._without_result():
            facts["tables_without_result"] = len(without)
            facts["without_result"] = MetadataValue.table(without[:_TABLES_SHOWN])
        if len(self.differing) == 1:
            # What was replaced, where that is known: the comparison came a little before.
            [only] = self.differing
            outcome = self.outcomes.get(only.name)
            found = outcome.ranges if outcome is not None and outcome.by == "ranges" else ()
            facts |= range_facts(found or (only.found.ranges if only.found is not None else ()))
        return facts

    def _without_result(self) -> list[TableRecord]:
        """A record of each table that was neither found equal nor seen to be repaired."""
        why = {each.name: ("unsettled", each.words) for each in self.unsettled}
        why |= {each.name: ("not compared", each.words) for each in self.not_compared}
        requested = "its repair was requested and continues in the pipeline"
        why |= dict.fromkeys(self.not_requested, ("not requested", ""))
        why |= dict.fromkeys(self.left, ("not seen to end", requested))
        return [_record_without_result(*each, self.failures.get(each[0])) for each in why.items()]


def _record_without_result(
    name: str, why: tuple[str, str], failure: EtlError | None
) -> TableRecord:
    result, words = why
    reason = words.partition("\n\n")[0] if failure is None else failure.reason
    if reason.lower().startswith(f"{result}: "):
        reason = reason[len(result) + 2 :]
    solution = "" if failure is None else failure.solution
    return TableRecord(
        {"table": name, "result": result, "why": reason, "what to do": solution.replace("`", "'")}
    )


def _record(compared: ComparedTable, outcome: RepairOutcome | None) -> TableRecord:
    found = compared.found
    assert found is not None
    by = "" if outcome is None else outcome.by
    is_by_range = outcome is not None and outcome.by == "ranges"
    rows = outcome if outcome is not None and is_by_range else found
    return TableRecord(
        {
            "table": compared.name,
            "repaired by": by,
            "why a copy": (outcome.reason or "") if outcome is not None else "",
            "lsn": str(rows.lsn),
            "rows missing": rows.missing,
            "rows too many": rows.extra,
            "rows with other values": rows.changed,
            "ranges": ", ".join(str(each.number) for each in rows.ranges[:50]),
        }
    )


def repair(
    resource: PipelineParts,
    names: Collection[str] | None,
    *,
    dry_run: bool,
    wait_s: float,
    tell: Callable[[str], None],
    compare: Callable[
        [PipelineParts, Collection[str] | None], Iterable[ComparedTable]
    ] = compare_tables,
) -> Repaired:
    """Compare tables, have those that differ repaired, and wait for that.

    Each repair is requested as soon as its table was compared. If the step is interrupted, the
    pipeline completes the repairs. The run ends as `etl-dagster repair` does: as failed where a
    table was left, and where a dry run finds that one differs. If the state store is lost on the
    way, that is the failure of the tables whose repair it concerns.

    Args:
        names: ``schema.table`` of each; None for all.
        wait_s: how long to wait for the repairs, seconds; 0 to not wait.
        tell: called with a line about each table.
        compare: what compares them.

    Raises:
        EtlError: nothing can be compared.
    """
    done = Repaired()
    requests: dict[str, tuple[TableId, str]] = {}
    for compared in compare(resource, names):
        # Without the advice to run this job.
        words = compared.words.partition("\n\n")[0] if compared.is_different else compared.words
        tell(f"{compared.name}: {words}")
        done.tables += 1
        if compared.left is not None:
            done.failures[compared.name] = compared.left
        if compared.is_different:
            done.differing.append(compared)
            if dry_run:
                done.failures[compared.name] = InvalidState(
                    "its rows differ, and nothing was changed in a dry run",
                    solution="Run the job again without 'dry_run: true' to repair these tables.",
                )
                continue
            try:
                requests[compared.name] = compared.table_id, _request(resource, compared.table_id)
            except EtlError as error:
                done.not_requested.append(compared.name)
                done.failures[compared.name] = error
        elif compared.found is None:
            done.not_compared.append(compared)
        elif not compared.is_equal:
            done.unsettled.append(compared)
    if requests:
        _wait(resource, requests, done, wait_s=wait_s)
    for name, outcome in done.outcomes.items():
        tell(f"{name}: {outcome_words(outcome)}")
    return done


def outcome_words(outcome: RepairOutcome) -> str:
    """What became of a repair, for people."""
    if outcome.by == "copy":
        return f"copied as a whole, since {outcome.reason}"
    return (
        f"repaired as of {outcome.lsn}: {outcome.missing:,} rows added, {outcome.changed:,} "
        f"replaced, {outcome.extra:,} deleted; in {len(outcome.ranges)} ranges of keys"
    )


def _request(resource: PipelineParts, table_id: TableId) -> str:
    """Ask for the repair of a table; the ID of the request."""
    with resource.get_store() as store:
        ask_for_copies(store, [table_id])
        return request_repairs(store, [table_id])[table_id]


def _wait(
    resource: PipelineParts,
    requests: Mapping[str, tuple[TableId, str]],
    done: Repaired,
    *,
    wait_s: float,
) -> None:
    """Wait for the repairs, and note in `done` what became of them.

    Args:
        requests: by table, its ID and that of its request.
    """
    failure: EtlError | None = None
    failed: dict[TableId, EtlError] = {}
    try:
        with resource.get_store() as store:
            outcomes: Mapping[TableId, RepairOutcome] = {}
            if wait_s > 0:
                try:
                    outcomes = _await(store, dict(requests.values()), failed, wait_s)
                except EtlError as error:
                    failure = error
            for name, (table_id, request_id) in requests.items():
                outcome = outcomes.get(table_id) or repair_outcome(store, table_id, request_id)
                if outcome is not None:
                    done.outcomes[name] = outcome
    except EtlError as error:
        failure = failure or error
    for name, (table_id, _) in requests.items():
        if name in done.outcomes:
            continue
        done.left.append(name)
        if (why := failed.get(table_id, failure)) is not None:
            done.failures[name] = why


def _await(
    store: CoordinatingStore,
    requests: Mapping[TableId, str],
    failed: dict[TableId, EtlError],
    wait_s: float,
) -> Mapping[TableId, RepairOutcome]:
    """What became of each repair.

    Args:
        failed: takes the tables whose repair fails.

    Raises:
        InvalidState: no process runs the pipeline, or the repairs take longer than `wait_s`.
        EtlError: the state store can't be asked.
    """
    stop = threading.Event()
    waiting = Outcome(
        lambda: await_repairs(store, requests, stop=stop, on_failed=failed.__setitem__)
    )
    until = time.monotonic() + wait_s
    try:
        while not waiting.wait(_POLL_S) and time.monotonic() < until:
            pass
    finally:
        stop.set()
        waiting.wait(_STOP_S)
    try:
        return waiting.result()
    except Stopped:
        raise InvalidState(
            f"its repair took longer than {wait_s:.0f} s and continues in the pipeline",
            solution="See `etl-dagster status`. Give the job a longer wait_s, or 0 to not wait.",
        ) from None
