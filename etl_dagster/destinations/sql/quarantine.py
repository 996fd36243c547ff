"""Rows with a value that a column's type can't hold, kept apart from their table.

A table that has had such a row has a twin in schema ``_etl_quarantine``: a table with the same
columns, called by the whole name of the first, such as ``_etl_quarantine."public.orders"``. A row
is in one of the two: in the twin while ``_etl.odd_values`` has an entry of its key in one of the
`TableSchema.quarantine_columns`, else in the table.

What changes a row finds it in the table. Rows whose keys are touched return to it before, so that
values which the source didn't send are taken from them, and leave it again if they still have to.
All of that is in the transaction of the changes.
"""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed
from etl_dagster.destinations.sql.dialect import column_list, quote
from etl_dagster.destinations.sql.odd_values import key_list, key_value
from etl_dagster.destinations.sql.session import Session, Statement
from etl_dagster.destinations.sql.statements import PLACE, key_match
from etl_dagster.destinations.sql.tables import Target, create_table, evolve, move_table
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.table_name import TableName

SCHEMA = "_etl_quarantine"

#: Condition for entries that keep a row apart; its values are the table's ID and its columns.
_HELD = "table_id = $1 AND column_name IN (SELECT unnest($2::VARCHAR[]))"


class Quarantine:
    """Moves rows between tables and their twins inside a transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # -- the stream ----------------------------------------------------------------------------

    def make_room(self, schema: TableSchema) -> None:
        """Make the types of the twin's columns hold what those of the table hold now, see
        `Session.make_room`."""
        if schema.quarantine_columns and (twin := self._twin(schema.id)) is not None:
            self._session.make_room_as(twin, self._table(schema), schema)

    def release(self, schema: TableSchema, keys: pa.RecordBatch) -> int:
        """Return the rows with these keys to their table, before changes are applied to it.

        Args:
            keys: the key columns, as Arrow rows.

        Returns:
            How many rows the twin lost.
        """
        twin = self._twin(schema.id)
        if twin is None:
            return 0
        return self._move_keys(schema, twin, self._table(schema), keys)

    def hold(self, schema: TableSchema, collapsed: Collapsed) -> int:
        """After changes were applied, move those of their rows that belong there into the twin.

        Args:
            collapsed: what the changes amount to; the entries have followed it.

        Returns:
            How many rows the table lost.
        """
        keys = collapsed.rows.select(list(schema.key_columns))
        columns = schema.quarantine_columns
        is_odd, is_unknown = np.zeros(len(keys), bool), np.zeros(len(keys), bool)
        for name in columns:
            if name in collapsed.odd:
                is_odd[collapsed.odd[name].rows] = True
            if name in collapsed.unknown:
                is_unknown |= collapsed.unknown[name]
        # A value that the changes don't have stays odd if it was.
        unsure = np.flatnonzero(is_unknown & ~is_odd)
        if len(unsure):
            is_odd[unsure[self._with_entries(schema, keys.take(unsure))]] = True
        if not is_odd.any():
            return 0
        held = keys.filter(pa.array(is_odd))
        return self._move_keys(schema, self._table(schema), self._make_twin(schema), held)

    def _with_entries(self, schema: TableSchema, keys: pa.RecordBatch) -> np.ndarray:
        """Which of the keys have an entry in one of the columns with quarantine, int64."""
        types = self._session.dialect.column_types(schema)
        found = self._session.fetch_arrays(
            Statement(
                f"SELECT {quote(PLACE)} FROM _etl_keys "
                f"WHERE {key_list(schema.key_columns, types)} "
                f"IN (SELECT key FROM _etl.odd_values WHERE {_HELD})",
                _values(schema),
                {"_etl_keys": keys.append_column(PLACE, pa.array(np.arange(len(keys))))},
            )
        )
        return found[PLACE]

    def clear(self, table_id: TableId) -> int:
        """The table has no rows any more; returns how many its twin lost."""
        twin = self._twin(table_id)
        return 0 if twin is None else self._session.execute(f"DELETE FROM {twin}")

    # -- the whole table -----------------------------------------------------------------------

    def all_rows(self, schema: TableSchema) -> str:
        """SQL for the rows of the table and its twin."""
        table, twin = self._table(schema), self._twin(schema.id)
        if twin is None:
            return table
        columns = column_list(schema.column_names)
        return f"(SELECT {columns} FROM {table} UNION ALL SELECT {columns} FROM {twin})"

    def hold_all(self, schema: TableSchema) -> None:
        """Move every row of the table that belongs there into the twin; after a copy."""
        if not (schema.quarantine_columns and schema.key_columns):
            return
        values = _values(schema)
        if self._session.fetch(f"SELECT 1 FROM _etl.odd_values WHERE {_HELD} LIMIT 1", values):
            self._move_held(schema, self._table(schema), self._make_twin(schema), is_held=True)

    def evolve(self, old: TableSchema, new: TableSchema, *, has_entries: bool) -> None:
        """Follow a change of the table's name, its columns, or their quarantine.

        Call it after the table and the entries of its odd values have followed the change.

        Args:
            has_entries: whether there may be any entries.
        """
        if not (old.quarantine_columns or new.quarantine_columns):
            return
        name = self._twin_name(old.id)
        if name is not None:
            before = replace(old, schema_name=SCHEMA, table_name=name)
            evolve(self._session, before, _twin_schema(new))
            self._keep_name(new)
            if has_entries:
                # The entries of a dropped column are gone.
                self._move_held(new, self._make_twin(new), self._table(new), is_held=False)
            if not new.quarantine_columns:
                self.drop(new.id)
        if has_entries and _holding(new) - _holding(old):
            self.hold_all(new)

    def rename(self, schema: TableSchema) -> None:
        """The table has another name."""
        name = self._twin_name(schema.id)
        if name is not None and name != schema.name:
            move_table(self._session, TableName(SCHEMA, name), TableName(SCHEMA, schema.name))
            self._keep_name(schema)

    def drop(self, table_id: TableId) -> None:
        """Drop the twin with its rows: the table is dropped, too, or copied again."""
        twin = self._twin(table_id)
        if twin is not None:
            # It may have been dropped by hand; a new copy, which drops it first, makes another.
            self._session.execute(f"DROP TABLE IF EXISTS {twin}")
            self._session.execute("DELETE FROM _etl.quarantines WHERE table_id = $1", [table_id])

    # ------------------------------------------------------------------------------------------

    def _table(self, schema: TableSchema) -> str:
        return Target.of(self._session.dialect, schema).sql

    def _twin_name(self, table_id: TableId) -> str | None:
        row = self._session.fetch_row(
            "SELECT twin_name FROM _etl.quarantines WHERE table_id = $1", [table_id]
        )
        return None if row is None else str(row[0])

    def _twin(self, table_id: TableId) -> str | None:
        name = self._twin_name(table_id)
        return None if name is None else self._session.dialect.table(SCHEMA, name)

    def _make_twin(self, schema: TableSchema) -> str:
        """The twin as SQL; created where it is missing."""
        twin = self._twin(schema.id)
        if twin is None:
            made = Target.of(self._session.dialect, _twin_schema(schema))
            create_table(self._session, made)
            self._session.execute(
                "INSERT INTO _etl.quarantines VALUES ($1, $2)", [schema.id, schema.name]
            )
            twin = made.sql
            # A copy may have given the table's types more room than the schema says.
            self._session.make_room_as(twin, self._table(schema), schema)
        return twin

    def _keep_name(self, schema: TableSchema) -> None:
        self._session.execute(
            "UPDATE _etl.quarantines SET twin_name = $1 WHERE table_id = $2",
            [schema.name, schema.id],
        )

    def _move_keys(
        self, schema: TableSchema, source: str, target: str, keys: pa.RecordBatch
    ) -> int:
        """Move the rows with these keys; returns how many."""
        dialect = self._session.dialect
        selected = dialect.select_list(schema.key_columns, dialect.column_types(schema))
        found = f"SELECT 1 FROM (SELECT {selected} FROM _etl_keys) AS gone WHERE {key_match(keys)}"
        with self._session.staged({"_etl_keys": keys}):
            return self._move(schema, source, target, f"EXISTS ({found})", [])

    def _move_held(self, schema: TableSchema, source: str, target: str, *, is_held: bool) -> None:
        """Move the rows whose keys have an entry that keeps them apart, or the others.

        Keys are read back from the entries: making a key's text for every row would take long.
        """
        types = self._session.dialect.column_types(schema)
        values = ", ".join(
            f"{key_value(f'key[{place}]', types[name])} AS {quote(name)}"
            for place, name in enumerate(schema.key_columns, start=1)
        )
        match = " AND ".join(
            f"target.{quote(name)} IS NOT DISTINCT FROM gone.{quote(name)}"
            for name in schema.key_columns
        )
        held = f"SELECT DISTINCT {values} FROM _etl.odd_values WHERE {_HELD}"
        exists = f"EXISTS (SELECT 1 FROM ({held}) AS gone WHERE {match})"
        condition = exists if is_held else f"NOT {exists}"
        self._move(schema, source, target, condition, _values(schema))

    def _move(
        self,
        schema: TableSchema,
        source: str,
        target: str,
        condition: str,
        values: Sequence[object],
    ) -> int:
        columns = column_list(schema.column_names)
        moved = self._session.execute(
            f"INSERT INTO {target} ({columns}) "
            f"SELECT {columns} FROM {source} AS target WHERE {condition}",
            values,
        )
        if moved:
            self._session.execute(f"DELETE FROM {source} AS target WHERE {condition}", values)
        return moved


def _twin_schema(schema: TableSchema) -> TableSchema:
    """The twin as a table. Twins of tables with different names have different names, too, even in
    DuckDB, which ignores case."""
    return replace(schema, schema_name=SCHEMA, table_name=schema.name)


def _values(schema: TableSchema) -> list[object]:
    """For `_HELD`."""
    return [schema.id, list(schema.quarantine_columns)]


def _holding(schema: TableSchema) -> set[int | str]:
    """The columns with quarantine, whatever their names."""
    return {column.attnum or column.name for column in schema.columns if column.quarantine}
