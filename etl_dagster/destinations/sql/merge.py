"""Applies the changes of one table inside a transaction."""

# Values are never part of a query's text, and every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa

from etl_dagster.destinations.collapse import Collapsed, added_and_removed, collapse
from etl_dagster.destinations.duckdb.enums import make_room
from etl_dagster.destinations.duckdb.tables import (
    column_list,
    column_types,
    create_table,
    evolve,
    insert_rows,
    quote,
    readable,
    select_list,
    table_name,
)
from etl_dagster.destinations.sql.in_place import change_in_place, hides_rowid, key_match
from etl_dagster.destinations.sql.ledger import Ledger
from etl_dagster.destinations.sql.names import Names
from etl_dagster.destinations.sql.odd_keys import rekey
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.quarantine import Quarantine
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.events import (
    RelationEvent,
    TableChanges,
    TableStep,
    TruncateEvent,
    steps_after,
)
from etl_dagster.model.schema import TableSchema


class TableMerge:
    """One table's part of a batch."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        ledger: Ledger,
        table: TableSchema | None,
        names: Names,
        *,
        changelog: bool,
    ) -> None:
        self._connection = connection
        self._ledger = ledger
        self._names = names
        #: As it is in the file; None when it isn't there.
        self._table = table
        self._changelog = changelog
        #: Rows of the file that were deleted or replaced.
        self.dead_rows = 0
        self._odd = OddValues(connection)
        self._quarantine = Quarantine(connection)

    def apply(self, steps: Sequence[TableStep]) -> None:
        """Apply what comes after the table's position, and move that."""
        if not steps:
            return
        before = position = self._ledger.position(steps[0].schema.id)
        for step in steps_after(steps, before):
            if isinstance(step, RelationEvent):
                if self._table is None or step.schema.snapshot_id >= self._table.snapshot_id:
                    self._evolve_to(step.schema)
                continue
            self._evolve_to(step.schema)
            if isinstance(step, TruncateEvent):
                self._count_dead(self._connection.execute(f"DELETE FROM {self._target}"))
                self._clear_odd(step.schema)
                position = step.position
            else:
                self._change(step)
                position = step.last_position
            self._log(step)
        if position != before:
            self._ledger.keep_position(steps[-1].schema, position)

    def _count_dead(self, deleted: duckdb.DuckDBPyConnection) -> None:
        [(count,)] = deleted.fetchall()
        self.dead_rows += count

    @property
    def _target(self) -> str:
        assert self._table is not None
        return table_name(self._connection, self._table.schema_name, self._table.table_name)

    def _log(self, step: TableChanges | TruncateEvent) -> None:
        if self._changelog:
            self._ledger.log(step)

    def _evolve_to(self, schema: TableSchema) -> None:
        """Bring the table to this schema."""
        table, wanted = self._table, None
        if table is None:
            self._names.claim(schema)
            create_table(self._connection, schema)
        else:
            if schema.name != table.name:
                called = schema.table_name
                schema = self._names.stored(schema, table)
                if schema.name != table.name:
                    self._names.claim(schema)
                else:
                    wanted = called
            if schema.describes_same_columns(table):
                return
            has_entries = self._ledger.has_odd_values(schema.id)
            if has_entries:
                types = column_types(table), column_types(schema)
                rows = self._quarantine.all_rows(table)
                rekey(self._connection, rows, table, schema, types[0])
                self._odd.evolve(table, schema, *types)
            evolve(self._connection, table, schema)
            self._quarantine.evolve(table, schema, has_entries=has_entries)
        self._ledger.keep_table(schema, wanted_name=wanted)
        self._table = schema

    def _make_room(self, changes: TableChanges) -> None:
        """Have the table's enums hold the labels of the rows."""
        assert self._table is not None
        table = make_room(self._connection, self._target, self._table, changes.schema, changes.rows)
        if table is not self._table:
            self._ledger.keep_table(table, wanted_name=self._ledger.wanted_name(table.id))
            self._table = table

    def _change(self, changes: TableChanges) -> None:
        self._make_room(changes)
        assert self._table is not None
        names, key = list(changes.schema.column_names), changes.schema.key_columns
        types = column_types(self._table)
        collapsed = collapse(changes, key) if key else None
        if collapsed is not None:
            may_hold = self._may_hold(changes)
            if may_hold:
                self.dead_rows += self._quarantine.release(self._table, collapsed.removed)
            self._merge(collapsed, key, names, types)
            self._follow_odd(changes, collapsed, types)
            if may_hold:
                self.dead_rows += self._quarantine.hold(self._table, collapsed)
        else:
            added, removed = added_and_removed(changes)
            self._insert(added, names, types)
            if removed is not None and len(removed):
                self._remove_one_each(removed, names, types)
            self._follow_odd(changes, None, types)

    def _may_hold(self, changes: TableChanges) -> bool:
        """Whether rows may be in quarantine, or get there; most tables have nothing odd."""
        is_odd = changes.odd or changes.old_odd or self._ledger.has_odd_values(changes.schema.id)
        return bool(changes.schema.quarantine_columns and is_odd)

    def _follow_odd(
        self, changes: TableChanges, collapsed: Collapsed | None, types: dict[str, str]
    ) -> None:
        """What the table's types can't hold is kept, and goes with its rows."""
        assert self._table is not None
        has_entries = self._ledger.has_odd_values(self._table.id)
        # Most tables never have any: then nothing is asked.
        if has_entries or changes.odd or changes.old_odd:
            has_entries = self._odd.follow(
                self._table, changes, collapsed, types, has_entries=has_entries
            )
            self._ledger.note_odd_values(self._table.id, has_entries)

    def _clear_odd(self, table: TableSchema) -> None:
        if self._ledger.has_odd_values(table.id):
            self._odd.clear(table.id)
            if table.quarantine_columns:
                self.dead_rows += self._quarantine.clear(table.id)
            self._ledger.note_odd_values(table.id, False)

    def _merge(
        self, collapsed: Collapsed, key: Sequence[str], names: list[str], types: dict[str, str]
    ) -> None:
        if collapsed.unknown and hides_rowid(names):
            self._read_unknown(collapsed, key, names, types)
        elif collapsed.unknown:
            change_in_place(self._connection, self._target, collapsed, key, names, types)
            self.dead_rows += len(collapsed.removed)
            return
        self._delete(collapsed.removed, key, types)
        if collapsed.unknown:
            columns = column_list(names)
            values = ", ".join(f"value_{number}" for number in range(len(names)))
            self._connection.execute(
                f"INSERT INTO {self._target} ({columns}) SELECT {values} FROM temp.main._etl_known "
                # Two chunks of a copy may both have brought a row that moved between them.
                "WHERE rowid IN (SELECT min(rowid) FROM temp.main._etl_known GROUP BY place)"
            )
            self._connection.execute("DROP TABLE temp.main._etl_known")
        else:
            self._insert(collapsed.rows, names, types)

    def _insert(self, rows: pa.RecordBatch, names: list[str], types: dict[str, str]) -> None:
        if not len(rows):
            return
        insert_rows(self._connection, self._target, readable(rows), names, types)

    def _delete(self, keys: pa.RecordBatch, key: Sequence[str], types: dict[str, str]) -> None:
        self._connection.register("_etl_keys", readable(keys))
        match = key_match(keys, key)
        self._count_dead(
            self._connection.execute(
                f"DELETE FROM {self._target} AS target "
                f"USING (SELECT {select_list(key, types)} FROM _etl_keys) AS gone WHERE {match}"
            )
        )
        self._connection.unregister("_etl_keys")

    def _read_unknown(
        self, collapsed: Collapsed, key: Sequence[str], names: list[str], types: dict[str, str]
    ) -> None:
        """Keep the rows in a temporary table, completed with what the table has now.

        To be read before the old rows are deleted. For tables whose rows have no number by which
        they could be changed in place.
        """
        assert collapsed.lookup is not None
        incoming = readable(collapsed.rows)
        found = readable(collapsed.lookup)
        found_by = [f"_etl key {place}" for place in range(len(key))]
        unknown_of = {name: f"_etl unknown {name}" for name in collapsed.unknown if name in names}
        self._connection.register(
            "_etl_rows",
            pa.RecordBatch.from_arrays(
                [
                    *incoming.columns,
                    *found.columns,
                    *(pa.array(collapsed.unknown[name]) for name in unknown_of),
                    pa.array(np.arange(len(incoming))),
                ],
                [*incoming.schema.names, *found_by, *unknown_of.values(), "_etl place"],
            ),
        )
        columns = ", ".join(
            f"CASE WHEN incoming.{quote(unknown_of[name])} THEN target.{quote(name)} "
            f"ELSE CAST(incoming.{quote(name)} AS {types[name]}) END AS value_{number}"
            if name in unknown_of
            else f"incoming.{quote(name)} AS value_{number}"
            for number, name in enumerate(names)
        )
        match = " AND ".join(
            f"target.{quote(name)} IS NOT DISTINCT FROM "
            f"CAST(incoming.{quote(alias)} AS {types[name]})"
            for name, alias in zip(key, found_by, strict=True)
        )
        self._connection.execute(
            f"CREATE OR REPLACE TEMP TABLE _etl_known AS "
            f"SELECT {columns}, incoming.{quote('_etl place')} AS place "
            f"FROM _etl_rows AS incoming LEFT JOIN {self._target} AS target ON {match}"
        )
        self._connection.unregister("_etl_rows")

    def _remove_one_each(
        self, rows: pa.RecordBatch, names: list[str], types: dict[str, str]
    ) -> None:
        """Delete, for each of these rows, one row that is equal in every column."""
        assert self._table is not None
        if hides_rowid(names):
            raise TableWriteFailed(
                self._table.id,
                f"a column of {self._table.name} is called rowid, which hides the number by which "
                "DuckDB tells equal rows apart",
                solution="Give the table a primary key, or the column another name; then reset the "
                "table.",
            )
        self._connection.register("_etl_gone", readable(rows))
        match = " AND ".join(
            f"{_exact('target', name, types)} IS NOT DISTINCT FROM gone.{quote(name)}"
            for name in names
        )
        exact = ", ".join(f"{_exact('gone', name, types)} AS {quote(name)}" for name in names)
        times, group = quote("_etl times"), quote("_etl group")
        deleted = self._connection.execute(
            f"""
            DELETE FROM {self._target} WHERE rowid IN (
                SELECT row_id FROM (
                    SELECT target.rowid AS row_id, gone.{times} AS times,
                        row_number() OVER (PARTITION BY gone.{group}) AS place
                    FROM {self._target} AS target JOIN (
                        SELECT *, row_number() OVER () AS {group} FROM (
                            SELECT {column_list(names)}, count(*) AS {times}
                            FROM (
                                SELECT {exact}
                                FROM (SELECT {select_list(names, types)} FROM _etl_gone) AS gone
                            )
                            GROUP BY {column_list(names)}
                        )
                    ) AS gone ON {match}
                ) WHERE place <= times
            )
            """
        )
        self._count_dead(deleted)
        self._connection.unregister("_etl_gone")


def _exact(table: str, name: str, types: dict[str, str]) -> str:
    """SQL for a column's value, of which two are equal only where Postgres prints them alike."""
    value = f"{table}.{quote(name)}"
    # To DuckDB, a day is 24 hours.
    return f"CAST({value} AS VARCHAR)" if "INTERVAL" in types[name] else value
