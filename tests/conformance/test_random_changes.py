"""Random changes, cut into batches at random and delivered again at random, end in what the
source has."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl_dagster.destinations.collapse import added_and_removed, collapse
from etl_dagster.destinations.memory import MemoryTable
from etl_dagster.model.events import TableChanges
from etl_dagster.model.schema import TableSchema
from etl_dagster.stores.memory import MemoryStore
from tests.conformance.test_destinations import SUBJECTS, Subject
from tests.support.changes import (
    ORDERS,
    PRICES,
    READINGS,
    VISITS,
    Change,
    Row,
    SourceTable,
    Transactions,
    batch,
    chunk,
    content,
    end_of_copy,
)

_SMALL = st.integers(0, 6)
_TEXT = st.sampled_from([None, "", "a", "b", "a long document"])
#: A statement: which table, what to do there, and numbers and texts to do it with.
_STATEMENT = st.tuples(
    st.integers(0, 3),
    st.sampled_from("IIIUUUUDDKKT"),
    st.tuples(_SMALL, _SMALL),
    st.tuples(_TEXT, _TEXT),
)
_TRANSACTIONS = st.lists(st.lists(_STATEMENT, min_size=1, max_size=8), max_size=12)


class Source:
    """Four tables of different kinds, and what Postgres sends of their changes."""

    def __init__(self, *, toast: bool = True) -> None:
        self.tables = [
            SourceTable(ORDERS, toasted={"document"} if toast else ()),
            SourceTable(PRICES),
            SourceTable(VISITS),
            SourceTable(READINGS, toasted={"blob"} if toast else ()),
        ]
        self.stream = Transactions()

    def run(self, transactions: list[list[Any]]) -> None:
        for statements in transactions:
            changes = [self._statement(*statement) for statement in statements]
            self.stream.commit(*(change for change in changes if change is not None))

    def _statement(
        self, number: int, kind: str, numbers: tuple[int, int], texts: tuple[str | None, str | None]
    ) -> Change | None:
        table = self.tables[number]
        if kind == "I":
            return table.insert(self._row(number, numbers, texts))
        if kind == "T":
            return table.truncate()
        if not table.rows or table.schema is VISITS:
            return None
        place = numbers[0] % len(table.rows)
        if kind == "D":
            return table.delete(place)
        new = self._row(number, (numbers[1], numbers[1]), texts)
        if kind == "K":
            return table.update(place, {key: new[key] for key in table.schema.key_columns})
        named = list(new)[-1] if texts[0] else list(new)[-2]
        return table.update(
            place, {named: new[named]} if named not in table.schema.key_columns else {}
        )

    @staticmethod
    def _row(number: int, numbers: tuple[int, int], texts: tuple[str | None, str | None]) -> Row:
        first, second = numbers
        rows: list[Row] = [
            {"id": first, "amount": None, "note": texts[0], "document": texts[1]},
            {"sku": str(first % 2), "region": second % 3, "price": first},
            {"page": texts[0], "at": second},
            {"sensor": texts[0], "value": second % 2, "blob": texts[1]},
        ]
        return rows[number]


@contextmanager
def _started(make: Callable[[Path], Subject]) -> Iterator[Subject]:
    with tempfile.TemporaryDirectory() as folder:
        subject = make(Path(folder))
        subject.destination.startup(MemoryStore())
        yield subject
        subject.destination.shutdown()


def _deliveries(data: st.DataObject, count: int) -> Iterator[tuple[int, int]]:
    """Stretches of the stream: each begins where a restart might, none leaves a gap."""
    done = 0
    while done < count:
        start = data.draw(st.integers(0, done), label="start")
        if data.draw(st.booleans(), label="goes on"):
            start = done
        stop = data.draw(st.integers(start + 1, count), label="stop")
        yield start, stop
        done = max(done, stop)


@pytest.mark.parametrize("name", list(SUBJECTS))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(transactions=_TRANSACTIONS, data=st.data())
def test_random_changes_end_in_what_the_source_has(
    name: str, transactions: list[list[Any]], data: st.DataObject
) -> None:
    source = Source()
    source.run(transactions)
    changes = source.stream.changes
    with _started(SUBJECTS[name]) as subject:
        for start, stop in _deliveries(data, len(changes)):
            subject.destination.write_events(batch(changes[start:stop]))

        for table in source.tables:
            if any(change.schema.id == table.schema.id for change in changes):
                assert content(subject.rows(table.schema)) == content(table.rows)
        assert sorted(subject.changelog(), key=lambda entry: entry[2:]) == [
            (change.schema.id, change.op, change.lsn, change.ordinal) for change in changes
        ]


@pytest.mark.parametrize("name", list(SUBJECTS))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=_TRANSACTIONS, during=_TRANSACTIONS, after=_TRANSACTIONS)
def test_a_copy_whose_chunks_differ_in_time_is_right_after_the_replay(
    name: str, before: list[list[Any]], during: list[list[Any]], after: list[list[Any]]
) -> None:
    """A row may move between chunks: then both have it, or none. Its change is in the stream."""
    source = Source(toast=False)
    source.run(before)
    orders, prices = source.tables[:2]
    replayed = len(source.stream.changes)

    def part(table: SourceTable, parity: int) -> list[Row]:
        return [row for row in table.rows if hash(table.key(row)[0]) % 2 == parity]

    first = {table.schema: part(table, 0) for table in (orders, prices)}
    source.run(during)
    second = {table.schema: part(table, 1) for table in (orders, prices)}
    source.run(after)
    changes = source.stream.changes
    slot_lsn = changes[replayed].lsn if replayed < len(changes) else 10**9
    with _started(SUBJECTS[name]) as subject:
        for schema in first:
            for index, rows in enumerate((first[schema], second[schema])):
                subject.destination.write_table_rows(schema, chunk("copy", index, schema, rows))
            subject.destination.write_table_rows(schema, end_of_copy("copy", slot_lsn))
        # The slot may send what was before it as well; that is skipped.
        subject.destination.write_events(batch(changes))

        for table in (orders, prices):
            assert content(subject.rows(table.schema)) == content(table.rows)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=_TRANSACTIONS, during=_TRANSACTIONS)
def test_collapsed_changes_do_the_same_as_all_of_them(
    before: list[list[Any]], during: list[list[Any]]
) -> None:
    source = Source()
    source.run(before)
    tables = {table.schema.id: _copy(table) for table in source.tables}
    earlier = len(source.stream.changes)
    source.run(during)
    events = batch([c for c in source.stream.changes[earlier:] if c.op != "T"])
    truncated = {c.schema.id for c in source.stream.changes[earlier:] if c.op == "T"}
    for table in source.tables:
        if table.schema.id in truncated:
            continue  # what remains after a truncate is another story
        for step in events.tables.get(table.schema.id, ()):
            assert isinstance(step, TableChanges)
            _apply_collapsed(tables[table.schema.id], step)
        assert content(tables[table.schema.id].rows) == content(table.rows)


def _copy(table: SourceTable) -> MemoryTable:
    copied = MemoryTable(table.schema)
    copied.put(dict(row) for row in table.rows)
    return copied


def _apply_collapsed(table: MemoryTable, changes: TableChanges) -> None:
    schema: TableSchema = table.schema
    if not schema.key_columns:
        added, removed = added_and_removed(changes)
        rows = table.rows + added.to_pylist()
        for gone in [] if removed is None else removed.to_pylist():
            rows.remove(gone)
        table.clear()
        table.put(rows)
        return
    collapsed = collapse(changes, schema.key_columns)
    by_key = {tuple(row[name] for name in schema.key_columns): row for row in table.rows}
    rows = collapsed.rows.to_pylist()
    lookup = collapsed.lookup.to_pylist() if collapsed.lookup is not None else [{}] * len(rows)
    for name, unknown in collapsed.unknown.items():
        for row, found, is_unknown in zip(rows, lookup, unknown, strict=True):
            if is_unknown:
                row[name] = by_key[tuple(found[key] for key in schema.key_columns)][name]
    gone_keys = [tuple(row.values()) for row in collapsed.removed.to_pylist()]
    assert len(set(gone_keys)) == len(gone_keys)
    kept = [row for key, row in by_key.items() if key not in gone_keys]
    table.clear()
    table.put(kept + rows)
