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
    """The columns that stay at the destination though the source has none, after a change.

    A new column is added with the next rows. One that is gone stays, and is null in rows that come
    from then on.

    Args:
        dropped: those before.

    Raises:
        RowsOutdated: the change is none that dlt can make to a table with rows.
    """
    table = new.source
    if old.key != new.key:
        raise _outdated(new, "its key is another")
    gone = list(dropped)
    for change in schema_changes(old.source, table):
        match change:
            case MoveTable():
                raise _outdated(new, f"it was called {old.source.name}")
            case RenameColumn(before, after):
                raise _outdated(new, f"column {before!r} is called {after!r} now")
            case ChangeColumnType(before, after):
                kinds = (
                    old.arrow.field(old.there[before.name]).type,
                    new.arrow.field(new.there[after.name]).type,
                )
                if kinds[0] != kinds[1]:
                    raise _outdated(new, f"column {after.name!r} has another type")
            case DropColumn(column):
                gone.append(old.there[column.name])
            case AddColumn(column):
                if new.there[column.name] in gone:
                    raise _outdated(
                        new,
                        f"column {column.name!r} is new, and the destination still has the values "
                        "of one that was called so before",
                    )
    return tuple(gone)


def _outdated(shape: LoadedTable, why: str) -> RowsOutdated:
    return RowsOutdated(
        shape.source.id, f"{shape.source.name}: {why}, which dlt can't do to a table that has rows"
    )
