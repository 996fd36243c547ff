"""Has the rows replaced that differ from the source's, and waits for it, inside a step."""

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


@dataclass
class Repaired:
    """What a run of the repair job found and did."""

    differing: list[ComparedTable] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    #: Tables of which nothing is known, also where that is all right as they are configured.
    not_compared: list[str] = field(default_factory=list)
    #: By table, of the repairs that were waited for.
    outcomes: dict[str, RepairOutcome] = field(default_factory=dict)
    #: Repairs that were asked for and not seen to end.
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
        """For the step's metadata."""
        facts: dict[str, Any] = {
            "differing": [each.name for each in self.differing],
            "unsettled": self.unsettled,
            "not_compared": self.not_compared,
            "not_waited_for": self.left,
        }
        if self.differing:
            rows = [_record(each, self.outcomes.get(each.name)) for each in self.differing]
            facts["repairs"] = MetadataValue.table(rows)
        if len(self.differing) == 1:
            # What was replaced, where that is known: the comparison came a little before.
            [only] = self.differing
            outcome = self.outcomes.get(only.name)
            found = outcome.ranges if outcome is not None and outcome.by == "ranges" else ()
            facts |= range_facts(found or (only.found.ranges if only.found is not None else ()))
        return facts


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
    """Compare tables, have those repaired that differ, and wait until they are.

    Each repair is asked for as soon as its table was compared. An interrupted step leaves the
    repairs to the pipeline. The run ends as `etl-dagster repair` does: as failed where a table was
    left, and where a dry run finds that one differs.

    Args:
        names: ``schema.table`` of each; None for all.
        wait_s: for this long at most; 0: not at all.
        tell: called with a line about each table.
        compare: what compares them.

    Raises:
        EtlError: nothing can be compared.
    """
    done = Repaired()
    requests: dict[TableId, str] = {}
    name_of: dict[TableId, str] = {}
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
            else:
                with resource.get_store() as store:
                    ask_for_copies(store, [compared.table_id])
                    requests |= request_repairs(store, [compared.table_id])
                name_of[compared.table_id] = compared.name
        elif compared.found is None:
            done.not_compared.append(compared.name)
        elif not compared.is_equal:
            done.unsettled.append(compared.name)
    if requests:
        with resource.get_store() as store:
            _wait(store, requests, name_of, done, wait_s=wait_s)
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


def _wait(
    store: CoordinatingStore,
    requests: Mapping[TableId, str],
    name_of: Mapping[TableId, str],
    done: Repaired,
    *,
    wait_s: float,
) -> None:
    """Fills in what became of the repairs."""
    failure: EtlError | None = None
    failed: dict[TableId, EtlError] = {}
    stop = threading.Event()
    outcomes: Mapping[TableId, RepairOutcome] = {}
    if wait_s > 0:
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
            outcomes = waiting.result()
        except Stopped:
            failure = InvalidState(
                f"its repair took longer than {wait_s:.0f} s and continues in the pipeline",
                solution="See `etl-dagster status`. Give the job a longer wait_s, or 0 to not "
                "wait.",
            )
        except EtlError as error:
            failure = error
    for table_id, request_id in requests.items():
        outcome = outcomes.get(table_id) or repair_outcome(store, table_id, request_id)
        if outcome is None:
            done.left.append(name_of[table_id])
            if (why := failed.get(table_id, failure)) is not None:
                done.failures[name_of[table_id]] = why
        else:
            done.outcomes[name_of[table_id]] = outcome
