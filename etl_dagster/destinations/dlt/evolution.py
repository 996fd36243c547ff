"""Which changes of a table's schema dlt follows, and which need a new copy."""

from __future__ import annotations

from etl_dagster.destinations.dlt.rows import LoadedTable
from etl_dagster.destinations.evolution import (
    AddColumn,
    ChangeColumnType,
    DropColumn,
    MoveTable,
    RenameColumn,
    schema_changes,
)
from etl_dagster.errors import RowsOutdated


def dropped_after(old: LoadedTable, new: LoadedTable, dropped: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that the source no longer has after a change, and the destination keeps.

    A new column is added with the next rows. A dropped one stays, and is null in later rows.

    Args:
        dropped: these columns before the change.

    Raises:
        RowsOutdated: dlt can't make the change to a table that has rows.
    """
    table = new.source
    if old.key != new.key:
        raise _outdated(new, "it has another key now")
    gone = list(dropped)
    for change in schema_changes(old.source, table):
        match change:
            case MoveTable():
                raise _outdated(new, f"it was called {old.source.name}")
            case RenameColumn(before, after):
                raise _outdated(new, f"column {before!r} is called {after!r} now")
            case ChangeColumnType(before, after):
                kinds = (
                    old.arrow.field(old.loaded_name[before.name]).type,
                    new.arrow.field(new.loaded_name[after.name]).type,
                )
                if kinds[0] != kinds[1]:
                    raise _outdated(new, f"column {after.name!r} has another type")
            case DropColumn(column):
                gone.append(old.loaded_name[column.name])
            case AddColumn(column):
                if new.loaded_name[column.name] in gone:
                    raise _outdated(
                        new,
                        f"column {column.name!r} is new, and the destination still has the values "
                        "of one that had this name before",
                    )
    return tuple(gone)


def _outdated(shape: LoadedTable, why: str) -> RowsOutdated:
    return RowsOutdated(
        shape.source.id, f"{shape.source.name}: {why}; dlt can't change that in a table with rows"
    )
