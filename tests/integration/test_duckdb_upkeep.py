"""Rows that are too large for DuckDB's WAL go to their place in the file at once, and only once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination, query
from etl_dagster.destinations.duckdb.upkeep import Bounds
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.events import EventBatch
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    INT8,
    ORDERS,
    TEXT,
    Transactions,
    batch,
    column,
    delete,
    end_of_copy,
    insert,
    order,
    table,
)

_ROWS, _BATCHES = 30, 8
_TEXT = "x" * 1000
#: Refused by DuckDB, whose columns `a` and `A` would be one.
REFUSED = table(
    [column("id", INT8, 1, key=1), column("a", TEXT, 2), column("A", INT4, 3)],
    table_id=16500,
    name="refused",
)
#: Bounds by which even small batches count as large.
SMALL = Bounds(min_bytes=1000)


def full_batches(count: int = _BATCHES, text: str = _TEXT) -> Iterator[EventBatch]:
    """Batches of one long transaction, as they come while the stream catches up."""
    rows = [insert(ORDERS, **order(number, text)) for number in range(_ROWS * count)]
    changes = Transactions().commit(*rows)
    for first in range(0, len(changes), _ROWS):
        yield replace(batch(changes[first : first + _ROWS]), more_follows=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "warehouse.duckdb"


@pytest.fixture
def destination(path: Path) -> Iterator[DuckDBDestination]:
    destination = opened(path)
    yield destination
    destination.shutdown()


def opened(path: Path, bounds: Bounds = SMALL) -> DuckDBDestination:
    destination = DuckDBDestination(path, bounds=bounds)
    destination.startup(MemoryStore())
    destination.write_table_rows(ORDERS, end_of_copy("copy"))
    return destination


def row_groups(path: Path) -> list[int]:
    """Rows in each row group of the table."""
    found = query(
        path,
        "SELECT sum(count)::BIGINT AS rows FROM pragma_storage_info('public.orders') "
        "WHERE column_name = 'id' AND segment_type <> 'VALIDITY' GROUP BY row_group_id "
        "ORDER BY row_group_id",
    )
    return [row["rows"] for row in found.to_pylist()]


def test_full_batches_of_large_rows_leave_nothing_in_the_wal(
    destination: DuckDBDestination, path: Path
) -> None:
    wal = Path(f"{path}.wal")
    sizes = []
    for events in full_batches():
        destination.write_events(events)
        sizes.append(wal.stat().st_size if wal.exists() else 0)

    assert max(sizes) < _ROWS * len(_TEXT)


def test_rows_are_not_merged_while_the_stream_catches_up(
    destination: DuckDBDestination, path: Path
) -> None:
    for events in full_batches():
        destination.write_events(events)
    destination.shutdown()

    assert row_groups(path) == [_ROWS] * _BATCHES


def test_row_groups_are_merged_once_the_stream_has_caught_up(
    path: Path,
) -> None:
    destination = opened(path, replace(SMALL, closes_before_merge=1))
    for events in full_batches():
        destination.write_events(events)
    destination.write_events(replace(events, more_follows=False))
    destination.shutdown()

    assert row_groups(path) == [_ROWS * _BATCHES]


def test_small_values_of_several_full_batches_share_a_row_group(
    path: Path,
) -> None:
    """Each column takes room of its own in each row group, however little it holds."""
    destination = opened(path, replace(SMALL, min_bytes_per_value=10 * len(_TEXT)))
    for events in full_batches():
        destination.write_events(events)
    destination.shutdown()

    assert row_groups(path) == [_ROWS * _BATCHES]


@pytest.mark.parametrize("limit", [100_000, 4_000_000], ids=["at once", "while it merges"])
def test_a_merge_without_enough_memory_loses_nothing_and_is_made_up_for_later(
    path: Path, limit: int
) -> None:
    destination = opened(path, replace(SMALL, merge_memory_bytes=limit))
    *batches, before_last, last = full_batches(text="x" * 100_000)
    for events in batches:
        destination.write_events(events)
    file = destination._file
    file.upkeep.bounds = replace(file.upkeep.bounds, closes_before_merge=1)
    destination.write_events(replace(before_last, more_follows=False))
    destination.shutdown()
    groups = row_groups(path)
    assert len(groups) > 1
    assert sum(groups) == _ROWS * (_BATCHES - 1)

    destination.write_events(replace(last, more_follows=False))
    destination.shutdown()

    assert row_groups(path) == [_ROWS * _BATCHES]


def test_space_of_deleted_rows_is_reused_while_the_stream_catches_up(
    path: Path,
) -> None:
    destination = opened(path, replace(SMALL, row_group=_ROWS))
    stream = Transactions()
    for first in range(0, 4 * _ROWS, _ROWS):
        rows = [insert(ORDERS, **order(first + number, _TEXT)) for number in range(_ROWS)]
        destination.write_events(replace(batch(stream.commit(*rows)), more_follows=True))
    gone = [delete(ORDERS, id=number) for number in range(0, 4 * _ROWS, 2)]
    destination.write_events(replace(batch(stream.commit(*gone)), more_follows=True))
    destination.shutdown()

    assert sum(row_groups(path)) < 4 * _ROWS


def test_a_table_that_refuses_is_named_and_the_others_lose_nothing(
    destination: DuckDBDestination, path: Path
) -> None:
    first, second, *_ = full_batches()
    destination.write_events(first)
    refused = batch(Transactions().commit(insert(REFUSED, id=1, a="", A=1)))
    both = replace(second, tables={**second.tables, **refused.tables})

    with pytest.raises(TableWriteFailed) as caught:
        destination.write_events(both)
    assert caught.value.table_id == REFUSED.id
    destination.write_events(second)

    destination.shutdown()
    assert row_groups(path) == [_ROWS, _ROWS]


def test_a_kill_between_two_batches_loses_and_doubles_nothing(path: Path) -> None:
    """The batches belong to one transaction of the source; all of them come again."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.integration.test_duckdb_upkeep import full_batches, opened\n"
        "destination = opened(Path(sys.argv[1]))\n"
        "for events in full_batches():\n"
        "    destination.write_events(events)\n"
        "    print('durable', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "durable\n"
        process.kill()
    with duckdb.connect(str(path), read_only=True) as connection:
        [(count,)] = connection.execute("SELECT count(*) FROM public.orders").fetchall()
    assert count >= 3 * _ROWS
    assert count % _ROWS == 0

    destination = opened(path)
    for events in full_batches():
        destination.write_events(events)
    destination.shutdown()
    found = query(path, "SELECT count(*) AS rows, count(DISTINCT id) AS ids FROM public.orders")
    assert found.to_pylist() == [{"rows": _ROWS * _BATCHES, "ids": _ROWS * _BATCHES}]
