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

import duckdb
import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed
from etl_dagster.destinations.duckdb.tables import (
    column_list,
    column_types,
    create_table,
    evolve,
    fetch_row,
    quote,
    readable,
    select_list,
    table_name,
)
from etl_dagster.destinations.sql.in_place import key_match
from etl_dagster.destinations.sql.odd_values import key_list, key_value
from etl_dagster.model.schema import TableId, TableSchema

SCHEMA = "_etl_quarantine"
CREATE = """
-- The tables that have a twin in schema _etl_quarantine, and what that is called; see
-- etl_dagster.destinations.sql.quarantine.
CREATE TABLE IF NOT EXISTS _etl.quarantines (table_id BIGINT NOT NULL, twin_name VARCHAR NOT NULL);
"""
TABLES = ("quarantines",)

#: Of the entries, those that keep a row apart; its values are the table's ID and its columns.
_HELD = "table_id = ? AND column_name IN (SELECT unnest(?::VARCHAR[]))"
_PLACE = "_etl place"


class Quarantine:
    """Moves rows between tables and their twins inside a transaction."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    # -- the stream ----------------------------------------------------------------------------

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
        """After changes were applied, put those of their rows into the twin that have to be there.

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
        # What the changes don't tell stays odd where it was.
        unsure = np.flatnonzero(is_unknown & ~is_odd)
        if len(unsure):
            is_odd[unsure[self._with_entries(schema, keys.take(unsure))]] = True
        if not is_odd.any():
            return 0
        held = keys.filter(pa.array(is_odd))
        return self._move_keys(schema, self._table(schema), self._make_twin(schema), held)

    def _with_entries(self, schema: TableSchema, keys: pa.RecordBatch) -> np.ndarray:
        """Which of the keys have an entry in one of the columns with quarantine, int64."""
        numbered = readable(keys).append_column(_PLACE, pa.array(np.arange(len(keys))))
        self._connection.register("_etl_keys", numbered)
        key = key_list(schema.key_columns, column_types(schema), "_etl_keys.")
        found = self._connection.execute(
            f"SELECT {quote(_PLACE)} FROM _etl_keys SEMI JOIN "
            f"(SELECT key FROM _etl.odd_values WHERE {_HELD}) AS entry ON entry.key = {key}",
            _values(schema),
        ).fetchnumpy()
        self._connection.unregister("_etl_keys")
        return np.ma.getdata(found[_PLACE])

    def clear(self, table_id: TableId) -> int:
        """The table has no rows any more; returns how many its twin lost."""
        twin = self._twin(table_id)
        return 0 if twin is None else self._count(f"DELETE FROM {twin}")

    # -- the whole table -----------------------------------------------------------------------

    def all_rows(self, schema: TableSchema) -> str:
        """SQL for the rows of the table and its twin."""
        table, twin = self._table(schema), self._twin(schema.id)
        if twin is None:
            return table
        columns = column_list(schema.column_names)
        return f"(SELECT {columns} FROM {table} UNION ALL SELECT {columns} FROM {twin})"

    def hold_all(self, schema: TableSchema) -> None:
        """Put every row of the table into the twin that has to be there; after a copy."""
        if not (schema.quarantine_columns and schema.key_columns):
            return
        values = _values(schema)
        if fetch_row(self._connection, f"SELECT 1 FROM _etl.odd_values WHERE {_HELD}", values):
            self._move_held(schema, self._table(schema), self._make_twin(schema), "SEMI")

    def evolve(self, old: TableSchema, new: TableSchema, *, has_entries: bool) -> None:
        """Follow a change of the table's name, its columns, or what is done with these.

        To be called after the table and the entries of its odd values have followed it.

        Args:
            has_entries: whether there may be any entries.
        """
        if not (old.quarantine_columns or new.quarantine_columns):
            return
        name = self._twin_name(old.id)
        if name is not None:
            before = replace(old, schema_name=SCHEMA, table_name=name)
            evolve(self._connection, before, _twin_schema(new))
            self._keep_name(new)
            if has_entries:
                # Of a column that was dropped, the entries are gone.
                self._move_held(new, self._make_twin(new), self._table(new), "ANTI")
            if not new.quarantine_columns:
                self.drop(new.id)
        if has_entries and _holding(new) - _holding(old):
            self.hold_all(new)

    def rename(self, schema: TableSchema) -> None:
        """The table has another name."""
        name = self._twin_name(schema.id)
        if name is not None and name != schema.name:
            twin = table_name(self._connection, SCHEMA, name)
            self._connection.execute(f"ALTER TABLE {twin} RENAME TO {quote(schema.name)}")
            self._keep_name(schema)

    def drop(self, table_id: TableId) -> None:
        """Drop the twin with its rows; the table is dropped, too, or copied again."""
        twin = self._twin(table_id)
        if twin is not None:
            self._connection.execute(f"DROP TABLE {twin}")
            self._connection.execute("DELETE FROM _etl.quarantines WHERE table_id = ?", [table_id])

    # ------------------------------------------------------------------------------------------

    def _table(self, schema: TableSchema) -> str:
        return table_name(self._connection, schema.schema_name, schema.table_name)

    def _twin_name(self, table_id: TableId) -> str | None:
        row = fetch_row(
            self._connection,
            "SELECT twin_name FROM _etl.quarantines WHERE table_id = ?",
            [table_id],
        )
        return None if row is None else str(row[0])

    def _twin(self, table_id: TableId) -> str | None:
        name = self._twin_name(table_id)
        return None if name is None else table_name(self._connection, SCHEMA, name)

    def _make_twin(self, schema: TableSchema) -> str:
        """The twin as SQL; created where it is missing."""
        twin = self._twin(schema.id)
        if twin is None:
            create_table(self._connection, _twin_schema(schema))
            self._connection.execute(
                "INSERT INTO _etl.quarantines VALUES (?, ?)", [schema.id, schema.name]
            )
            twin = table_name(self._connection, SCHEMA, schema.name)
        return twin

    def _keep_name(self, schema: TableSchema) -> None:
        self._connection.execute(
            "UPDATE _etl.quarantines SET twin_name = ? WHERE table_id = ?",
            [schema.name, schema.id],
        )

    def _move_keys(
        self, schema: TableSchema, source: str, target: str, keys: pa.RecordBatch
    ) -> int:
        """Move the rows with these keys; returns how many."""
        self._connection.register("_etl_keys", readable(keys))
        wanted = f"SELECT {select_list(schema.key_columns, column_types(schema))} FROM _etl_keys"
        moved = self._move(schema, source, target, wanted, key_match(keys, schema.key_columns), [])
        self._connection.unregister("_etl_keys")
        return moved

    def _move_held(self, schema: TableSchema, source: str, target: str, join: str) -> None:
        """Move the rows whose keys have an entry that keeps them apart (``SEMI``), or the others.

        Keys are read back from the entries: to write those of a large table would take long.
        """
        types = column_types(schema)
        values = ", ".join(
            f"{key_value(f'key[{place}]', types[name])} AS {quote(name)}"
            for place, name in enumerate(schema.key_columns, start=1)
        )
        match = " AND ".join(
            f"target.{quote(name)} IS NOT DISTINCT FROM gone.{quote(name)}"
            for name in schema.key_columns
        )
        held = f"SELECT DISTINCT {values} FROM _etl.odd_values WHERE {_HELD}"
        self._move(schema, source, target, held, match, _values(schema), join)

    def _move(
        self,
        schema: TableSchema,
        source: str,
        target: str,
        keys: str,
        match: str,
        values: Sequence[object],
        join: str = "SEMI",
    ) -> int:
        columns = column_list(schema.column_names)
        moved = self._count(
            f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {source} AS target "
            f"{join} JOIN ({keys}) AS gone ON {match}",
            values,
        )
        if moved and join == "SEMI":
            sql = f"DELETE FROM {source} AS target USING ({keys}) AS gone WHERE {match}"
            self._count(sql, values)
        elif moved:
            found = f"SELECT 1 FROM ({keys}) AS gone WHERE {match}"
            self._count(f"DELETE FROM {source} AS target WHERE NOT EXISTS ({found})", values)
        return moved

    def _count(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run a statement, and return how many rows it wrote or deleted."""
        row = fetch_row(self._connection, sql, values)
        assert row is not None
        return int(row[0])


def _twin_schema(schema: TableSchema) -> TableSchema:
    """The twin as a table: names that differ for the tables differ for their twins, too, also to
    DuckDB, which ignores case."""
    return replace(schema, schema_name=SCHEMA, table_name=schema.name)


def _values(schema: TableSchema) -> list[object]:
    """For `_HELD`."""
    return [schema.id, list(schema.quarantine_columns)]


def _holding(schema: TableSchema) -> set[int | str]:
    """The columns with quarantine, however they are called."""
    return {column.attnum or column.name for column in schema.columns if column.quarantine}
