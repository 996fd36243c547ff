"""Turns a table's part of a batch into stretches of records, each under one schema."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed, collapse, concat_rows
from etl_dagster.destinations.evolution import (
    AddColumn,
    ChangeColumnType,
    MoveTable,
    RenameColumn,
    schema_changes,
)
from etl_dagster.destinations.singer.entries import entries_of, truncated
from etl_dagster.destinations.singer.lines import More, Stamps
from etl_dagster.destinations.singer.parts import RecordRows, Stamped, by_missing, odd_of, taken
from etl_dagster.destinations.singer.streams import Spelling, line, schema_message, stream_name
from etl_dagster.destinations.versions import Versions, last_rows
from etl_dagster.errors import RowsOutdated, TableWriteFailed
from etl_dagster.model.events import (
    DELETE,
    INSERT,
    RelationEvent,
    TableChanges,
    TableStep,
    TruncateEvent,
)
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.values.parsed import Odd

#: More truncates of one transaction share a version. Commits are more bytes apart than this.
_MOST_TRUNCATES: Final = 30


@dataclass
class Stretch:
    """Records of one table under one schema; its old rows are perhaps removed first."""

    schema: TableSchema
    stream: str
    #: The SCHEMA line.
    header: bytes
    #: ACTIVATE_VERSION removes rows with a smaller version; None: it isn't sent.
    version: int | None = None
    parts: list[RecordRows] = field(default_factory=list)

    def lines(self, spelling: Spelling) -> Iterator[bytes | memoryview]:
        """All but the SCHEMA line."""
        if self.version is not None:
            yield activate_version(self.stream, self.version)
        for part in self.parts:
            yield from part.lines(self.stream, self.schema, spelling)


def activate_version(stream: str, version: int) -> bytes:
    return line({"type": "ACTIVATE_VERSION", "stream": stream, "version": version})


class Truncates:
    """Counts how often a transaction has emptied a table, for the versions of rows.

    A version is the LSN of the commit record, plus the number of truncates before the row in its
    transaction.
    """

    def __init__(self) -> None:
        self._seen: dict[TableId, tuple[int, set[int]]] = {}
        self._lock = threading.Lock()

    def version(self, table_id: TableId, position: Position) -> int:
        """The version of a truncate: rows with a smaller one were there before it."""
        lsn = position.commit_lsn.offset
        with self._lock:
            known, ordinals = self._seen.get(table_id, (0, set()))
            if known != lsn:
                ordinals = set()
            ordinals.add(position.ordinal)
            self._seen[table_id] = lsn, ordinals
            return lsn + min(len(ordinals), _MOST_TRUNCATES)

    def versions(self, changes: TableChanges) -> np.ndarray:
        """For each change the version of its row, int64."""
        versions = changes.commit_lsns.astype(np.int64)
        with self._lock:
            lsn, ordinals = self._seen.get(changes.schema.id, (0, set()))
        if not ordinals:
            return versions
        since: np.ndarray = (versions == lsn) & (changes.ordinals > min(ordinals))
        since = since.astype(np.int64) * min(len(ordinals), _MOST_TRUNCATES)
        found: np.ndarray = versions + since
        return found


class Stretcher:
    """Makes stretches of a table's steps.

    Args:
        empties: whether the target acts on ACTIVATE_VERSION.
        unchanged: what becomes of rows with values that Postgres left out.
        removes: whether the target is told to remove deleted rows, instead of marking them.
    """

    def __init__(
        self,
        template: str,
        spelling: Spelling,
        *,
        target: str,
        empties: bool,
        unchanged: Literal["refuse", "omit"],
        removes: bool = False,
    ) -> None:
        self._template = template
        self._spelling = spelling
        self._target = target
        self._empties = empties
        self._unchanged = unchanged
        self._removes = removes
        self._truncates = Truncates()
        self._headers: dict[TableId, tuple[TableSchema, bytes]] = {}
        #: By stream, the ID and the name of its table.
        self._owners: dict[str, tuple[TableId, str]] = {}
        self._lock = threading.Lock()

    def stretch(self, schema: TableSchema) -> Stretch:
        """A stretch without records yet.

        Raises:
            TableWriteFailed: another table has the same stream, or the table can't be one.
        """
        if schema.mode == "soft_delete":
            self._require_marks(schema)
        stream = stream_name(self._template, schema)
        with self._lock:
            owner, name = self._owners.setdefault(stream, (schema.id, schema.name))
            if owner != schema.id:
                raise TableWriteFailed(
                    schema.id,
                    f"{schema.name} and {name} would be one stream, {stream}",
                    solution="Rename one of them, or set destination.stream so that their streams "
                    "differ; then reset the table.",
                )
            known = self._headers.get(schema.id)
            if known is None or known[0] != schema:
                known = schema, schema_message(stream, schema, self._spelling)
                self._headers[schema.id] = known
        return Stretch(schema, stream, known[1])

    def forget(self, table_id: TableId) -> None:
        """The table is copied again, perhaps under another name."""
        with self._lock:
            for stream in [s for s, (owner, _) in self._owners.items() if owner == table_id]:
                del self._owners[stream]

    def stretches(self, steps: Sequence[TableStep]) -> list[Stretch]:
        """The steps in order. What came before the table was emptied isn't sent.

        Raises:
            RowsOutdated: only a new copy brings the rows up to date.
            TableWriteFailed: a target can't do something in them.
        """
        made: list[Stretch] = []
        for step in steps:
            match step:
                case RelationEvent():
                    self._require_no_new_copy(step)
                case TruncateEvent() if step.schema.mode == "append":
                    self._last_of(made, step.schema).parts.append(self._entry(step))
                case TruncateEvent():
                    self._require_emptying(step.schema)
                    emptied = self.stretch(step.schema)
                    emptied.version = self._truncates.version(step.schema.id, step.position)
                    made = [emptied]
                case TableChanges():
                    self._last_of(made, step.schema).parts += self._parts(step)
        return made

    def _last_of(self, made: list[Stretch], schema: TableSchema) -> Stretch:
        """The last stretch, or another where that is under another schema."""
        if not made or made[-1].schema != schema:
            made.append(self.stretch(schema))
        return made[-1]

    def _entry(self, event: TruncateEvent) -> RecordRows:
        entry = truncated(event)
        position = event.position
        lsn, ordinal = (np.array([n]) for n in (position.commit_lsn.offset, position.ordinal))
        stamps = Stamps(event.commit_time_us, int(lsn[0]), lsn, ordinal)
        return RecordRows(entry.rows, stamps, {}, more=entry.more)

    def _require_no_new_copy(self, step: RelationEvent) -> None:
        if step.previous is None:
            return
        name = step.schema.name
        for change in schema_changes(step.previous, step.schema):
            match change:
                case MoveTable(old):
                    # Its stream may be another table's by the time of the copy.
                    self.forget(step.schema.id)
                    why = f"{old.name} is called {name} now, and its rows are in another stream"
                case RenameColumn(before, after):
                    why = f"{before} of {name} is called {after} now"
                case ChangeColumnType(_, column):
                    why = f"{column.name} of {name} has another type now"
                case AddColumn(column) if column.missing_value is not None:
                    why = f"{column.name} was added to {name} with a value for the rows there"
                case _:
                    continue
            raise RowsOutdated(step.schema.id, f"{why}; Singer has no message for that")
        if step.previous.key_columns != step.schema.key_columns:
            raise RowsOutdated(step.schema.id, f"{name} has another key now")

    def _require_emptying(self, schema: TableSchema) -> None:
        if not self._empties:
            raise TableWriteFailed(
                schema.id,
                f"{schema.name} was truncated, and {self._target} does not empty tables "
                "(ACTIVATE_VERSION)",
                solution="Empty the table at the target by hand, then reset it. If the target does "
                "act on ACTIVATE_VERSION, set destination.activate_version: true.",
            )

    def _parts(self, changes: TableChanges) -> list[RecordRows]:
        schema = changes.schema
        stamped = Stamped(changes, self._truncates.versions(changes))
        if schema.mode == "append":
            entries = entries_of(changes)
            every = np.arange(len(changes))
            odd = odd_of(entries.odd)
            return [RecordRows(entries.rows, stamped.at(every), odd, more=entries.more)]
        if not schema.key_columns:
            if (changes.ops != INSERT).any():
                raise TableWriteFailed(
                    schema.id,
                    f"rows of {schema.name} were updated or deleted, and it has no key by which "
                    f"{self._target} could find them",
                    solution="Give the table a primary key, or publish its inserts alone; then "
                    "retry the table.",
                )
            every = np.arange(len(changes))
            return [RecordRows(changes.rows, stamped.at(every), changes.odd)]
        if schema.mode == "soft_delete":
            return self._marked(changes, stamped)
        found = collapse(changes, schema.key_columns)
        parts = []
        if found.is_gone.any():
            gone = found.removed.filter(pa.array(found.is_gone))
            parts.append(
                RecordRows(gone, stamped.at(found.touched[found.is_gone]), {}, deleted=True)
            )
        return parts + self._known(schema, found, stamped)

    def _require_marks(self, schema: TableSchema) -> None:
        """Check that a deleted row can stay as it was, with a mark.

        Raises:
            TableWriteFailed: it can't.
        """
        if self._removes:
            raise TableWriteFailed(
                schema.id,
                f"{schema.name} is kept in mode soft_delete, and {self._target} is told to remove "
                "deleted rows (hard_delete)",
                solution="Set hard_delete: false in destination.config, then retry the table.",
            )
        if schema.replica_identity != "f" and self._unchanged != "omit":
            raise TableWriteFailed(
                schema.id,
                f"Postgres sends only the key of a deleted row of {schema.name}, and "
                f"{self._target} would have null in its other columns",
                solution=f"On the source: ALTER TABLE {schema.name} REPLICA IDENTITY FULL. If the "
                "target keeps what a record leaves out, set destination.unchanged: omit. Then "
                "reset the table.",
            )

    def _marked(self, changes: TableChanges, stamped: Stamped) -> list[RecordRows]:
        """The last row of each key, marked if it is deleted by then."""
        schema = changes.schema
        versions = last_rows(changes, schema.key_columns)
        rows, odd = versions.rows, odd_of(versions.odd)
        found = replace(versions.collapsed(rows), given=versions.given_by)
        if found.unknown:
            self._require_omitting(schema, found)
        parts = []
        if len(versions.over):
            parts.append(self._over(changes, versions, stamped))
        for by, deleted in ((versions.ended_by, True), (versions.given_by, False)):
            is_meant = (versions.ended_by >= 0) == deleted
            for missing, places in by_missing(found):
                at = places[is_meant[places]]
                kept = [name for name in rows.schema.names if name not in missing]
                some = rows.select(kept).take(pa.array(at))
                if len(at):
                    part = RecordRows(some, stamped.at(by[at]), taken(odd, at, kept), deleted)
                    parts.append(part)
        return parts

    @staticmethod
    def _over(changes: TableChanges, versions: Versions, stamped: Stamped) -> RecordRows:
        """Deleted rows, with all values that Postgres sends of them."""
        stamps = stamped.at(versions.over_by)
        old = changes.old_rows
        if changes.schema.replica_identity != "f":
            return RecordRows(versions.over, stamps, {}, deleted=True)
        places = versions.over_by.copy()
        batches = [changes.rows]
        if old is not None and changes.old_indices is not None:
            batches.append(old)
            is_moved = changes.ops[versions.over_by] != DELETE
            at = np.searchsorted(changes.old_indices, versions.over_by[is_moved])
            places[is_moved] = len(changes) + at
        rows = concat_rows(batches).take(pa.array(places))
        return RecordRows(rows, stamps, {}, deleted=True)

    def _known(self, schema: TableSchema, found: Collapsed, stamped: Stamped) -> list[RecordRows]:
        """The rows that are there in the end, without the values that were not sent."""
        stamps, odd = stamped.at(found.given), odd_of(found.odd)
        if not found.unknown:
            return [RecordRows(found.rows, stamps, odd)]
        self._require_omitting(schema, found)
        parts = []
        for missing, places in by_missing(found):
            kept = [name for name in found.rows.schema.names if name not in missing]
            rows = found.rows.select(kept).take(pa.array(places))
            parts.append(RecordRows(rows, stamps.take(places), taken(odd, places, kept)))
        return parts

    def _require_omitting(self, schema: TableSchema, found: Collapsed) -> None:
        """Check that the target keeps what a record leaves out, in the row with its key.

        Raises:
            TableWriteFailed: it doesn't, or the row has another key there.
        """
        if self._unchanged == "refuse" or self._is_moved(schema, found):
            raise TableWriteFailed(
                schema.id,
                f"an update of {schema.name} left {', '.join(sorted(found.unknown))} as it was, "
                f"and {self._target} takes whole rows only",
                solution=f"On the source: ALTER TABLE {schema.name} REPLICA IDENTITY FULL, so that "
                "Postgres sends such values; then reset the table. If the target keeps what a "
                "record leaves out, set destination.unchanged: omit.",
            )

    @staticmethod
    def _is_moved(schema: TableSchema, found: Collapsed) -> bool:
        """Whether a row with values that were not sent has another key than it had."""
        incomplete = np.logical_or.reduce(list(found.unknown.values()))
        places: Any = pa.array(np.flatnonzero(incomplete))
        lookup = found.lookup
        assert lookup is not None
        keys = found.rows.select(list(schema.key_columns)).take(places)
        before: pa.RecordBatch = lookup.take(places)
        return any(not a.equals(b) for a, b in zip(keys.columns, before.columns, strict=True))


def copied(
    stretch: Stretch,
    rows: pa.RecordBatch,
    odd: Mapping[str, Odd],
    stamps: Stamps,
    more: More,
) -> Stretch:
    """A stretch with some rows of a copy."""
    return replace(stretch, parts=[RecordRows(rows, stamps, odd, more=more)])
