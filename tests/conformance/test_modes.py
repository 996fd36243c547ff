"""Every mode keeps the same in a database as its slow twin in memory does, event by event."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.model.modes import TableMode
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import Change, Row, Unheld, batch, content, end_of_copy
from etl_dagster.testing.random_changes import random_transactions
from etl_dagster.testing.subject import DestinationHooks, Subject
from tests.conformance.test_destinations import (
    Idle,
    TestDuckDBDestination,
    TestMemoryDestination,
    TestPostgresDestination,
)
from tests.support.random_histories import SourceInMode

#: Not by these names: pytest would collect the suites twice.
MEMORY: type[DestinationHooks] = TestMemoryDestination
DUCKDB: type[DestinationHooks] = TestDuckDBDestination
POSTGRES = TestPostgresDestination
del TestMemoryDestination, TestDuckDBDestination, TestPostgresDestination


@contextmanager
def started(hooks: DestinationHooks) -> Iterator[Subject]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subject = Subject(hooks, hooks.make_destination(folder), folder)
        subject.start()
        yield subject
        subject.shut_down()


def copy_all(source: SourceInMode, subject: Subject, copy_id: str) -> None:
    """Copy every table as it is now; what was committed before is part of the copy."""
    replay_from = source.stream.next_lsn.offset
    for table in source.tables:
        schema = table.schema
        subject.destination.drop_table_for_copy(schema)
        subject.write_chunk(schema, 0, list(table.rows), copy_id=copy_id)
        end = end_of_copy(copy_id, replay_from, copied_at_us=replay_from - 50)
        subject.write_rows(schema, end)


def deliver(random: Random, subject: Subject, changes: list[Change]) -> None:
    """In stretches, each of which begins where a restart might, and none leaves a gap."""
    done = 0
    while done < len(changes):
        start = done if random.random() < 0.7 else random.randint(0, done)
        stop = random.randint(start + 1, len(changes))
        subject.write_batch(batch(changes[start:stop]))
        done = max(done, stop)


def have_the_same(subject: Subject, memory: Subject, source: SourceInMode, mode: TableMode) -> None:
    """Rows and odd values are the same in both, and the current rows are the source's."""
    for table in source.tables:
        schema = table.schema
        assert content(subject.kept(schema)) == content(memory.kept(schema)), schema.name
        assert odd_values(subject, schema) == odd_values(memory, schema), schema.name
        if schema.key_columns and mode != "append":
            names = schema.column_names
            is_there = [row for row in memory.kept(schema) if _is_current(mode, row)]
            now = [{name: row[name] for name in names} for row in is_there]
            held = memory.readable(schema, list(map(_held, table.rows)))
            assert content(now) == content(held), schema.name


def odd_values(subject: Subject, schema: TableSchema) -> list[str]:
    found = subject.hooks.read_odd_values(subject.destination, schema)
    # In SQL the key is kept as text.
    return sorted(repr((list(map(str, key.values())), name, text)) for key, name, text in found)


def _held(row: Row) -> Row:
    return {name: None if isinstance(v, Unheld) else v for name, v in row.items()}


def _is_current(mode: TableMode, row: dict[str, Any]) -> bool:
    if mode == "soft_delete":
        return row.get("_etl_deleted_at") is None
    return bool(row.get("_etl_is_current"))


def compare(
    subject: Subject, memory: Subject, mode: TableMode, seed: int, *, alters_first: bool = True
) -> None:
    """A copy, changes that are cut and sent again at random, a new copy, and more of them.

    Args:
        alters_first: whether columns change before the new copy, too.
    """
    random, source = Random(seed), SourceInMode(mode)
    for copy_id in ("copy-1", "copy-2"):
        for each in (memory, subject):
            copy_all(source, each, copy_id)
        first = len(source.stream.changes)
        alters = alters_first or copy_id == "copy-2"
        source.run(random_transactions(random))
        source.run_facts(random, 12, alters=alters)
        changes = source.stream.changes[first:]
        deliver(random, subject, changes)
        memory.write_batch(batch(changes))
    have_the_same(subject, memory, source, mode)


@pytest.mark.parametrize("mode", ["soft_delete", "append", "scd2"])
@pytest.mark.parametrize("seed", range(2))
def test_random_changes_and_copies_leave_the_same_in_duckdb_as_in_memory(
    mode: TableMode, seed: int
) -> None:
    with started(MEMORY()) as memory, started(DUCKDB()) as duckdb:
        compare(duckdb, memory, mode, seed)


@pytest.mark.parametrize("mode", ["soft_delete", "append", "scd2"])
def test_random_changes_and_copies_leave_the_same_in_postgres_as_in_memory(
    mode: TableMode, newest_server: EmbeddedPostgres
) -> None:
    hooks = POSTGRES()
    with ExitStack() as made:
        hooks.databases, hooks.server, hooks.idle = {}, newest_server, Idle(made)
        with started(MEMORY()) as memory, started(hooks) as postgres:
            compare(postgres, memory, mode, 3)
