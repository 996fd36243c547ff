"""What every mode does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Generic, TypeVar

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.sql.dialect import ZONED, Dialect
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.model.events import TableChanges, TruncateEvent
from etl_dagster.model.modes import ADDED_COLUMNS, TableMode
from etl_dagster.model.position import Position

PreparedT = TypeVar("PreparedT")


class Mode(ABC, Generic[PreparedT]):
    """Applies changes of one table. `change` and `truncate` return how many of its rows they made
    obsolete: deleted them, or wrote them again."""

    name: ClassVar[TableMode]
    #: Whether a truncate removes the rows, instead of keeping them in some form.
    forgets: ClassVar[bool] = False
    #: Whether a key has at most one row, so that its odd values are found by the key.
    has_one_row_each: ClassVar[bool] = False

    def whole(self, target: Target) -> Target:
        """The table with the columns that the mode adds."""
        return replace(target, added=added_types(target.dialect, self.name))

    @abstractmethod
    def prepare(self, changes: TableChanges, after: Position) -> PreparedT:
        """What the changes amount to.

        Args:
            changes: all of them, in order, under the table's schema.
            after: the position of the table, which may be inside of the first transaction.
        """

    @abstractmethod
    def change(
        self, session: Session, target: Target, changes: TableChanges, prepared: PreparedT
    ) -> int:
        """Apply inserts, updates and deletes.

        Raises:
            TableWriteFailed: the changes can't be applied to such a table.
        """

    @abstractmethod
    def follow_odd(
        self,
        odd: OddValues,
        target: Target,
        changes: TableChanges,
        prepared: PreparedT,
        *,
        has_entries: bool,
    ) -> bool:
        """Let the entries of odd values follow what the changes did with their rows.

        Returns:
            Whether there may be entries now.
        """

    @abstractmethod
    def truncate(
        self, session: Session, target: Target, event: TruncateEvent, after: Position
    ) -> int:
        """Apply a truncate."""

    def begin(self, dialect: Dialect, copy: CopyMoment) -> dict[str, str | None]:
        """The values of added columns in all rows of a table's first copy, as text."""
        raise NotImplementedError

    def join(
        self, session: Session, target: Target, staging: Target, copy: CopyMoment, is_odd: str
    ) -> None:
        """Bring the table, which has rows from before, up to a new copy.

        Args:
            target: under the schema that `staging` has.
            staging: the rows of the copy; they are not a table of their own afterwards.
            is_odd: the condition under which a row called `copied` may have, or have had, values
                that their columns' types can't hold.
        """
        raise NotImplementedError


def added_types(dialect: Dialect, mode: TableMode) -> dict[str, str]:
    """By name, the types of the columns that a mode adds."""
    types = {
        "_etl_deleted_at": ZONED,
        "_etl_op": "VARCHAR",
        "_etl_commit_lsn": dialect.uint64,
        "_etl_ordinal": "BIGINT",
        "_etl_commit_time": ZONED,
        "_etl_xid": dialect.uint32,
        "_etl_before": "JSON",
        "_etl_unchanged": "VARCHAR[]",
        "_etl_valid_from": ZONED,
        "_etl_valid_to": ZONED,
        "_etl_is_current": "BOOLEAN",
    }
    return {name: types[name] for name in ADDED_COLUMNS[mode]}
