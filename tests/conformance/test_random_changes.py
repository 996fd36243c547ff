"""Random changes, cut into batches at random and delivered again at random, end in what the
source has."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
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
from etl_dagster.testing.changes import (
    Row,
    SourceTable,
    Transactions,
    Unheld,
    batch,
    chunk,
    content,
    end_of_copy,
    order,
)
from etl_dagster.testing.quarantining import HOLDING
from etl_dagster.testing.random_changes import KINDS, NUMBERS, TEXTS, RandomSource
from etl_dagster.testing.subject import DestinationHooks, Subject
from tests.conformance.test_destinations import (
    TestDuckDBDestination,
    TestHttpDestination,
    TestMemoryDestination,
)

pytestmark = pytest.mark.slow

#: Not by these names: pytest would collect the suites twice.
SUITES: dict[str, type[DestinationHooks]] = {
    "memory": TestMemoryDestination,
    "duckdb": TestDuckDBDestination,
    "http": TestHttpDestination,
}
del TestMemoryDestination, TestDuckDBDestination, TestHttpDestination

_SMALL = st.sampled_from(NUMBERS)
_TEXT = st.sampled_from(TEXTS)
#: A statement: which table, what to do there, and numbers and texts to do it with.
_STATEMENT = st.tuples(
    st.integers(0, 3),
    st.sampled_from(KINDS),
    st.tuples(_SMALL, _SMALL),
    st.tuples(_TEXT, _TEXT),
)
_TRANSACTIONS = st.lists(st.lists(_STATEMENT, min_size=1, max_size=8), max_size=12)


@contextmanager
def _started(hooks: DestinationHooks) -> Iterator[Subject]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subject = Subject(hooks, hooks.make_destination(folder), folder)
        subject.start()
        yield subject
        subject.shut_down()


def _deliveries(data: st.DataObject, count: int) -> Iterator[tuple[int, int]]:
    """Stretches of the stream: each begins where a restart might, none leaves a gap."""
    done = 0
    while done < count:
        start = data.draw(st.integers(0, done), label="start")
        if data.draw(st.booleans(), label="continues"):
            start = done
        stop = data.draw(st.integers(start + 1, count), label="stop")
        yield start, stop
        done = max(done, stop)


@pytest.mark.parametrize("name", list(SUITES))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(transactions=_TRANSACTIONS, data=st.data())
def test_random_changes_end_in_what_the_source_has(
    name: str, transactions: list[list[Any]], data: st.DataObject
) -> None:
    source = RandomSource()
    source.run(transactions)
    changes = source.stream.changes
    with _started(SUITES[name]()) as subject:
        for start, stop in _deliveries(data, len(changes)):
            subject.destination.write_events(batch(changes[start:stop]))

        for table in source.tables:
            if any(change.schema.id == table.schema.id for change in changes):
                assert content(subject.rows(table.schema)) == content(table.rows)
        subject.has_recorded(changes)


@pytest.mark.parametrize("name", list(SUITES))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=_TRANSACTIONS, during=_TRANSACTIONS, after=_TRANSACTIONS)
def test_a_copy_whose_chunks_differ_in_time_is_right_after_the_replay(
    name: str, before: list[list[Any]], during: list[list[Any]], after: list[list[Any]]
) -> None:
    """A row may move between chunks: then both have it, or none. Its change is in the stream."""
    source = RandomSource(toast=False)
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
    with _started(SUITES[name]()) as subject:
        for schema in first:
            for index, rows in enumerate((first[schema], second[schema])):
                subject.destination.write_table_rows(schema, chunk("copy", index, schema, rows))
            subject.destination.write_table_rows(schema, end_of_copy("copy", slot_lsn))
        # The slot may send what was before it as well; that is skipped.
        subject.destination.write_events(batch(changes))

        for table in (orders, prices):
            assert content(subject.rows(table.schema)) == content(table.rows)


@pytest.mark.parametrize("name", ["memory", "duckdb"])
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    statements=st.lists(st.tuples(st.sampled_from("IIIUUUKKDT"), *[st.integers(0, 4)] * 3)),
    data=st.data(),
)
def test_random_rows_are_in_their_table_or_in_quarantine(
    name: str, statements: list[tuple[str, int, int, int]], data: st.DataObject
) -> None:
    source, stream = SourceTable(HOLDING, ["document"]), Transactions()
    for kind, first, second, third in statements:
        place = first % len(source.rows) if source.rows else 0
        amount = [None, Unheld("NaN")][second % 2]
        document = [None, "a", "b", Unheld("\\xFF"), Unheld("\\xFE")][third]
        if kind == "I":
            row = order(first, amount=amount, document=document)
            changes = [source.insert(row)]
        elif kind == "T":
            changes = [source.truncate()]
        elif not source.rows:
            continue
        elif kind == "D":
            changes = [source.delete(place)]
        else:
            key = {"id": second} if kind == "K" else {}
            # A document that isn't named is not sent.
            values = key | {"amount": amount} | ({"document": document} if third % 2 else {})
            changes = [source.update(place, values)]
        stream.commit(*(change for change in changes if change is not None))
    with _started(SUITES[name]()) as subject:
        subject.copy(HOLDING)
        for start, stop in _deliveries(data, len(stream.changes)):
            subject.destination.write_events(batch(stream.changes[start:stop]))

        held = [row for row in source.rows if row != _without_unheld(row)]
        there = [row for row in source.rows if row == _without_unheld(row)]
        assert content(subject.rows(HOLDING)) == content(there)
        assert content(subject.quarantined(HOLDING)) == content(map(_without_unheld, held))


def _without_unheld(row: Row) -> Row:
    return {name: None if isinstance(v, Unheld) else v for name, v in row.items()}


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=_TRANSACTIONS, during=_TRANSACTIONS)
def test_collapsed_changes_do_the_same_as_all_of_them(
    before: list[list[Any]], during: list[list[Any]]
) -> None:
    source = RandomSource()
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
