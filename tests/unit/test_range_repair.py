"""Rows that differ become the source's, whatever the destination had, and no other is written."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import DestinationUnreachable, TableRewritten
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import CopiedRows, TableChanges
from etl_dagster.runtime.comparing.range_repair import NotByRange, RangeRepair
from etl_dagster.runtime.comparing.sides import Hashed
from etl_dagster.testing.changes import PRICES, Row, arrow_rows, chunk, content, end_of_copy
from etl_dagster.values.digest import RowHashes, hash_rows

TARGET = PRICES


class Sides:
    """A source in memory, and a destination that is one."""

    target = TARGET

    def __init__(self, source: list[Row], destination: MemoryDestination) -> None:
        self._source = source
        self._destination = destination
        self.source_reads = 0

    def source(self, snapshot_name: str) -> Iterator[Hashed]:
        self.source_reads += 1
        for first in range(0, len(self._source), 7):
            yield self._hashed(arrow_rows(TARGET, self._source[first : first + 7]))

    def destination(self) -> Iterator[Hashed]:
        with self._destination.read_rows(TARGET) as batches:
            for batch in batches:
                yield self._hashed(batch)

    def destination_hashes(self) -> Iterator[RowHashes]:
        return (RowHashes(each.keys, each.hashes) for each in self.destination())

    def hash_keys(self, rows: Any) -> Any:
        return hash_rows(rows, TARGET.key_columns)

    def _hashed(self, rows: Any) -> Hashed:
        keys = hash_rows(rows, TARGET.key_columns)
        return Hashed(keys, hash_rows(rows, TARGET.column_names), CopiedRows(rows))


def price(sku: str, region: int, price: int | None) -> Row:
    return {"sku": sku, "region": region, "price": price}


def destination_with(rows: list[Row]) -> MemoryDestination:
    made = MemoryDestination()
    made.write_table_rows(TARGET, chunk("copy", 0, TARGET, rows))
    made.write_table_rows(TARGET, end_of_copy("copy"))
    made.begin_repair(TARGET, "repair")
    return made


def repair(
    source: list[Row], destination: MemoryDestination, **options: Any
) -> tuple[RangeRepair, int]:
    written = 0

    def write(changes: TableChanges) -> None:
        nonlocal written
        written += len(changes)
        destination.write_repair(changes, "repair")

    sides: Any = Sides(source, destination)
    made = RangeRepair(sides, lsn=Lsn(100), write=write, **options)
    made.run("a snapshot")
    return made, written


@pytest.mark.parametrize("seed", range(20))
def test_only_rows_that_differ_are_replaced(seed: int) -> None:
    random = Random(seed)
    source = [price(f"s{i % 9}", i, random.choice([None, i])) for i in range(random.randrange(80))]
    there = [dict(row) for row in source]
    gone = random.sample(range(len(there)), len(there) // 5)
    other = [place for place in range(len(there)) if place not in gone][: len(there) // 4]
    for place in other:
        there[place]["price"] = -1
    extra = [price("", -i, i) for i in range(random.randrange(5))]
    destination = destination_with([r for i, r in enumerate(there) if i not in gone] + extra)
    done, written = repair(source, destination, rows_at_once=40, most_parts=99)

    assert content(destination.rows(TARGET.name)) == content(source)
    assert done.counts.totals == (len(gone), len(extra), len(other))
    assert written == len(gone) + len(extra) + len(other)
    assert done.source_rows == len(source)


def test_the_source_is_read_once_where_nothing_differs() -> None:
    rows = [price("a", i, i) for i in range(30)]
    sides: Any = Sides(rows, destination_with(rows))
    made = RangeRepair(sides, lsn=Lsn(100), write=lambda changes: pytest.fail("written"))
    made.run("a snapshot")

    assert sides.source_reads == 1
    assert made.counts.differing() == ()


def test_a_table_that_differs_everywhere_is_left_to_a_copy() -> None:
    rows = [price("a", i, i) for i in range(30)]
    with pytest.raises(NotByRange, match="a copy takes less time"):
        repair(rows, destination_with([]), rows_at_once=5, most_parts=2)


def test_a_rewritten_table_is_left_to_a_copy_but_an_unreachable_destination_is_not() -> None:
    class Failing(Sides):
        def __init__(self, error: Exception) -> None:
            super().__init__([], destination_with([]))
            self._error = error

        def destination(self) -> Iterator[Hashed]:
            raise self._error
            yield

    def run(error: Exception) -> None:
        sides: Any = Failing(error)
        RangeRepair(sides, lsn=Lsn(100), write=lambda changes: None).run("a snapshot")

    with pytest.raises(NotByRange, match="other columns"):
        run(TableRewritten("it has other columns"))
    with pytest.raises(DestinationUnreachable):
        run(DestinationUnreachable("gone"))
