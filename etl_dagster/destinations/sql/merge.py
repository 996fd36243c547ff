"""Applies the changes of one table inside a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from etl_dagster.destinations.collapse import Collapsed
from etl_dagster.destinations.sql.ledger import Ledger
from etl_dagster.destinations.sql.modes import Mode
from etl_dagster.destinations.sql.names import TableNames
from etl_dagster.destinations.sql.odd_keys import rekey
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.quarantine import Quarantine
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.tables import Target, create_table, evolve
from etl_dagster.model.events import (
    RelationEvent,
    TableChanges,
    TableStep,
    TruncateEvent,
    steps_after,
)
from etl_dagster.model.position import POSITION_ZERO, Position
from etl_dagster.model.schema import TableSchema


class TableMerge:
    """One table's part of a batch."""

    def __init__(
        self,
        session: Session,
        ledger: Ledger,
        table: TableSchema | None,
        names: TableNames,
        mode: Mode[Any],
        *,
        changelog: bool,
    ) -> None:
        self._session = session
        self._ledger = ledger
        self._names = names
        self._mode = mode
        #: The table as it is at the destination; None if it isn't there.
        self._target = None if table is None else Target.of(session.dialect, table)
        self._changelog = changelog
        #: How many rows of the table were deleted or replaced.
        self.dead_rows = 0
        self._odd = OddValues(session)
        self._quarantine = Quarantine(session)

    def apply(self, steps: Sequence[TableStep]) -> None:
        """Apply what comes after the table's position, and advance that."""
        if not steps:
            return
        before = position = self._ledger.position(steps[0].schema.id)
        for step in steps_after(steps, before):
            if isinstance(step, RelationEvent):
                table = None if self._target is None else self._target.schema
                if table is None or step.schema.snapshot_id >= table.snapshot_id:
                    self._evolve_to(step.schema)
                continue
            target = self._evolve_to(step.schema)
            if isinstance(step, TruncateEvent):
                self.dead_rows += self._mode.truncate(self._session, target, step, position)
                self._clear_odd(step.schema)
                position = step.position
            else:
                self._change(target, step, position)
                position = step.last_position
            if self._changelog:
                self._ledger.log(step)
        if position != before:
            self._ledger.keep_position(steps[-1].schema, position)

    def repair(self, changes: TableChanges) -> None:
        """Apply changes whatever the table's position is, and leave that where it is."""
        self._change(self._evolve_to(changes.schema), changes, POSITION_ZERO)

    def _evolve_to(self, schema: TableSchema) -> Target:
        """Bring the table to this schema."""
        dialect, target, wanted = self._session.dialect, self._target, None
        if target is None:
            self._names.claim(schema)
            made = Target.of(dialect, schema)
            create_table(self._session, self._mode.whole(made))
            self._session.complete(made.sql, schema)
        else:
            table = target.schema
            # A table has its mode until it is copied again, whatever a store says.
            if schema.mode != table.mode:
                schema = replace(schema, mode=table.mode)
            if schema.name != table.name:
                called = schema.table_name
                schema = self._names.stored(schema, table)
                if schema.name != table.name:
                    self._names.claim(schema)
                else:
                    wanted = called
            if schema.describes_same_columns(table):
                return target
            has_entries = self._ledger.has_odd_values(schema.id)
            if has_entries and self._mode.has_one_row_each:
                rekey(self._session, target, self._quarantine.all_rows(table), schema)
                self._odd.evolve(table, schema, target.types, dialect.column_types(schema))
            elif has_entries:
                self._odd.follow_columns(table, schema)
            evolve(self._session, table, schema)
            self._session.follow_key(Target.of(dialect, schema).sql, table, schema)
            self._quarantine.evolve(table, schema, has_entries=has_entries)
        self._ledger.keep_table(schema, wanted_name=wanted)
        self._target = target = Target.of(dialect, schema)
        return target

    def _make_room(self, target: Target, changes: TableChanges) -> Target:
        """Have the types of the table's columns hold the rows."""
        known = target.schema
        table = self._session.make_room(target.sql, known, changes.schema, changes.rows)
        if table is not known:
            self._ledger.keep_table(table, wanted_name=self._ledger.wanted_name(table.id))
            self._target = target = Target.of(self._session.dialect, table)
            self._quarantine.make_room(table)
        return target

    def _change(self, target: Target, changes: TableChanges, after: Position) -> None:
        target = self._make_room(target, changes)
        prepared = self._mode.prepare(changes, after)
        # Only rows of a mirror with a key can be in quarantine.
        collapsed = prepared if isinstance(prepared, Collapsed) else None
        may_hold = collapsed is not None and self._may_hold(changes)
        if collapsed is not None and may_hold:
            self.dead_rows += self._quarantine.release(target.schema, collapsed.removed)
        self.dead_rows += self._mode.change(self._session, target, changes, prepared)
        self._follow_odd(target, changes, prepared)
        if collapsed is not None and may_hold:
            self.dead_rows += self._quarantine.hold(target.schema, collapsed)

    def _may_hold(self, changes: TableChanges) -> bool:
        """Whether rows may be in quarantine, or get there; most tables have nothing odd."""
        is_odd = changes.odd or changes.old_odd or self._ledger.has_odd_values(changes.schema.id)
        return bool(changes.schema.quarantine_columns and is_odd)

    def _follow_odd(self, target: Target, changes: TableChanges, prepared: Any) -> None:
        """Keep what the table's types can't hold, and let it follow its rows."""
        table_id = target.schema.id
        has_entries = self._ledger.has_odd_values(table_id)
        # Most tables never have any: then nothing is queried.
        if has_entries or changes.odd or changes.old_odd:
            has_entries = self._mode.follow_odd(
                self._odd, target, changes, prepared, has_entries=has_entries
            )
            self._ledger.note_odd_values(table_id, has_entries)

    def _clear_odd(self, table: TableSchema) -> None:
        if self._mode.forgets and self._ledger.has_odd_values(table.id):
            self._odd.clear(table.id)
            if table.quarantine_columns:
                self.dead_rows += self._quarantine.clear(table.id)
            self._ledger.note_odd_values(table.id, False)
