"""The changes of a schema are told apart and ordered so that each can be made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.destinations.evolution import (
    AddColumn,
    ChangeColumnType,
    DropColumn,
    MoveTable,
    RenameColumn,
    schema_changes,
)
from etl_dagster.testing.changes import INT4, INT8, TEXT, column, table

ID = column("id", INT8, 1, key=1)
OLD = table([ID, column("note", TEXT, 2), column("amount", INT4, 3)])


def test_an_equal_schema_needs_no_change() -> None:
    assert schema_changes(OLD, OLD) == []


def test_the_same_attribute_number_under_another_name_is_a_rename() -> None:
    new = table([ID, column("comment", TEXT, 2), column("amount", INT4, 3)])

    assert schema_changes(OLD, new) == [RenameColumn("note", "comment")]


def test_the_same_name_with_another_attribute_number_is_another_column() -> None:
    new = table([ID, column("note", TEXT, 9), column("amount", INT4, 3)])

    assert schema_changes(OLD, new) == [DropColumn(OLD.columns[1]), AddColumn(new.columns[1])]


def test_without_attribute_numbers_names_tell_columns_apart() -> None:
    new = table([ID, column("note", TEXT, 0), column("amount", INT8, 0)])

    assert schema_changes(OLD, new) == [ChangeColumnType(OLD.columns[2], new.columns[2])]


def test_a_renamed_column_may_also_change_its_type() -> None:
    new = table([ID, column("note", TEXT, 2), column("total", INT8, 3)], name="purchases")

    assert schema_changes(OLD, new) == [
        MoveTable(OLD, new),
        RenameColumn("amount", "total"),
        ChangeColumnType(OLD.columns[2], new.columns[2]),
    ]


@given(st.permutations("abcdef"), st.integers(0, 6))
def test_columns_may_exchange_their_names_in_any_way(names: list[str], kept: int) -> None:
    """Each step has to find its column, and its new name free."""
    old = table([column(name, TEXT, number + 1) for number, name in enumerate("abcdef")])
    new = table([column(name, TEXT, number + 1) for number, name in enumerate(names[:kept])])
    columns = {c.name: c.attnum for c in old.columns}

    for change in schema_changes(old, new):
        match change:
            case DropColumn(dropped):
                del columns[dropped.name]
            case RenameColumn(before, after):
                assert after not in columns
                columns[after] = columns.pop(before)
            case _:
                raise AssertionError(change)

    assert columns == {c.name: c.attnum for c in new.columns}
