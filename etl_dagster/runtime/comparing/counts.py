"""Counts the rows of tables on both sides while they are streamed, without reading them.

A `Witness` shows the source as of an LSN C, where each table is counted. Once everything before C
is durable at the destination, its tables are counted, too, each as of some later position P that no
destination reports. The witness's slot has every change from C on that the destination can have; so
the source had, at P, as many rows as at C and a beginning of the table's changes since. All
beginnings together give the fewest and the most rows that it had meanwhile. A count at the
destination between these is not called wrong, and one outside is: no false difference, whatever
changes. Of a table that doesn't change, fewest and most are one number, and every difference is
found.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, TableRewritten
from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import (
    CountsRows,
    Destination,
    EstimatedCount,
    ReadsRows,
    offered,
)
from etl_dagster.model.events import DELETE, INSERT, TableChanges, TruncateEvent
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.protocol.batch import RawBatch
from etl_dagster.protocol.pgoutput import Relation
from etl_dagster.runtime.comparing.applied import wait_until_applied
from etl_dagster.runtime.comparing.eligible import Eligible, find_eligible, require_reader
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.progress_wanted import want_progress
from etl_dagster.shaping.columns import destination_schema
from etl_dagster.source.catalog import emit_marker
from etl_dagster.source.control import SourceControl
from etl_dagster.source.witness import Witness


@dataclass(frozen=True, slots=True)
class RowCounts:
    """How many rows one table has on each side."""

    #: The position of `source_rows`.
    lsn: Lsn
    source_rows: int
    destination_rows: int
    #: The fewest and the most rows that the source had while the destination was counted.
    fewest: int
    most: int

    @property
    def off(self) -> int:
        """How many rows the destination has too many; negative where they are missing."""
        if self.destination_rows > self.most:
            return self.destination_rows - self.most
        return min(self.destination_rows - self.fewest, 0)


@dataclass(frozen=True, slots=True)
class CountOutcome:
    """What became of counting one table."""

    name: str
    #: None where nothing can be said, for the reason in `why_not`.
    counts: RowCounts | None
    why_not: str | None = None


def count_tables(
    config: PipelineConfig,
    store: CoordinatingStore,
    destination: Destination,
    wanted: Mapping[str, TableId],
    *,
    stop: threading.Event,
) -> Iterator[CountOutcome]:
    """Count tables on both sides, at one position of the source, while the pipeline streams.

    Args:
        destination: not the one that the pipeline writes, but another object of its kind, which
            need not be started.
        wanted: tables by name, as `find_table_ids` gives them.

    Raises:
        NotOffered: the destination's rows can't be read back.
        Stopped: told to stop.
        EtlError: source, store or destination can't be asked, or nothing streams.
    """
    reader = require_reader(config, destination)
    control = SourceControl(config.source, application_name=f"etl_dagster count {config.pipeline}")
    with contextlib.closing(control):
        tables: list[Eligible] = []
        for each in find_eligible(config, store, control, wanted):
            why_not = each.why_not if each.table is None else _why_not(each.table.schema)
            if why_not is None:
                tables.append(each)
            else:
                yield CountOutcome(each.name, None, why_not)
        if not tables:
            return
        states = dict(store.get_table_replication_states())
        with contextlib.closing(Witness(config.source, config.pipeline)) as witness:
            here: dict[TableId, int] = {}
            for each in tables:
                assert each.table is not None
                schema = each.table.schema
                try:
                    here[each.table_id] = witness.count_rows(
                        schema.schema_name,
                        schema.table_name,
                        each.table.row_filter,
                        stop=stop,
                    )
                except EtlError as error:
                    if stop.is_set():
                        raise Stopped from None
                    yield CountOutcome(each.name, None, error.reason)
            # An idle stream would not get there by itself.
            control.ask("writing a marker", emit_marker)
            want_progress(store, witness.lsn)
            wait_until_applied(store, witness.lsn, stop=stop)
            schemas = {t.table_id: t.table.schema for t in tables if t.table is not None}
            there = _Destination(destination, reader, stop)
            found = {t: there.count(schemas[t]) for t in here}
            nets = {table_id: RowsSince(schemas[table_id]) for table_id in here}
            for batch in witness.changes():
                for net in nets.values():
                    net.add(batch, witness.lsn)
        store.load_table_replication_states()
        for each in tables:
            if each.table_id not in here:
                continue
            net, count = nets[each.table_id], found[each.table_id]
            if isinstance(count, str):
                yield CountOutcome(each.name, None, count)
            elif store.get_table_replication_state(each.table_id) != states[each.table_id]:
                yield CountOutcome(each.name, None, "it was copied while it was counted")
            elif net.why_unknown is not None:
                yield CountOutcome(each.name, None, net.why_unknown)
            else:
                rows = here[each.table_id]
                counts = RowCounts(witness.lsn, rows, count, rows + net.least, rows + net.most)
                yield CountOutcome(each.name, counts)


def _why_not(schema: TableSchema) -> str | None:
    if schema.shape is not None and schema.shape.needs_whole_rows:
        return "it has a condition or a hook, so that its rows must be read to be counted"
    return None


class _Destination:
    """Counts tables at the destination, exactly."""

    def __init__(self, destination: Destination, reader: ReadsRows, stop: threading.Event) -> None:
        self._counting = offered(destination, CountsRows)
        self._reader = reader
        self._stop = stop
        self._counts: Mapping[str, int] | EtlError | None = None

    def count(self, schema: TableSchema) -> int | str:
        """How many rows there are, or why that isn't known.

        Raises:
            Stopped: told to stop.
        """
        target = destination_schema(schema)
        if self._counts is None:
            self._counts = self._count_all()
        if isinstance(self._counts, EtlError):
            return self._counts.reason
        count = self._counts.get(target.name)
        if count is not None and not isinstance(count, EstimatedCount):
            return count
        try:
            return self._read(target)
        except EtlError as error:
            return error.reason

    def _count_all(self) -> Mapping[str, int] | EtlError:
        try:
            return {} if self._counting is None else self._counting.count_rows()
        except EtlError as error:
            return error

    def _read(self, target: TableSchema) -> int:
        count = 0
        with self._reader.read_rows(target) as batches:
            for batch in batches:
                if self._stop.is_set():
                    raise Stopped
                count += batch.num_rows
        return count


class RowsSince:
    """How many rows more or fewer one table had at any moment since the count."""

    def __init__(self, schema: TableSchema) -> None:
        self._schema = schema
        self._now = 0
        self.least = self.most = 0
        #: Why the table's changes say nothing about the number of its rows.
        self.why_unknown: str | None = None

    def add(self, batch: RawBatch, since: Lsn) -> None:
        """Take in a stretch of the stream."""
        if self.why_unknown is not None:
            return
        try:
            events = batch.decode(self._schema_of, {self._schema.id: since}, 0, self._altered)
            for step in events.tables.get(self._schema.id, ()):
                if isinstance(step, TableChanges):
                    self.count(step.ops)
                elif isinstance(step, TruncateEvent):
                    raise TableRewritten(f"{self._schema.name} was truncated while it was counted")
        except TableRewritten as error:
            self.why_unknown = error.reason

    def count(self, ops: npt.NDArray[np.uint8]) -> None:
        """Take in changes in their order, each by its operation."""
        if not len(ops):
            return
        sums = self._now + np.cumsum((ops == INSERT).astype(np.int64) - (ops == DELETE))
        self.least = min(self.least, int(sums.min()))
        self.most = max(self.most, int(sums.max()))
        self._now = int(sums[-1])

    def _schema_of(self, relation: Relation, commit_lsn: Lsn) -> TableSchema:
        names = tuple(column.name for column in relation.columns)
        if relation.id == self._schema.id and names != self._schema.column_names:
            raise self._altered_error()
        return self._schema

    def _altered(self, alteration: object, commit_lsn: Lsn, number: int) -> None:
        raise self._altered_error()

    def _altered_error(self) -> TableRewritten:
        return TableRewritten(f"{self._schema.name} was altered while it was counted")
