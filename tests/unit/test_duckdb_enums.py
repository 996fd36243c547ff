"""ENUM columns of a DuckDB file, whose labels follow the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.destinations.duckdb import DuckDBDestination, query
from etl_dagster.destinations.sql.labels import joined
from etl_dagster.model.schema import TableSchema
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    INT4,
    TEXT,
    Row,
    Transactions,
    batch,
    chunk,
    column,
    delete,
    end_of_copy,
    insert,
    table,
    update,
)
from etl_dagster.values.forms import with_labels
from etl_dagster.values.types import Enum

_MOOD = Enum(70_000, "mood", ("sad", "happy"))
_VALUES = table(
    [
        column("k", 70_000, 1, key=1, type=_MOOD, own_type=True),
        column("n", INT4, 2, key=2),
        column("m", 70_000, 3, type=_MOOD, nested="native", own_type=True),
        column("doc", TEXT, 4),
    ]
)


def labelled(*labels: str) -> TableSchema:
    columns = (with_labels(c, labels) if c.type is not None else c for c in _VALUES.columns)
    return replace(_VALUES, columns=tuple(columns))


def row(n: int, m: str | None, k: str = "sad") -> Row:
    return {"k": k, "n": n, "m": m, "doc": None}


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[DuckDBDestination]:
    destination = DuckDBDestination(tmp_path / "x.duckdb")
    destination.startup(MemoryStore())
    yield destination
    destination.shutdown()


def _sorted(destination: DuckDBDestination, by: str = "m, n") -> list[tuple[Any, ...]]:
    found = query(destination.path, f"select k, n, m from public.orders order by {by}")
    return [tuple(each.values()) for each in found.to_pylist()]


def _type(destination: DuckDBDestination, name: str = "m") -> str:
    found = query(
        destination.path,
        "select data_type from duckdb_columns() where table_name = 'orders' "
        f"and column_name = '{name}'",
    )
    return str(found.column(0)[0].as_py())


def test_labels_that_are_there_are_never_lost() -> None:
    assert joined(("a", "b"), ("a", "b"), ["b"]) == ("a", "b")
    assert joined(("a", "b"), ("a", "c", "b"), []) == ("a", "c", "b")
    # The schema is older than the table.
    assert joined(("a", "c", "b"), ("a", "b"), ["c"]) == ("a", "c", "b")
    assert joined(("a", "c", "b"), ("a", "b", "d"), ["x"]) == ("a", "c", "b", "d", "x")


def test_a_copy_holds_labels_that_were_added_while_it_ran(destination: DuckDBDestination) -> None:
    """Also where other chunks know of none of them, or of others."""
    rows = [row(1, "sad"), row(2, "so so"), row(3, None), row(4, "glad", k="glad")]
    destination.write_table_rows(_VALUES, chunk("c", 0, _VALUES, rows))
    destination.write_table_rows(_VALUES, chunk("c", 1, _VALUES, [row(5, "bad"), row(6, "sad")]))
    destination.write_table_rows(_VALUES, end_of_copy("c"))

    assert _type(destination) == "ENUM('sad', 'happy', 'so so', 'glad', 'bad')"
    assert [n for _, n, _ in _sorted(destination)] == [1, 6, 2, 4, 5, 3]

    # With the first change whose schema has them in their order, they sort by it.
    schema = labelled("bad", "sad", "so so", "glad", "happy")
    stream = Transactions()
    destination.write_events(batch(stream.commit(insert(schema, **row(7, "happy")))))
    assert _type(destination) == "ENUM('bad', 'sad', 'so so', 'glad', 'happy')"
    assert [n for _, n, _ in _sorted(destination)] == [5, 1, 6, 2, 4, 7, 3]
    assert _type(destination, "k") == "ENUM('bad', 'sad', 'so so', 'glad', 'happy')"


def test_many_small_tables_hold_them_too(destination: DuckDBDestination) -> None:
    rows = chunk("c", 0, _VALUES, [row(1, "sad"), row(2, "so so", k="glad")])
    destination.write_whole_tables([(_VALUES, rows)])
    assert _sorted(destination) == [("sad", 1, "sad"), ("glad", 2, "so so")]


def test_rows_are_found_by_a_label_that_is_new(destination: DuckDBDestination) -> None:
    destination.write_table_rows(_VALUES, chunk("c", 0, _VALUES, [row(1, "sad"), row(2, "happy")]))
    destination.write_table_rows(_VALUES, end_of_copy("c"))
    new = labelled("sad", "so so", "happy")
    stream = Transactions()
    sad = {"k": "sad"}
    destination.write_events(
        batch(
            stream.commit(
                update(new, old={**sad, "n": 1}, unchanged=["doc"], **(row(1, "so so", k="so so"))),
                insert(new, **row(3, None)),
            )
        )
    )
    expected = [("so so", 1, "so so"), ("sad", 2, "happy"), ("sad", 3, None)]
    assert _sorted(destination) == expected
    # Older than the table: what is there stays.
    old = stream.commit(delete(_VALUES, k="so so", n=1), insert(_VALUES, **row(4, "happy")))
    destination.write_events(batch(old))
    assert _sorted(destination) == [("sad", 2, "happy"), ("sad", 4, "happy"), ("sad", 3, None)]
    assert _type(destination) == "ENUM('sad', 'so so', 'happy')"
