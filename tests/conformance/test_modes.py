"""Every mode keeps the same in a database as its slow twin in memory does, event by event."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from etl_dagster.model.modes import TableMode
from etl_dagster.testing.changes import Change, batch, content, end_of_copy
from etl_dagster.testing.random_changes import RandomSource, random_transactions
from etl_dagster.testing.subject import DestinationHooks, Subject
from tests.conformance.test_destinations import TestDuckDBDestination, TestMemoryDestination

#: Not by these names: pytest would collect the suites once more.
MEMORY: type[DestinationHooks] = TestMemoryDestination
DUCKDB: type[DestinationHooks] = TestDuckDBDestination
del TestMemoryDestination, TestDuckDBDestination

#: What a table without a key is kept in, where the mode needs one.
_KEYLESS: dict[TableMode, TableMode] = {"soft_delete": "mirror", "scd2": "append"}


class SourceInMode(RandomSource):
    """The tables of a `RandomSource`, kept in one mode as far as they can be."""

    def __init__(self, mode: TableMode) -> None:
        super().__init__()
        for table in self.tables:
            schema = table.schema
            kept = mode if schema.key_columns else _KEYLESS.get(mode, mode)
            table.schema = replace(schema, mode=kept)

    def _statement(self, number: int, *statement: Any) -> Change | None:
        # Visits have no identity: Postgres refuses to change or delete them.
        is_refused = number == 2 and statement[0] not in "IT"
        return None if is_refused else super()._statement(number, *statement)


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


@pytest.mark.parametrize("mode", ["soft_delete", "append", "scd2"])
@pytest.mark.parametrize("seed", range(3))
def test_random_changes_and_copies_leave_the_same_in_duckdb_as_in_memory(
    mode: TableMode, seed: int
) -> None:
    """A copy, changes that are cut and sent again at random, a new copy, and more of them."""
    random, source = Random(seed), SourceInMode(mode)
    with started(MEMORY()) as memory, started(DUCKDB()) as duckdb:
        for copy_id in ("copy-1", "copy-2"):
            for subject in (memory, duckdb):
                copy_all(source, subject, copy_id)
            first = len(source.stream.changes)
            source.run(random_transactions(random))
            changes = source.stream.changes[first:]
            deliver(random, duckdb, changes)
            memory.write_batch(batch(changes))
        for table in source.tables:
            schema = table.schema
            assert content(duckdb.kept(schema)) == content(memory.kept(schema)), schema.name
            is_there = [row for row in memory.kept(schema) if _is_current(mode, row)]
            if schema.key_columns and mode != "append":
                names = schema.column_names
                now = [{name: row[name] for name in names} for row in is_there]
                assert content(now) == content(table.rows), schema.name


def _is_current(mode: TableMode, row: dict[str, Any]) -> bool:
    if mode == "soft_delete":
        return row.get("_etl_deleted_at") is None
    return bool(row.get("_etl_is_current"))
