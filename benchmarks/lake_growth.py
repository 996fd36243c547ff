"""How a lake grows by many small batches, with small writes kept in its catalog and without.

    PYTHONPATH=.venv/ducklake-1.5.5 .venv/bin/python -m benchmarks.lake_growth

What counts is ratios: files for each batch, bytes of data for each byte of the same rows in the
files of one copy, and bytes of the catalog for each of the former. The DuckDB that it
needs is installed by ``make test-ducklake``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from etl_dagster.destinations.ducklake import DuckLakeDestination
from etl_dagster.destinations.ducklake.attaching import LakePlace
from etl_dagster.destinations.ducklake.catalogs import parse_catalog
from etl_dagster.destinations.ducklake.lake import Lake
from etl_dagster.destinations.ducklake.maintenance import Maintainer
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    ORDERS,
    Change,
    Row,
    Transactions,
    batch,
    chunk,
    end_of_copy,
    insert,
    order,
    update,
)

#: Rows of a batch; every other one is updated by the next batch.
_ROWS = 10
#: By which maintenance deletes what no snapshot needs any more.
_LATER = timedelta(days=2)


@dataclass(frozen=True)
class Size:
    """What is in the folder of the data, and in the file of the catalog."""

    files: int
    data_bytes: int
    catalog_bytes: int

    @classmethod
    def of(cls, folder: Path) -> Size:
        data = [path.stat().st_size for path in (folder / "data").rglob("*") if path.is_file()]
        catalog = sum(path.stat().st_size for path in folder.glob("catalog*"))
        return cls(len(data), sum(data), catalog)


def _row(number: int, note: str) -> Row:
    return order(number, f"{note} of the order {number * 7919 % 104729}")


def _batches(count: int) -> list[list[Change]]:
    return [
        [
            *(insert(ORDERS, **_row(n, "new")) for n in range(first, first + _ROWS)),
            *(update(ORDERS, **_row(n, "sent")) for n in range(max(first - _ROWS, 0), first, 2)),
        ]
        for first in range(0, count * _ROWS, _ROWS)
    ]


def _place(folder: Path, inline_rows: int) -> LakePlace:
    catalog = parse_catalog(f"duckdb:{folder / 'catalog.duckdb'}", None)
    return LakePlace(catalog, str(folder / "data"), inline_rows=inline_rows, memory_limit="512MB")


def _started(place: LakePlace) -> DuckLakeDestination:
    destination = DuckLakeDestination(place)
    destination.startup(MemoryStore())
    return destination


def at_once(count: int, folder: Path) -> Size:
    """The rows that there are in the end, copied into an empty lake."""
    destination, last = _started(_place(folder, 0)), (count - 1) * _ROWS
    rows = [_row(n, "sent" if n < last and n % 2 == 0 else "new") for n in range(count * _ROWS)]
    destination.drop_table_for_copy(ORDERS)
    destination.write_table_rows(ORDERS, chunk("copy", 0, ORDERS, rows))
    destination.write_table_rows(ORDERS, end_of_copy("copy"))
    destination.shutdown()
    return Size.of(folder)


def in_batches(count: int, folder: Path, inline_rows: int) -> tuple[Size, Size]:
    """The same by small batches, before and after maintenance."""
    place, stream = _place(folder, inline_rows), Transactions()
    destination = _started(place)
    for changes in _batches(count):
        destination.write_events(batch(stream.commit(*changes)))
    destination.shutdown()
    before = Size.of(folder)
    # The first makes small files one; the second, a while later, deletes them.
    for later in (timedelta(0), _LATER):
        lake = Lake(place, timeout_s=60)
        Maintainer(
            lake, older_than=timedelta(0), now=lambda later=later: datetime.now(UTC) + later
        ).run()
    return before, Size.of(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=1000)
    count: int = parser.parse_args(arguments).batches
    table = Table(title=f"{count} batches of {_ROWS} new rows and {_ROWS // 2} updates")
    for heading in ("inline_rows", "", "files", "files a batch", "data", "catalog"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    with tempfile.TemporaryDirectory() as name:
        (folder := Path(name) / "at_once").mkdir()
        one = at_once(count, folder)
        for inline_rows in (0, 1000):
            (folder := Path(name) / f"inline_{inline_rows}").mkdir()
            for when, size in zip(
                ("before", "maintained"), in_batches(count, folder, inline_rows), strict=True
            ):
                table.add_row(
                    str(inline_rows),
                    when,
                    f"{size.files:,}",
                    f"{size.files / count:.3f}",
                    f"{size.data_bytes / one.data_bytes:.2f}",
                    f"{size.catalog_bytes / one.catalog_bytes:.2f}",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
