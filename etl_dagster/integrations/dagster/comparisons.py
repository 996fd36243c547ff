"""Compares tables with the source's inside a step; what it found, as Dagster shows it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dagster import AssetCheckResult, AssetCheckSeverity, AssetKey

from etl_dagster.errors import EtlError, InvalidState
from etl_dagster.integrations.dagster.outcome import Outcome
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.pipeline_parts import PipelineParts
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import KnowsPipeline
from etl_dagster.runtime.comparing.comparison import Comparison, TableComparison
from etl_dagster.runtime.comparing.eligible import find_eligible, require_reader
from etl_dagster.runtime.table_ids import find_table_ids
from etl_dagster.source.control import SourceControl

_POLL_S, _STOP_S = 0.2, 60.0


@dataclass(frozen=True)
class ComparedTable:
    """What became of one table."""

    name: str
    table_id: TableId
    #: None where it was not compared, for the reason in `words`.
    found: Comparison | None
    words: str

    @property
    def is_equal(self) -> bool:
        return self.found is not None and self.found.result == "equal"

    @property
    def is_different(self) -> bool:
        return self.found is not None and self.found.result == "different"

    @property
    def facts(self) -> dict[str, Any]:
        """For an event's metadata."""
        found = self.found
        if found is None:
            return {"result": "not compared"}
        return {
            "result": found.result,
            "lsn": str(found.lsn),
            "source_rows": found.source_rows,
            "destination_rows": found.destination_rows,
            "rows_missing": found.missing,
            "rows_extra": found.extra,
            "rows_changed": found.changed,
            "rows_unjudged": found.unjudged,
        }

    def result(self, check_name: str, key: AssetKey) -> AssetCheckResult:
        """The outcome as a check's: an error where rows differ, else a warning."""
        severity = AssetCheckSeverity.ERROR if self.is_different else AssetCheckSeverity.WARN
        return AssetCheckResult(
            asset_key=key,
            check_name=check_name,
            passed=self.is_equal,
            severity=severity,
            description=self.words,
            metadata=self.facts,
        )


def compare_tables(
    resource: PipelineParts, names: Collection[str] | None = None
) -> Iterator[ComparedTable]:
    """Compare tables one after the other, while the pipeline runs; each is read as a whole.

    An interrupted step stops the comparison under way.

    Args:
        names: ``schema.table`` of each; None for all.

    Raises:
        NotOffered: the destination's rows can't be read back.
        EtlError: source, store or destination can't be asked.
    """
    config = resource.load_config()
    with contextlib.ExitStack() as ending:
        store = ending.enter_context(resource.get_store())
        if isinstance(store, KnowsPipeline) and not store.knows_pipeline():
            raise InvalidState(
                f"the pipeline {config.pipeline!r} has never run",
                solution="Start it: tables are compared while it runs.",
            )
        destination = resource.get_destination()
        ending.callback(destination.shutdown)
        reader = require_reader(config, destination)
        name = f"etl_dagster repair {config.pipeline}"
        control = SourceControl(config.source, application_name=name)
        ending.enter_context(contextlib.closing(control))
        wanted = _wanted(find_table_ids(config, store), names)
        for each in find_eligible(config, store, control, wanted):
            if each.table is None:
                words = f"Not compared: {each.why_not}."
                yield ComparedTable(each.name, each.table_id, None, words)
                continue
            stop = threading.Event()
            comparison = TableComparison(config, store, control, reader, each.table, stop=stop)
            try:
                found = _interruptibly(comparison, stop)
            except EtlError as error:
                words = with_solution(f"Not compared: {error.reason}", error.solution)
                yield ComparedTable(each.name, each.table_id, None, words)
            else:
                yield ComparedTable(each.name, each.table_id, found, _words(found))


def _wanted(known: Mapping[str, TableId], names: Collection[str] | None) -> Mapping[str, TableId]:
    if names is None:
        return known
    if missing := sorted(set(names) - known.keys()):
        raise InvalidState(
            f"the pipeline has no table {', '.join(missing)}",
            solution="Write each as schema.table.",
        )
    return {name: known[name] for name in names}


def _interruptibly(comparison: TableComparison, stop: threading.Event) -> Comparison:
    outcome = Outcome(comparison.run)
    try:
        while not outcome.wait(_POLL_S):
            pass
    except BaseException:
        stop.set()
        outcome.wait(_STOP_S)
        raise
    return outcome.result()


def _words(found: Comparison) -> str:
    if found.result == "unsettled":
        return f"Not settled: {found.reason}."
    if found.result == "equal":
        return f"The same {found.source_rows:,} rows on both sides, as of {found.lsn}."
    least = "at least " if found.has_more else ""
    return with_solution(
        f"The rows differ, as of {found.lsn}: {least}{found.missing:,} missing, "
        f"{found.extra:,} too many, {found.changed:,} with other values",
        "Run the pipeline's repair job, or `etl-dagster repair`, which copies the table again.",
    )
