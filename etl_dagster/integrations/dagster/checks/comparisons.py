"""Compares tables with the source's inside a step, and describes the result for Dagster."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from dagster import MetadataValue, TableColumn, TableRecord, TableSchema

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, InvalidState
from etl_dagster.integrations.dagster.findings import Finding
from etl_dagster.integrations.dagster.outcome import interruptibly
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.pipeline_parts import PipelineParts
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore, KnowsPipeline
from etl_dagster.runtime.comparing.comparison import Comparison
from etl_dagster.runtime.comparing.eligible import Eligible, require_reader
from etl_dagster.runtime.comparing.left import why_left
from etl_dagster.runtime.comparing.sums import RANGES
from etl_dagster.runtime.comparing.tables import compare_tables as compare
from etl_dagster.runtime.repair_requests import RangeDifference
from etl_dagster.runtime.table_ids import find_table_ids

#: Dagster keeps every event for good, and many differing rows are spread over all 256 ranges.
_RANGES_SHOWN = 50
_RANGE_COLUMNS = TableSchema(
    [TableColumn(name, "int") for name in ("range", "missing", "extra", "changed")]
)


@dataclass(frozen=True)
class ComparedTable:
    """The outcome of the comparison of one table."""

    name: str
    table_id: TableId
    #: None if it was not compared, for the reason in `words`.
    found: Comparison | None
    words: str
    #: Why it isn't known whether its rows are equal, if that counts as a failure; see `why_left`.
    left: EtlError | None = None

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
        } | range_facts(found.ranges)

    @property
    def finding(self) -> Finding:
        """The outcome of the check: an error if rows differ; a warning if they weren't compared."""
        return Finding(self.is_equal, self.words, is_severe=self.is_different, facts=self.facts)


def range_facts(ranges: Collection[RangeDifference]) -> dict[str, Any]:
    """The ranges of keys in which rows differ, with their numbers; empty if no rows differ."""
    if not ranges:
        return {}
    shown = [
        TableRecord(
            {
                "range": each.number,
                "missing": each.missing,
                "extra": each.extra,
                "changed": each.changed,
            }
        )
        for each in list(ranges)[:_RANGES_SHOWN]
    ]
    return {
        "ranges_differing": len(ranges),
        "ranges_in_all": RANGES,
        "ranges": MetadataValue.table(shown, schema=_RANGE_COLUMNS),
    }


@dataclass(frozen=True)
class Opened:
    """What a comparison reads."""

    config: PipelineConfig
    store: CoordinatingStore
    #: Not started, and not the one that the pipeline writes.
    destination: Destination

    def table_ids(
        self, names: Collection[str] | None, *, skips_unknown: bool = False
    ) -> Mapping[str, TableId]:
        """The IDs of tables, by name.

        Args:
            names: ``schema.table`` of each; None for all.
            skips_unknown: leave out tables that the pipeline doesn't have.

        Raises:
            InvalidState: the pipeline has no such table.
        """
        known = find_table_ids(self.config, self.store)
        if names is None:
            return known
        missing = sorted(set(names) - known.keys())
        if missing and not skips_unknown:
            raise InvalidState(
                f"the pipeline has no table {', '.join(missing)}",
                solution="Write each as schema.table.",
            )
        return {name: known[name] for name in names if name in known}


@contextlib.contextmanager
def opened(resource: PipelineParts) -> Iterator[Opened]:
    """Open what a comparison reads.

    Raises:
        InvalidState: the pipeline has never run.
        EtlError: the store can't be reached.
    """
    config = resource.load_config()
    with resource.get_store() as store:
        if isinstance(store, KnowsPipeline) and not store.knows_pipeline():
            raise InvalidState(
                f"the pipeline {config.pipeline!r} has never run",
                solution="Start it: tables are compared while it runs.",
            )
        destination = resource.get_destination()
        try:
            yield Opened(config, store, destination)
        finally:
            destination.shutdown()


def compare_tables(
    resource: PipelineParts, names: Collection[str] | None = None, *, skips_unknown: bool = False
) -> Iterator[ComparedTable]:
    """Compare tables one after the other, while the pipeline runs; each is read as a whole.

    If the step is interrupted, the comparison under way stops. If a table can't be compared, the
    others still are.

    Args:
        names: ``schema.table`` of each; None for all.
        skips_unknown: leave out tables that the pipeline doesn't have.

    Raises:
        NotOffered: the destination's rows can't be read back.
        InvalidState: the pipeline has no such table, or has never run.
        EtlError: source or store can't be asked.
    """
    with opened(resource) as parts:
        require_reader(parts.config, parts.destination)
        is_named = names is not None
        for name, table_id in parts.table_ids(names, skips_unknown=skips_unknown).items():
            try:
                found = interruptibly(partial(_compare, parts, {name: table_id}))
            except EtlError as error:
                words = with_solution(f"Not compared: {error.reason}", error.solution)
                yield ComparedTable(name, table_id, None, words, error)
            else:
                for each, comparison in found:
                    left = why_left(each, comparison, is_named=is_named)
                    words = _words(each, comparison)
                    yield ComparedTable(name, table_id, comparison, words, left)


def _compare(
    parts: Opened, wanted: Mapping[str, TableId], stop: threading.Event
) -> list[tuple[Eligible, Comparison | None]]:
    return list(compare(parts.config, parts.store, parts.destination, wanted, stop=stop))


def _words(table: Eligible, found: Comparison | None) -> str:
    if found is None:
        return f"Not compared: {table.why_not}."
    if found.result == "unsettled":
        return f"Not settled: {found.reason}."
    if found.result == "equal":
        return f"The same {found.source_rows:,} rows on both sides, as of {found.lsn}."
    least = "at least " if found.has_more else ""
    return with_solution(
        f"The rows differ, as of {found.lsn}: {least}{found.missing:,} missing, "
        f"{found.extra:,} too many, {found.changed:,} with other values; in {len(found.ranges)} "
        f"of {RANGES} ranges of keys",
        "Run the pipeline's repair job, or `etl-dagster repair`, which replaces these rows.",
    )
