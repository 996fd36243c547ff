"""Tables in memory that keep more than the source has. Each event is applied by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from etl_dagster.destinations.before import before_image
from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.memory.tables import MemoryTable, Row, Texts, follow
from etl_dagster.model.events import DeleteEvent, InsertEvent, RowEvent, TruncateEvent
from etl_dagster.model.modes import TableMode
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.forms import arrow_type

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class _Entry:
    """A row that is kept, and what of it is odd."""

    row: Row
    texts: dict[str, str]
    #: The commit LSN of the transaction that brought it; None: a copy.
    lsn: int | None = None


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _old_identity(event: RowEvent) -> Row:
    """The columns of an old row that Postgres sends."""
    old, schema = event.old_row or {}, event.schema
    told = schema.column_names if schema.replica_identity == "f" else schema.identity_columns
    return {name: old[name] for name in told if name in old}


class SoftDeleteTable(MemoryTable):
    """Rows by key, also deleted ones."""

    def apply(self, event: RowEvent) -> None:
        live: Row = {"_etl_deleted_at": None}
        if isinstance(event, InsertEvent):
            self.put([event.row | live], {0: event.odd})
        elif isinstance(event, DeleteEvent):
            self._mark(self._key(event.row), event.commit_time_us)
        else:
            identity = _old_identity(event)
            key = self._key(identity or event.row)
            before, texts = self._by_key.get(key, {}), self._odd.get(key, {})
            if before.get("_etl_deleted_at") is not None:
                before, texts = {}, {}
            kept = {name: identity.get(name, before.get(name)) for name in event.unchanged}
            row = event.row | kept
            told = {name: text for name, text in event.old_odd.items() if name in event.unchanged}
            stays = {name: text for name, text in texts.items() if name in event.unchanged}
            if self._key(row) != key:
                self._mark(key, event.commit_time_us)
            self.put([row | live], {0: {**stays, **told, **event.odd}})

    def _mark(self, key: tuple[Any, ...], time_us: int) -> None:
        if key in self._by_key:
            self._by_key[key]["_etl_deleted_at"] = _time(time_us)

    def truncate(self, event: TruncateEvent) -> None:
        for key, row in self._by_key.items():
            if row["_etl_deleted_at"] is None:
                self._mark(key, event.commit_time_us)

    def take_copy(self, copied: MemoryTable, before: MemoryTable | None, at: CopyMoment) -> None:
        for row, texts in () if before is None else before.entries:
            gone = row["_etl_deleted_at"] or _time(at.time_us)
            self.put([row | {"_etl_deleted_at": gone}], {0: texts})
        for row, texts in copied.entries:
            self.put([row | {"_etl_deleted_at": None}], {0: texts})


class _Entries(MemoryTable):
    """Rows in the order in which they came."""

    def __init__(self, schema: TableSchema) -> None:
        super().__init__(schema)
        self._entries: list[_Entry] = []

    @property
    def rows(self) -> list[Row]:
        return [entry.row for entry in self._entries]

    @property
    def odd(self) -> list[tuple[Row, Texts]]:
        return [(entry.row, entry.texts) for entry in self._entries if entry.texts]

    def evolve(self, schema: TableSchema) -> None:
        if schema.describes_same_columns(self.schema):
            return
        rows, odd = self.rows, [entry.texts for entry in self._entries]
        follow(self.schema, schema, rows, odd)
        self.schema = replace(schema, mode=self.schema.mode)

    def _completed(
        self, event: RowEvent, found: Mapping[str, Any]
    ) -> tuple[Row, dict[str, str], list[str] | None]:
        """The row of a change as far as it is known, its odd values, and the unknown columns.

        Args:
            found: the row before; a null there is a value that isn't known.
        """
        told = _old_identity(event)
        row = dict.fromkeys(self.schema.column_names) | event.row
        odd = dict(event.odd)
        unknown: list[str] = []
        for name in self.schema.column_names:
            if name not in event.unchanged:
                continue
            if name in told:
                row[name] = told[name]
                if name in event.old_odd:
                    odd[name] = event.old_odd[name]
                continue
            row[name] = found.get(name)
            if row[name] is None:
                unknown.append(name)
        return row, odd, unknown or None

    def _key_before(self, event: RowEvent) -> tuple[Any, ...]:
        return self._key(_old_identity(event) or event.row)


class AppendTable(_Entries):
    """An entry for each change."""

    def apply(self, event: RowEvent) -> None:
        found: Row = {}
        if event.unchanged and self.schema.key_columns:
            found = self._newest(self._key_before(event))
        row, odd, unknown = self._completed(event, found)
        before = None
        if isinstance(event, DeleteEvent):
            before = before_image(event.schema, event.row, event.odd)
        elif event.old_row is not None:
            before = before_image(event.schema, event.old_row, event.old_odd)
        self._add(
            row,
            odd,
            op=type(event).__name__.removesuffix("Event").lower(),
            position=event.position,
            time_us=event.commit_time_us,
            xid=event.xid,
            before=before,
            unchanged=unknown,
        )

    def _newest(self, key: tuple[Any, ...]) -> Row:
        for entry in reversed(self._entries):
            if self._key(entry.row) == key and entry.row["_etl_op"] != "truncate":
                return {} if entry.row["_etl_op"] == "delete" else entry.row
        return {}

    def _add(
        self,
        row: Row,
        odd: Mapping[str, str],
        *,
        op: str,
        position: Position,
        time_us: int,
        xid: int | None = None,
        before: str | None = None,
        unchanged: list[str] | None = None,
    ) -> None:
        added = {
            "_etl_op": op,
            "_etl_commit_lsn": position.commit_lsn.offset,
            "_etl_ordinal": position.ordinal,
            "_etl_commit_time": _time(time_us),
            "_etl_xid": xid,
            "_etl_before": before,
            "_etl_unchanged": unchanged,
        }
        self._entries.append(_Entry(row | added, dict(odd)))

    def truncate(self, event: TruncateEvent) -> None:
        self._add(
            dict.fromkeys(self.schema.column_names),
            {},
            op="truncate",
            position=event.position,
            time_us=event.commit_time_us,
            xid=event.xid,
        )

    def take_copy(self, copied: MemoryTable, before: MemoryTable | None, at: CopyMoment) -> None:
        if isinstance(before, AppendTable):
            self._entries = before._entries
        for row, texts in copied.entries:
            position = replace(at.position, ordinal=0)
            self._add(row, texts, op="copy", position=position, time_us=at.time_us)


class Scd2Table(_Entries):
    """An entry for each version."""

    def apply(self, event: RowEvent) -> None:
        if isinstance(event, DeleteEvent):
            self._close(self._key(event.row), event)
            return
        key = self._key_before(event)
        current = self._current(key)
        row, odd, unknown = self._completed(event, current.row if current else {})
        for each in {key: None, self._key(row): None}:
            self._close(each, event)
        self._open(row, odd, event.commit_time_us, unknown, event.position.commit_lsn.offset)

    def _current(self, key: tuple[Any, ...]) -> _Entry | None:
        for entry in reversed(self._entries):
            if entry.row["_etl_is_current"] and self._key(entry.row) == key:
                return entry
        return None

    def _open(
        self,
        row: Row,
        odd: Mapping[str, str],
        time_us: int,
        unknown: list[str] | None = None,
        lsn: int | None = None,
    ) -> None:
        added = {
            "_etl_valid_from": _time(time_us),
            "_etl_valid_to": None,
            "_etl_is_current": True,
            "_etl_unchanged": unknown,
        }
        self._entries.append(_Entry(row | added, dict(odd), lsn))

    def _close(self, key: tuple[Any, ...], event: RowEvent | TruncateEvent) -> None:
        entry = self._current(key)
        if entry is None:
            return
        if entry.lsn == event.position.commit_lsn.offset:
            # What a row is within a transaction is not a version.
            self._entries = [other for other in self._entries if other is not entry]
            return
        self._end(entry, event.commit_time_us)

    @staticmethod
    def _end(entry: _Entry, time_us: int) -> None:
        entry.row |= {"_etl_valid_to": _time(time_us), "_etl_is_current": False}

    def truncate(self, event: TruncateEvent) -> None:
        for row in [row for row in self.rows if row["_etl_is_current"]]:
            self._close(self._key(row), event)

    def take_copy(self, copied: MemoryTable, before: MemoryTable | None, at: CopyMoment) -> None:
        if isinstance(before, Scd2Table):
            self._entries = before._entries
        odd = {self._key(row) for row, texts in [*copied.entries, *self.odd] if texts}
        rows = {self._key(row): (row, texts) for row, texts in copied.entries}
        for entry in self._entries:
            key = self._key(entry.row)
            same = key in rows and self._is_same(entry.row, rows[key][0]) and key not in odd
            if entry.row["_etl_is_current"] and not same:
                self._end(entry, at.time_us)
        for key, (row, texts) in rows.items():
            if self._current(key) is None:
                self._open(row, texts, at.time_us)

    def _is_same(self, kept: Row, copied: Row) -> bool:
        names = self.schema.column_names
        told = kept["_etl_unchanged"] is None
        return told and [repr(kept[n]) for n in names] == [repr(copied.get(n)) for n in names]


_BY_MODE: Final[Mapping[TableMode, type[SoftDeleteTable | AppendTable | Scd2Table]]] = {
    "soft_delete": SoftDeleteTable,
    "append": AppendTable,
    "scd2": Scd2Table,
}


def table_of(schema: TableSchema) -> MemoryTable:
    """An empty table, kept as its schema says."""
    return MemoryTable(schema) if schema.mode == "mirror" else _BY_MODE[schema.mode](schema)


def can_continue(before: MemoryTable, schema: TableSchema) -> bool:
    """Whether a copy continues with what a table has kept."""
    old = before.schema
    known = {column.attnum or column.name: column for column in old.columns}
    pairs = [(known.get(c.attnum or c.name), c) for c in schema.columns]
    return (
        old.mode == schema.mode
        and _key(old) == _key(schema)
        and all(was is None or arrow_type(was) == arrow_type(now) for was, now in pairs)
    )


def _key(schema: TableSchema) -> list[int | str]:
    by_name = {column.name: column.attnum or column.name for column in schema.columns}
    return [by_name[name] for name in schema.key_columns]


def kept_table(
    schema: TableSchema, copied: MemoryTable, before: MemoryTable | None, at: CopyMoment
) -> MemoryTable:
    """The table after a copy.

    Args:
        before: the table that the copy continues with.
    """
    table = table_of(schema)
    if isinstance(table, SoftDeleteTable | AppendTable | Scd2Table):
        if before is not None and before.schema.mode == schema.mode:
            before.evolve(schema)
        else:
            before = None
        table.take_copy(copied, before, at)
        return table
    return copied
