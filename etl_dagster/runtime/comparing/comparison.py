"""Compares a table at the destination with the source's, at one position, while it is streamed.

The source's rows come into this process as Arrow, through the same decoding and shaping as a copy,
and both sides are hashed by the same code: here, or by the destination's (`HashesRows`). So no two
databases have to print or to hash a value in the same way.

**One position.** A `Witness` shows the source as of an LSN C: every transaction whose commit record
begins before, and no other. The destination is read once everything before C is durable there, so
it has those transactions too, and perhaps later ones. The witness's slot has every later one that
the destination can have: a walsender sends nothing that isn't flushed, and the slot is read up to
the end of what is flushed, after the destination was read. Hence, of a key that no change in the
slot names, the destination held the same row during the whole of its reading, and must have held
the source's as of C.

- *No false difference*: a difference counts only if no change in the slot names its key.
- *None missed*: keys that differ and were changed meanwhile are not judged; they are compared again
  at a later position, some times. What is left after that is reported, and the table isn't called
  equal. A key that doesn't differ held the row that the source had as of C.

Where a change doesn't name a key (a truncate, an altered table, a condition or a hook that needs
the whole row), the table is compared again as a whole. A table without a key is a multiset of rows:
each row is its own key.

**Memory.** First, each side is a number and a sum of hashes for each of 2**18 buckets of keys.
Only the rows of buckets that differ are read again, as two hashes a row, and some millions at once.
What one transaction of the source changes meanwhile is held at once.

Values that the columns' types can't hold are null on both sides; their texts are not compared.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

import numpy as np

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import TableRewritten
from etl_dagster.lsn import LSN_ZERO, Lsn
from etl_dagster.model.destination import ReadsRows
from etl_dagster.model.states import Ready
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.clock import Clock, SystemClock
from etl_dagster.runtime.comparing.applied import wait_until_applied
from etl_dagster.runtime.comparing.changing import ChangingKeys
from etl_dagster.runtime.comparing.sides import Side, Sides
from etl_dagster.runtime.comparing.sums import Buckets, Details, slices
from etl_dagster.runtime.copy_source import PostgresSource
from etl_dagster.runtime.progress_wanted import want_progress
from etl_dagster.runtime.repair_requests import RangeDifference
from etl_dagster.source.catalog import PublishedTable, emit_marker
from etl_dagster.source.control import SourceControl
from etl_dagster.source.witness import Witness
from etl_dagster.values.digest import Hashes

_TRIES: Final = 4
#: Of both sides together, 16 bytes each.
_ROWS_AT_ONCE: Final = 4_000_000

Result: TypeAlias = Literal["equal", "different", "unsettled"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of comparing one table."""

    result: Result
    #: Of the last look.
    lsn: Lsn = LSN_ZERO
    source_rows: int = 0
    destination_rows: int = 0
    #: See `sums.Verdict`.
    missing: int = 0
    extra: int = 0
    changed: int = 0
    #: Whether there may be more such rows than were counted.
    has_more: bool = False
    #: How many keys could not be judged, since they were changed in each look.
    unjudged: int = 0
    #: Why it is unsettled.
    reason: str | None = None
    #: Of the `RANGES` that the table's keys are in, those in which rows differ.
    ranges: tuple[RangeDifference, ...] = ()
    #: Keys of some rows that differ, as texts by column; only where they were asked for.
    keys: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Looked:
    """One look at both sides."""

    comparison: Comparison
    unjudged: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))


class TableComparison:
    """Compares one table, which is streamed by another thread or process meanwhile.

    Args:
        destination: not the one that the pipeline writes, but another object of its kind.
        table: as it is published now, with the schema that the store has of it.
        on_rows: called with a side and how many of its rows were read since the last call.
        tries: how often to look, where rows are changed meanwhile.
        most_keys: of so many rows that differ, the keys are given, which may be secret.
        progress_timeout_s: how long the stream may take to get to where the comparison is.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: CoordinatingStore,
        control: SourceControl,
        destination: ReadsRows,
        table: PublishedTable,
        *,
        stop: threading.Event,
        on_rows: Callable[[Side, int], None] = lambda side, count: None,
        clock: Clock | None = None,
        tries: int = _TRIES,
        rows_at_once: int = _ROWS_AT_ONCE,
        most_keys: int = 0,
        progress_timeout_s: float = 300.0,
    ) -> None:
        self._config = config
        self._store = store
        self._control = control
        self._table = table
        self._stop = stop
        self._clock = clock or SystemClock()
        self._tries = tries
        self._rows_at_once = rows_at_once
        self._most_keys = most_keys
        self._timeout_s = progress_timeout_s
        self._sides = Sides(
            config,
            control,
            PostgresSource(config, table.schema.id),
            destination,
            table,
            stop=stop,
            on_rows=on_rows,
        )

    def run(self) -> Comparison:
        """Look until every key is judged, or often enough.

        Raises:
            Stopped: told to stop.
            EtlError: source, store or destination can't be read, or nothing streams.
        """
        only: Hashes | None = None
        looked: _Looked | None = None
        reason = ""
        for _ in range(self._tries):
            try:
                looked = self._look(only)
            except TableRewritten as error:
                reason = error.reason
                continue
            reason = ""
            if looked.comparison.result != "unsettled":
                return looked.comparison
            only = looked.unjudged
        if reason or looked is None:
            return Comparison("unsettled", reason=reason)
        count = len(looked.unjudged)
        rows = "1 row was" if count == 1 else f"{count:,} rows were"
        reason = f"{rows} changed whenever it was compared"
        return replace(looked.comparison, unjudged=count, reason=reason)

    # -- one look --------------------------------------------------------------------------------

    def _look(self, only: Hashes | None) -> _Looked:
        state = self._require_streamed()
        with contextlib.closing(Witness(self._config.source, self._config.pipeline)) as witness:
            # An idle stream would not get there by itself.
            self._control.ask("writing a marker", emit_marker)
            want_progress(self._store, witness.lsn)
            ours, theirs = Buckets(), Buckets()
            self._read_source(witness, ours.add)
            wait_until_applied(
                self._store,
                witness.lsn,
                stop=self._stop,
                clock=self._clock,
                timeout_s=self._timeout_s,
            )
            self._read_destination(theirs.add)
            found = Comparison("equal", witness.lsn, ours.row_count, theirs.row_count)
            changing = ChangingKeys(self._table.schema, self._sides.shaper, self._sides.hash_keys)
            unjudged: list[Hashes] = []
            parts = slices(ours.differing(theirs), ours, theirs, self._rows_at_once)
            for place, buckets in enumerate(parts):
                our_rows, their_rows = Details(buckets), Details(buckets)
                self._read_source(witness, our_rows.add)
                self._read_destination(their_rows.add)
                for batch in witness.changes():
                    changing.add(batch, witness.lsn)
                verdict = our_rows.compare(their_rows, changing.hashes, only)
                unjudged.append(verdict.unjudged)
                if verdict.missing or verdict.extra or verdict.changed:
                    found = replace(
                        found,
                        result="different",
                        missing=verdict.missing,
                        extra=verdict.extra,
                        changed=verdict.changed,
                        ranges=verdict.ranges,
                        has_more=place + 1 < len(parts) or bool(len(verdict.unjudged)),
                    )
                    if self._most_keys:
                        found = replace(found, keys=self._keys(witness, verdict.different))
                    break
        if self._store.get_table_replication_state(self._table.schema.id) != state:
            raise TableRewritten(f"{self._table.schema.name} was copied while it was compared")
        left = np.concatenate(unjudged) if unjudged else np.empty(0, np.uint64)
        if found.result == "equal" and len(left):
            found = replace(found, result="unsettled")
        return _Looked(found, left)

    def _require_streamed(self) -> Ready:
        schema = self._table.schema
        self._store.load_table_replication_states()
        state = self._store.get_table_replication_state(schema.id)
        if not isinstance(state, Ready):
            raise TableRewritten(f"{schema.name} is not streamed now")
        return state

    # -- the sides -------------------------------------------------------------------------------

    def _read_source(self, witness: Witness, take: Callable[[Hashes, Hashes], None]) -> None:
        with contextlib.closing(self._sides.source(witness.snapshot_name)) as batches:  # type: ignore[type-var]
            for each in batches:
                take(each.keys, each.hashes)

    def _read_destination(self, take: Callable[[Hashes, Hashes], None]) -> None:
        with contextlib.closing(self._sides.destination_hashes()) as batches:  # type: ignore[type-var]
            for each in batches:
                take(each.keys, each.rows)

    def _keys(self, witness: Witness, different: Hashes) -> tuple[Mapping[str, str], ...]:
        """Some of the keys of these hashes."""
        found: dict[int, Mapping[str, str]] = {}
        names = self._sides.target.key_columns or self._sides.target.column_names
        for side in (self._sides.source(witness.snapshot_name), self._sides.destination()):
            with contextlib.closing(side) as batches:  # type: ignore[type-var]
                for each in batches:
                    for place in np.flatnonzero(np.isin(each.keys, different)).tolist():
                        if len(found) >= self._most_keys:
                            return tuple(found.values())
                        row = each.rows.rows.slice(place, 1)
                        key = {name: str(row.column(name)[0]) for name in names}
                        found.setdefault(int(each.keys[place]), key)
        return tuple(found.values())
