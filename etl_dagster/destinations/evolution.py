"""What has to change at a destination when a table's schema changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from etl_dagster.model.schema import ColumnSchema, TableSchema


@dataclass(frozen=True, slots=True)
class MoveTable:
    """The table has another name, or is in another schema."""

    old: TableSchema
    new: TableSchema


@dataclass(frozen=True, slots=True)
class DropColumn:
    column: ColumnSchema


@dataclass(frozen=True, slots=True)
class RenameColumn:
    old_name: str
    new_name: str


@dataclass(frozen=True, slots=True)
class ChangeColumnType:
    """The column, named as it is after all renames, has another type."""

    old: ColumnSchema
    new: ColumnSchema


@dataclass(frozen=True, slots=True)
class AddColumn:
    column: ColumnSchema


SchemaChange: TypeAlias = MoveTable | DropColumn | RenameColumn | ChangeColumnType | AddColumn


def schema_changes(old: TableSchema, new: TableSchema) -> list[SchemaChange]:
    """The changes that lead from one schema to the other, in an order in which they can be made.

    Columns are the same when their attnum is; where one side doesn't know it (0), when their name
    is. Names may be swapped among columns: then a column takes a free name on its way.
    """
    pairs = _pair(old.columns, new.columns)
    kept = {id(before) for before, _ in pairs}
    added = {id(after) for _, after in pairs}
    changes: list[SchemaChange] = []
    if old.name != new.name:
        changes.append(MoveTable(old, new))
    changes += [DropColumn(column) for column in old.columns if id(column) not in kept]
    changes += _renames([(before.name, after.name) for before, after in pairs])
    changes += [
        ChangeColumnType(before, after)
        for before, after in pairs
        if (before.effective_type_oid, before.type_modifier)
        != (after.effective_type_oid, after.type_modifier)
    ]
    changes += [AddColumn(column) for column in new.columns if id(column) not in added]
    return changes


def _pair(
    old: Sequence[ColumnSchema], new: Sequence[ColumnSchema]
) -> list[tuple[ColumnSchema, ColumnSchema]]:
    numbered = all(column.attnum for column in (*old, *new))
    before = {column.attnum if numbered else column.name: column for column in old}
    keyed = ((column.attnum if numbered else column.name, column) for column in new)
    return [(before[key], column) for key, column in keyed if key in before]


def _renames(pairs: list[tuple[str, str]]) -> list[SchemaChange]:
    taken = {old for old, _ in pairs}
    todo = [(old, new) for old, new in pairs if old != new]
    steps: list[SchemaChange] = []
    while todo:
        free = next((pair for pair in todo if pair[1] not in taken), None)
        if free is None:
            # Only cycles are left, such as two columns that swapped their names.
            old, new = todo.pop()
            aside = f"{old}__renaming"
            while aside in taken:
                aside += "_"
            steps.append(RenameColumn(old, aside))
            todo.append((aside, new))
            taken = (taken - {old}) | {aside}
        else:
            todo.remove(free)
            steps.append(RenameColumn(*free))
            taken = (taken - {free[0]}) | {free[1]}
    return steps
