"""Columns of a Relation message find their attnums, or the table is called unclear."""

from __future__ import annotations

import pytest

from etl_dagster.model.schema import TableSchema
from etl_dagster.protocol.pgoutput import Relation, RelationColumn
from etl_dagster.runtime.tables.alignment import Unclear, align
from etl_dagster.source.columns import TableToday
from etl_dagster.values.columns import ColumnSchema

INT, TEXT = 23, 25


def table(columns: dict[int, str], type_oid: int = INT) -> TableSchema:
    described = tuple(
        ColumnSchema(name, type_oid, attnum=attnum, base_type_oid=type_oid)
        for attnum, name in columns.items()
    )
    return TableSchema(1, "public", "t", described)


def aligned(known: dict[int, str], sent: str, today: dict[int, str], last: int) -> list[int]:
    columns = tuple(RelationColumn(name, INT, -1, False) for name in sent)
    found = align(
        Relation(1, "public", "t", "d", columns),
        table(known),
        TableToday(table(today), frozenset(today), last),
    )
    assert [column.name for column in found] == list(sent)
    return [column.attnum for column in found]


@pytest.mark.parametrize(
    ("known", "sent", "today", "last", "attnums"),
    [
        ({1: "a", 2: "b"}, "ba", {1: "b", 2: "a"}, 2, [1, 2]),
        ({1: "a", 2: "b", 3: "c"}, "axc", {1: "a", 2: "y"}, 3, [1, 2, 3]),
        ({1: "a", 2: "b", 3: "c"}, "ac", {1: "a", 3: "c"}, 3, [1, 3]),
        ({1: "a", 2: "b"}, "abc", {1: "a", 3: "b"}, 3, [1, 2, 3]),
        ({1: "a", 2: "b"}, "abc", {1: "a", 2: "b", 3: "d", 4: "e"}, 4, [1, 2, 3]),
        ({1: "a"}, "ab", {1: "a"}, 2, [1, 2]),
    ],
    ids=["swapped", "dropped later", "dropped", "renamed later", "two added", "gone again"],
)
def test_columns_are_matched_if_there_is_one_reading(
    known: dict[int, str], sent: str, today: dict[int, str], last: int, attnums: list[int]
) -> None:
    assert aligned(known, sent, today, last) == attnums


@pytest.mark.parametrize(
    ("known", "sent", "today", "last"),
    [
        ({1: "a", 2: "b", 3: "c"}, "ab", {1: "a"}, 3),
        ({1: "a", 2: "b"}, "ab", {1: "a", 3: "b"}, 3),
        ({1: "a"}, "ab", {1: "a"}, 3),
        ({1: "a", 3: "c"}, "abc", {1: "a", 2: "b", 3: "c"}, 3),
    ],
    ids=["which was dropped", "dropped and created", "which was created", "published later"],
)
def test_columns_with_several_readings_are_refused(
    known: dict[int, str], sent: str, today: dict[int, str], last: int
) -> None:
    with pytest.raises(Unclear):
        aligned(known, sent, today, last)


def test_a_column_of_another_type_is_refused() -> None:
    sent = Relation(1, "public", "t", "d", (RelationColumn("a", TEXT, -1, False),))
    today = TableToday(table({1: "a"}, TEXT), frozenset({1}), 1)

    with pytest.raises(Unclear, match="another type"):
        align(sent, table({1: "a"}), today)
