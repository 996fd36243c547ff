"""Keeps what the source has now."""

from __future__ import annotations

from typing import ClassVar

from etl_dagster.destinations.collapse import Collapsed, added_and_removed, collapse
from etl_dagster.destinations.sql import statements
from etl_dagster.destinations.sql.in_place import change_in_place
from etl_dagster.destinations.sql.modes.base import Mode
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.events import TableChanges, TruncateEvent
from etl_dagster.model.modes import TableMode
from etl_dagster.model.position import Position


def replace_rows(session: Session, target: Target, collapsed: Collapsed) -> int:
    """Delete the rows whose keys were touched, and append those that there are afterwards.

    Returns:
        How many rows were deleted.
    """
    rows, obsolete = collapsed.rows, 0
    append = statements.insert(target, rows)
    if session.refuses_known_keys(target.sql, target.schema, len(collapsed.removed)):
        replaced = collapsed.replaced
        if len(replaced):
            obsolete = session.run(statements.delete_keys(target, replaced))
        if not len(rows) or session.append_new(append):
            return obsolete
    obsolete += session.run(statements.delete_keys(target, collapsed.removed))
    if len(rows):
        session.run(append)
    return obsolete


class Mirror(Mode["Collapsed | None"]):
    """The table holds the rows that the source's holds."""

    name: ClassVar[TableMode] = "mirror"
    forgets: ClassVar[bool] = True
    has_one_row_each: ClassVar[bool] = True

    def prepare(self, changes: TableChanges, after: Position) -> Collapsed | None:
        """The last state of each key; None for a table without one."""
        key = changes.schema.key_columns
        return collapse(changes, key) if key else None

    def change(
        self, session: Session, target: Target, changes: TableChanges, prepared: Collapsed | None
    ) -> int:
        collapsed = prepared
        if collapsed is None:
            return self._change_keyless(session, target, changes)
        if not collapsed.unknown:
            return replace_rows(session, target, collapsed)
        dialect = target.dialect
        if dialect.changes_in_place and not dialect.hides_row_id(target.columns):
            change_in_place(session, target, collapsed)
            return len(collapsed.removed)
        session.run(statements.keep_known(target, collapsed))
        obsolete = session.run(statements.delete_keys(target, collapsed.removed))
        for statement in statements.insert_known(target):
            session.run(statement)
        return obsolete

    def _change_keyless(self, session: Session, target: Target, changes: TableChanges) -> int:
        added, removed = added_and_removed(changes)
        if len(added):
            session.run(statements.insert(target, added))
        if removed is None or not len(removed):
            return 0
        dialect = target.dialect
        if dialect.hides_row_id(target.columns):
            raise TableWriteFailed(
                target.schema.id,
                f"a column of {target.schema.name} is called {dialect.row_id}, which hides the "
                f"number by which {dialect.name} tells equal rows apart",
                solution="Give the table a primary key, or the column another name; then retry the "
                "table.",
            )
        return session.run(statements.delete_one_each(target, removed))

    def follow_odd(
        self,
        odd: OddValues,
        target: Target,
        changes: TableChanges,
        prepared: Collapsed | None,
        *,
        has_entries: bool,
    ) -> bool:
        return odd.follow(target.schema, changes, prepared, target.types, has_entries=has_entries)

    def truncate(
        self, session: Session, target: Target, event: TruncateEvent, after: Position
    ) -> int:
        return session.run(statements.delete_all(target))
