"""Tables as rows in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from etl_dagster.destinations.evolution import (
    AddColumn,
    DropColumn,
    RenameColumn,
    schema_changes,
)
from etl_dagster.model.events import DeleteEvent, InsertEvent, RowEvent, TruncateEvent
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.text import missing_object

Row = dict[str, Any]
#: By column name.
Texts = Mapping[str, str]
_NONE_ODD: Mapping[int, Texts] = {}


class MemoryTable:
    """Rows by key; where the table has none, in the order they came.

    Which of them are in quarantine follows from their odd values.
    """

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema
        self._by_key: dict[tuple[Any, ...], Row] = {}
        self._keyless: list[Row] = []
        #: What the columns' types can't hold, by column name: of rows with a key, and of each of
        #: the others, in the same order.
        self._odd: dict[tuple[Any, ...], Texts] = {}
        self._keyless_odd: list[Texts] = []

    @property
    def rows(self) -> list[Row]:
        """The rows of the table, without those in quarantine."""
        if not self.schema.key_columns:
            return list(self._keyless)
        if not self._odd:
            return list(self._by_key.values())
        return [row for key, row in self._by_key.items() if not self._is_quarantined(key)]

    @property
    def quarantined(self) -> list[Row]:
        """The rows with an odd value in a column that keeps them apart from the table."""
        return [row for key, row in self._by_key.items() if self._is_quarantined(key)]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def odd(self) -> list[tuple[Row, Texts]]:
        """The rows with values that their columns' types can't hold, and the texts of these."""
        if self.schema.key_columns:
            return [(self._by_key[key], texts) for key, texts in self._odd.items()]
        pairs = zip(self._keyless, self._keyless_odd, strict=True)
        return [(row, texts) for row, texts in pairs if texts]

    @property
    def entries(self) -> list[tuple[Row, Texts]]:
        """All rows, each with the texts of what its columns' types can't hold."""
        if self.schema.key_columns:
            return [(row, self._odd.get(key, {})) for key, row in self._by_key.items()]
        return list(zip(self._keyless, self._keyless_odd, strict=True))

    def put(self, rows: Iterable[Row], odd: Mapping[int, Texts] = _NONE_ODD) -> None:
        """Add rows, or replace those with the same keys.

        Args:
            odd: what the columns' types can't hold, by the number of the row.
        """
        for number, row in enumerate(rows):
            texts = odd.get(number, {})
            if not self.schema.key_columns:
                self._keyless.append(row)
                self._keyless_odd.append(texts)
                continue
            key = self._key(row)
            self._by_key[key] = row
            self._odd.pop(key, None)
            if texts:
                self._odd[key] = texts

    def apply(self, event: RowEvent) -> None:
        if isinstance(event, InsertEvent):
            self.put([event.row], {0: event.odd})
        elif isinstance(event, DeleteEvent):
            self._remove(event.row, event.odd)
        else:
            old = event.old_row or {}
            identity = {name: old[name] for name in self.schema.identity_columns if name in old}
            # Postgres leaves out unchanged TOAST values; the identity it always sends.
            odd_before = event.old_odd if identity else event.odd
            before, texts = self._remove(identity or event.row, odd_before)
            kept = {name: identity.get(name, before.get(name)) for name in event.unchanged}
            texts = {name: text for name, text in texts.items() if name in event.unchanged}
            told = {n: text for n, text in event.old_odd.items() if n in event.unchanged}
            self.put([event.row | kept], {0: {**texts, **told, **event.odd}})

    def truncate(self, event: TruncateEvent) -> None:
        self.clear()

    def clear(self) -> None:
        self._by_key.clear()
        self._keyless.clear()
        self._odd.clear()
        self._keyless_odd.clear()

    def evolve(self, schema: TableSchema) -> None:
        """Give all rows another schema; values keep their old type."""
        if schema.describes_same_columns(self.schema):
            return
        rows = list(self._by_key.values() if self.schema.key_columns else self._keyless)
        keyed = [self._odd.get(key, {}) for key in self._by_key]
        odd = [dict(texts) for texts in (keyed if self.schema.key_columns else self._keyless_odd)]
        follow(self.schema, schema, rows, odd)
        self.clear()
        # A table has its mode until it is copied again.
        self.schema = replace(schema, mode=self.schema.mode)
        self.put(rows, dict(enumerate(odd)))

    def _is_quarantined(self, key: tuple[Any, ...]) -> bool:
        return not self._odd.get(key, {}).keys().isdisjoint(self.schema.quarantine_columns)

    def _key(self, row: Row) -> tuple[Any, ...]:
        return tuple(_hashable(row.get(name)) for name in self.schema.key_columns)

    def _remove(self, row: Row, odd: Texts) -> tuple[Row, Texts]:
        """Take a row away: what it was, and what of it was odd; nothing where there is none."""
        if self.schema.key_columns:
            key = self._key(row)
            return self._by_key.pop(key, {}), self._odd.pop(key, {})
        pairs = zip(self._keyless, self._keyless_odd, strict=True)
        for index, (candidate, texts) in enumerate(pairs):
            if candidate == row and texts == odd:
                return self._keyless.pop(index), self._keyless_odd.pop(index)
        return {}, {}


def follow(
    old: TableSchema, new: TableSchema, rows: Sequence[Row], odd: Sequence[dict[str, str]]
) -> None:
    """Give rows, and the texts of what is odd in them, the columns of another schema."""
    for change in schema_changes(old, new):
        for texts in odd:
            match change:
                case DropColumn(column):
                    texts.pop(column.name, None)
                case RenameColumn(old_name, new_name) if old_name in texts:
                    texts[new_name] = texts.pop(old_name)
        for row in rows:
            match change:
                case DropColumn(column):
                    row.pop(column.name, None)
                case RenameColumn(old_name, new_name):
                    row[new_name] = row.pop(old_name, None)
                case AddColumn(column):
                    row[column.name] = missing_object(column)


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in value.items())
    return value
