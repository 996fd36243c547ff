"""Makes by hand the batches that a destination receives.

For tests of your own destination that go beyond `DestinationSuite`:

>>> stream = Transactions()
>>> changes = stream.commit(insert(ORDERS, id=1, note="new"), delete(ORDERS, id=2))
>>> [type(event).__name__ for event in batch(changes)]
['BeginEvent', 'InsertEvent', 'DeleteEvent', 'CommitEvent']
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from etl_dagster.lsn import Lsn
from etl_dagster.model.events import (
    DELETE,
    INSERT,
    UPDATE,
    BeginEvent,
    ChunkId,
    CommitEvent,
    CopiedRows,
    EventBatch,
    RelationEvent,
    TableChanges,
    TableRows,
    TableStep,
    TruncateEvent,
)
from etl_dagster.model.position import Position
from etl_dagster.model.schema import ColumnSchema, ReplicaIdentity, TableId, TableSchema
from etl_dagster.values.parsed import Odd

Row = dict[str, Any]


class Unheld(str):
    """A value of a row that its column's type can't hold, as Postgres prints it.

    >>> order(1, amount=Unheld("NaN"))["amount"]
    'NaN'
    """


BOOL, BYTEA, INT8, INT4, TEXT, JSONB = 16, 17, 20, 23, 25, 3802
FLOAT8, DATE, TIMESTAMPTZ, NUMERIC, UUID = 701, 1082, 1184, 1700, 2950


def column(
    name: str, type_oid: int, attnum: int, *, key: int | None = None, **more: Any
) -> ColumnSchema:
    """A column; `key` is its place in the primary key, from 1, and makes it NOT NULL."""
    more.setdefault("is_identity", key is not None)
    return ColumnSchema(
        name, type_oid, attnum=attnum, nullable=key is None, primary_key_ordinal=key, **more
    )


def table(
    columns: Sequence[ColumnSchema],
    *,
    table_id: int = 16384,
    name: str = "orders",
    identity: ReplicaIdentity = "d",
    schema_name: str = "public",
    snapshot: int = 0,
) -> TableSchema:
    """A table, by default ``public.orders``; `snapshot` is the LSN of its schema version."""
    return TableSchema(
        table_id, schema_name, name, tuple(columns), Lsn(snapshot), replica_identity=identity
    )


ORDERS = table(
    [
        column("id", INT8, 1, key=1),
        column("amount", NUMERIC, 2, type_modifier=((12 << 16) | 2) + 4),
        column("note", TEXT, 3),
        column("document", TEXT, 4),
    ]
)
PRICES = table(
    [column("sku", TEXT, 1, key=2), column("region", INT4, 2, key=1), column("price", INT4, 3)],
    table_id=16390,
    name="prices",
)
#: Neither key nor replica identity: rows are only inserted.
VISITS = table([column("page", TEXT, 1), column("at", INT8, 2)], table_id=16391, name="visits")
#: No key, but REPLICA IDENTITY FULL: the whole old row comes with an update or delete.
READINGS = table(
    [
        column("sensor", TEXT, 1, is_identity=True),
        column("value", INT4, 2, is_identity=True),
        column("blob", TEXT, 3, is_identity=True),
    ],
    table_id=16392,
    name="readings",
    identity="f",
)


def order(id: int, note: str | None = "new", **more: Any) -> Row:
    """A row of `ORDERS`."""
    return {"id": id, "amount": None, "note": note, "document": None} | more


@dataclass(frozen=True)
class Change:
    """One change as Postgres sends it. op: I, U, D, T (truncate), R (relation)."""

    schema: TableSchema
    op: str
    row: Row = field(default_factory=dict)
    old: Row | None = None
    unchanged: frozenset[str] = frozenset()
    lsn: int = 0
    ordinal: int = 0
    #: Whether it ends its transaction.
    is_last: bool = False

    @property
    def position(self) -> Position:
        return Position(Lsn(self.lsn), self.ordinal)


class Transactions:
    """A stream of changes that grows one transaction at a time."""

    def __init__(self, first_lsn: int = 1000) -> None:
        self.changes: list[Change] = []
        self._lsn = first_lsn

    @property
    def next_lsn(self) -> Lsn:
        """The LSN at which the next transaction will be committed."""
        return Lsn(self._lsn)

    def commit(self, *changes: Change) -> list[Change]:
        """Add a transaction; returns its changes with their positions."""
        numbered, ordinal = [], 0
        for place, change in enumerate(changes, 1):
            is_last = place == len(changes)
            numbered.append(replace(change, lsn=self._lsn, ordinal=ordinal, is_last=is_last))
            ordinal += change.op != "R"
        self.changes += numbered
        self._lsn += 100
        return numbered


def insert(schema: TableSchema, **row: Any) -> Change:
    """A new row; columns that are not given are null."""
    return Change(schema, "I", row)


def update(
    schema: TableSchema, *, old: Row | None = None, unchanged: Iterable[str] = (), **row: Any
) -> Change:
    """A row's new values.

    Args:
        old: the old row, as Postgres sends it when the identity changed, and under FULL.
        unchanged: columns with a TOAST value that stayed, which Postgres doesn't send.
    """
    return Change(schema, "U", row, old, frozenset(unchanged))


def delete(schema: TableSchema, **row: Any) -> Change:
    """A row is gone; `row` has its identity columns."""
    return Change(schema, "D", row)


def truncate(schema: TableSchema) -> Change:
    """All rows are gone."""
    return Change(schema, "T")


def relation(schema: TableSchema) -> Change:
    """From here on the table has this schema."""
    return Change(schema, "R")


def batch(
    changes: Sequence[Change], *, epoch: int = 0, apply_from: Mapping[TableId, Lsn] | None = None
) -> EventBatch:
    """The changes as one batch, with the begin and commit events of their transactions."""
    tables: dict[TableId, list[TableStep]] = {}
    runs: dict[TableId, list[tuple[int, Change]]] = {}
    marks: list[BeginEvent | CommitEvent] = []
    sequence, begun, end = 0, None, None

    def close(table_id: TableId) -> None:
        if run := runs.pop(table_id, None):
            tables.setdefault(table_id, []).append(_table_changes(run))

    for change in changes:
        table_id, lsn = change.schema.id, Lsn(change.lsn)
        if begun != lsn:
            begun = lsn
            if change.ordinal == 0:
                marks.append(BeginEvent(lsn, change.lsn, _xid(change), sequence))
                sequence += 1
        if change.op in "IUD":
            if table_id in runs and runs[table_id][0][1].schema != change.schema:
                close(table_id)
            runs.setdefault(table_id, []).append((sequence, change))
        else:
            close(table_id)
            step: TableStep
            if change.op == "T":
                step = TruncateEvent(
                    change.schema, change.position, sequence, change.lsn, xid=_xid(change)
                )
            else:
                step = RelationEvent(change.schema, None, sequence)
            tables.setdefault(table_id, []).append(step)
        sequence += 1
        if change.is_last:
            end = Lsn(change.lsn + 50)
            marks.append(CommitEvent(lsn, end, change.lsn, sequence))
            sequence += 1
    for table_id in list(runs):
        close(table_id)
    return EventBatch(tables, marks, end, epoch, dict(apply_from or {}))


def _table_changes(run: Sequence[tuple[int, Change]]) -> TableChanges:
    changes = [change for _, change in run]
    schema = changes[0].schema
    with_old = [(place, c.old) for place, c in enumerate(changes) if c.old is not None]
    unchanged = {
        name: np.array([name in change.unchanged for change in changes])
        for name in schema.column_names
        if any(name in change.unchanged for change in changes)
    }
    return TableChanges(
        schema,
        np.array([{"I": INSERT, "U": UPDATE, "D": DELETE}[c.op] for c in changes], np.uint8),
        np.array([change.lsn for change in changes], np.uint64),
        np.array([change.ordinal for change in changes], np.int64),
        np.array([change.lsn for change in changes], np.int64),
        np.array([sequence for sequence, _ in run], np.int64),
        arrow_rows(schema, [change.row for change in changes]),
        unchanged,
        np.array([place for place, _ in with_old], np.int64) if with_old else None,
        arrow_rows(schema, [old for _, old in with_old]) if with_old else None,
        odd_values(schema, [change.row for change in changes]),
        odd_values(schema, [old for _, old in with_old]),
        np.array([_xid(change) for change in changes], np.uint32),
    )


def _xid(change: Change) -> int:
    return (700 + change.lsn) % 2**32


def arrow_rows(schema: TableSchema, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows as Arrow; columns that a row lacks are null, even if the table has NOT NULL."""
    fields = schema.arrow_schema
    arrays = [
        pa.array([_held(row.get(field.name), field.type) for row in rows], type=field.type)
        for field in fields
    ]
    nullable = pa.schema([pa.field(field.name, field.type) for field in fields])
    return pa.RecordBatch.from_arrays(arrays, schema=nullable)


def odd_values(schema: TableSchema, rows: Sequence[Mapping[str, Any]]) -> dict[str, Odd]:
    """The rows' values that are `Unheld`, by column name."""
    found: dict[str, Odd] = {}
    for name in schema.column_names:
        texts = {
            place: str(row[name])
            for place, row in enumerate(rows)
            if isinstance(row.get(name), Unheld)
        }
        if texts:
            places = np.array(list(texts), np.int64)
            found[name] = Odd(places, pa.array(list(texts.values()), pa.string()))
    return found


def _held(value: Any, arrow: pa.DataType) -> Any:
    if isinstance(value, dict) and pa.types.is_map(arrow):
        return list(value.items())
    return None if isinstance(value, Unheld) else value


def chunk(
    copy_id: str,
    index: int,
    schema: TableSchema,
    rows: Sequence[Row],
    *,
    replay_from: int = 0,
    copied_at_us: int | None = None,
) -> TableRows:
    """A chunk of a copy, its rows in two pieces."""
    half = len(rows) // 2
    batches = [
        CopiedRows(arrow_rows(schema, part), odd_values(schema, part))
        for part in (rows[:half], rows[half:])
        if part
    ]
    chunk_id = ChunkId(copy_id, index)
    return TableRows(copy_id, iter(batches), chunk_id, Lsn(replay_from), copied_at_us)


def end_of_copy(
    copy_id: str, replay_from: int = 0, *, copied_at_us: int | None = None
) -> TableRows:
    """The end of a copy; changes committed before `replay_from` are part of the copy."""
    return TableRows(copy_id, replay_from=Lsn(replay_from), copied_at_us=copied_at_us)


def exact(number: Decimal) -> Decimal:
    """The number without trailing zeros; keeps all other digits (Python's default is 28)."""
    return number.normalize(Context(prec=1000))


def content(rows: Iterable[Row]) -> Counter[str]:
    """Rows to compare in any order, where 1.5 and 1.50 are the same."""

    def plain(value: Any) -> Any:
        return exact(value) if isinstance(value, Decimal) else value

    return Counter(
        repr(sorted((name, plain(value)) for name, value in row.items())) for row in rows
    )


class SourceTable:
    """A table in the source: returns what Postgres would send for each statement."""

    def __init__(self, schema: TableSchema, toasted: Iterable[str] = ()) -> None:
        self.schema = schema
        self.rows: list[Row] = []
        #: Columns stored out of line: not sent when an update doesn't change them.
        self.toasted = frozenset(toasted)

    def key(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.schema.key_columns)

    def insert(self, row: Row) -> Change | None:
        if self.schema.key_columns and self.key(row) in map(self.key, self.rows):
            return None
        self.rows.append(row)
        return Change(self.schema, "I", row)

    def update(self, place: int, values: Row) -> Change | None:
        """Change values of one row; None if that isn't possible."""
        before = self.rows[place]
        after = before | values
        others = self.rows[:place] + self.rows[place + 1 :]
        if self.schema.key_columns and self.key(after) in map(self.key, others):
            return None
        self.rows[place] = after
        unchanged = frozenset(
            name for name in self.toasted - values.keys() if before[name] is not None
        )
        old = None
        if self.schema.replica_identity == "f":
            old = before
        elif self.key(before) != self.key(after):
            old = {name: before[name] for name in self.schema.identity_columns}
        sent = {name: value for name, value in after.items() if name not in unchanged}
        return Change(self.schema, "U", sent, old, unchanged)

    def delete(self, place: int) -> Change:
        row = self.rows.pop(place)
        if self.schema.replica_identity != "f":
            row = {name: row[name] for name in self.schema.identity_columns}
        return Change(self.schema, "D", row)

    def truncate(self) -> Change:
        self.rows.clear()
        return Change(self.schema, "T")
