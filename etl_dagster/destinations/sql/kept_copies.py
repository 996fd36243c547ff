"""New copies of tables that keep more than the source has."""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.sql.copies import Copies
from etl_dagster.destinations.sql.dialect import Dialect, column_list, quote
from etl_dagster.destinations.sql.ledger import Ledger
from etl_dagster.destinations.sql.modes import Mode
from etl_dagster.destinations.sql.names import TableNames
from etl_dagster.destinations.sql.odd_values import OddValues, key_columns
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.tables import Target, create_table, evolve, move_table
from etl_dagster.model.events import TableRows
from etl_dagster.model.schema import ColumnSchema, TableId, TableSchema
from etl_dagster.values.forms import arrow_type

_log = logging.getLogger(__name__)


class KeptCopies:
    """Ends copies inside a transaction.

    Args:
        is_known: whether the pipeline has a table.
    """

    def __init__(
        self,
        session: Session,
        ledger: Ledger,
        names: TableNames,
        is_known: Callable[[TableId], bool],
    ) -> None:
        self._session = session
        self._ledger = ledger
        self._names = names
        self._is_known = is_known

    def make_way(self, schema: TableSchema) -> TableSchema | None:
        """Make the table's name free.

        A mirror that the copy replaces is dropped. Any other table stays under another name.

        Returns:
            The table as it was before, if the copy continues with it.
        """
        before = None
        for other in self._ledger.in_the_way([schema]):
            is_replaced = other.id == schema.id or (
                other.name == schema.name and not self._is_known(other.id)
            )
            if other.mode == "mirror":
                self._names.drop_replaced(other, schema, self._is_known)
                continue
            mark = f"__{other.mode}_{other.id}"
            if is_replaced and self._names.is_missing(other):
                self._names.forget_missing(other, mark)
                _log.warning(
                    "%s is no longer at the destination, where what was kept in mode %s was; the "
                    "copy begins a new table",
                    other.name,
                    other.mode,
                )
            elif is_replaced and (reason := self._reason(other, schema)) is None:
                before = other
            elif is_replaced:
                kept = self._names.retire(other, mark)
                _log.warning(
                    "%s: %s; what was kept in mode %s stays in %s",
                    schema.name,
                    reason,
                    other.mode,
                    kept,
                )
        self._names.claim(schema)
        return before

    def _reason(self, other: TableSchema, schema: TableSchema) -> str | None:
        if other.id != schema.id:
            return "another table has the name now"
        return _reason_to_start_over(self._session.dialect, other, schema)

    def finish(self, mode: Mode[Any], schema: TableSchema, rows: TableRows) -> None:
        """The rows that are staged become part of the table, and the copy is complete."""
        session, ledger = self._session, self._ledger
        at = CopyMoment.of(rows)
        before = self.make_way(schema)
        had_odd = before is not None and ledger.has_odd_values(schema.id)
        self._take(mode, schema, before, at)
        having_odd = OddValues(session).complete([(schema, at.position)], forgets=before is None)
        ledger.keep_table(schema)
        ledger.note_odd_values(schema.id, had_odd or bool(having_odd))
        ledger.keep_position(schema, at.position)
        Copies(session).complete(schema.id, rows.copy_id, rows.replay_from)

    def _take(
        self, mode: Mode[Any], schema: TableSchema, before: TableSchema | None, copy: CopyMoment
    ) -> None:
        session, dialect = self._session, self._session.dialect
        target, staging = Target.of(dialect, schema), Target.staging(dialect, schema)
        if before is None and not dialect.renames_altered:
            whole, values = mode.whole(target), mode.begin(dialect, copy)
            create_table(session, whole)
            given = ", ".join(
                f"CAST(${number} AS {whole.types[name]})"
                for number, name in enumerate(values, start=1)
            )
            session.make_room_as(target.sql, staging.sql, schema)
            session.execute(
                f"INSERT INTO {target.sql} ({column_list(whole.columns)}) "
                f"SELECT {', '.join([*map(quote, target.columns), given])} FROM {staging.sql}",
                list(values.values()),
            )
            session.execute(f"DROP TABLE {staging.sql}")
            session.complete(target.sql, schema)
            return
        if before is None:
            # The name first: DuckLake makes another table to rename one that was altered.
            move_table(session, staging.name, target.name)
            types = mode.whole(target).types
            for name, value in mode.begin(dialect, copy).items():
                session.run_each(dialect.add_column(target.sql, name, types[name], value))
            session.complete(target.sql, schema)
            return
        odd = OddValues(session)
        if not before.describes_same_columns(schema):
            evolve(session, before, schema)
            session.follow_key(target.sql, before, schema)
            odd.follow_columns(before, schema)
        is_odd = odd.is_odd(schema, "copied", target.types)
        mode.join(session, target, staging, copy, is_odd)


def _reason_to_start_over(dialect: Dialect, before: TableSchema, now: TableSchema) -> str | None:
    """Why a copy can't continue with what there was before; None: it can."""
    if before.mode != now.mode:
        return f"its mode is {now.mode}"
    keys = [[c.attnum or c.name for c in key_columns(schema)] for schema in (before, now)]
    if keys[0] != keys[1]:
        return "it has another key"
    known = {column.attnum or column.name: column for column in before.columns}
    for column in now.columns:
        old = known.get(column.attnum or column.name)
        if old is not None and not _holds(dialect, old, column):
            return f"its column {column.name} has another type"
    names = [[(c.attnum or c.name, c.name) for c in schema.columns] for schema in (before, now)]
    if names[0] != names[1] and not dialect.renames_altered:
        return "it has other columns"
    return None


def _holds(dialect: Dialect, old: ColumnSchema, new: ColumnSchema) -> bool:
    """Whether every value of the one column is one of the other."""
    if old.own_type == new.own_type and dialect.column_type(old) == dialect.column_type(new):
        return True
    types = arrow_type(old), arrow_type(new)
    return all(map(pa.types.is_signed_integer, types)) and types[0].bit_width < types[1].bit_width
