"""Whole copies of many small tables in one transaction."""

# Statements are put together of constants only.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import duckdb

from etl_dagster.destinations.duckdb.enums import make_room
from etl_dagster.destinations.duckdb.tables import (
    column_types,
    create_table,
    insert_rows,
    readable,
    table_name,
)
from etl_dagster.destinations.sql.ledger import (
    AMONG,
    Ledger,
    columns_to_json,
    folded_name,
)
from etl_dagster.destinations.sql.names import Names
from etl_dagster.destinations.sql.odd_values import Entries, OddValues
from etl_dagster.destinations.sql.quarantine import Quarantine
from etl_dagster.errors import InvalidState, TableWriteFailed
from etl_dagster.model.events import TableRows
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableId, TableSchema

#: Turns a failure inside of the block into one of the table.
Blaming = Callable[[TableId, str], AbstractContextManager[None]]


class WholeTables:
    """Writes inside a transaction; what is written is complete when that is committed.

    There is no table that holds the rows until they are complete, as there is for a copy in
    chunks: the transaction does that.

    Args:
        is_known: whether the pipeline has a table; one that it forgot may be replaced by name.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        blaming: Blaming,
        is_known: Callable[[TableId], bool],
    ) -> None:
        self._connection = connection
        self._ledger = Ledger(connection)
        self._odd = OddValues(connection)
        self._quarantine = Quarantine(connection)
        self._blaming = blaming
        self._is_known = is_known

    def forget_copies(self, table_ids: Sequence[TableId]) -> None:
        """From now on refuse every copy of the tables that was heard of."""
        self._connection.execute(
            f"UPDATE _etl.copies SET status = 'ended' WHERE table_id {AMONG}", [list(table_ids)]
        )
        self._delete("chunks", table_ids)
        self._delete("positions", table_ids)

    def write(self, copies: Sequence[tuple[TableSchema, TableRows]]) -> None:
        """Write the tables whose copies are not complete yet.

        Raises:
            TableWriteFailed: one table refuses.
            InvalidState: a newer copy of a table has begun.
        """
        complete = self._complete({schema.id: rows.copy_id for schema, rows in copies})
        todo = [(schema, rows) for schema, rows in copies if schema.id not in complete]
        if not todo:
            return
        schemas = [schema for schema, _ in todo]
        names = self._make_way(schemas)
        for schema, rows in todo:
            with self._blaming(schema.id, schema.name):
                self._write_table(schema, rows)
        self._keep(todo)
        names.settle()

    def _complete(self, copies: Mapping[TableId, str]) -> set[TableId]:
        rows = self._connection.execute(
            f"SELECT table_id, copy_id, status FROM _etl.copies WHERE table_id {AMONG}",
            [list(copies)],
        ).fetchall()
        known = {t: status for t, copy_id, status in rows if copies[t] == copy_id}
        for table_id, status in known.items():
            if status == "ended":
                raise InvalidState(
                    f"a newer copy of table {table_id} has begun than {copies[table_id]}"
                )
        return {table_id for table_id, status in known.items() if status == "complete"}

    def _make_way(self, schemas: Sequence[TableSchema]) -> Names:
        """Drop what the tables replace, and make their names free."""
        names = Names(self._connection, self._ledger)
        by_id = {schema.id: schema for schema in schemas}
        by_name: dict[tuple[str, str], TableSchema] = {}
        for schema in schemas:
            other = by_name.setdefault(folded_name(schema), schema)
            if other is not schema:
                raise same_name(schema, other)
        claimed: dict[TableId, TableSchema] = {}
        for other in self._ledger.all_in_the_way(schemas):
            schema = by_id.get(other.id) or by_name[folded_name(other)]
            claimed[schema.id] = schema
            is_namesake = other.name == schema.name and not self._is_known(other.id)
            if other.id == schema.id or is_namesake:
                old = table_name(self._connection, other.schema_name, other.table_name)
                self._connection.execute(f"DROP TABLE IF EXISTS {old}")
                self._ledger.forget_table(other.id)
                self._odd.clear(other.id)
                self._quarantine.drop(other.id)
        for schema in claimed.values():
            names.claim(schema)
        drop_tables(self._connection, map(staging_name, by_id))
        return names

    def _write_table(self, schema: TableSchema, rows: TableRows) -> None:
        # Refused where a table is in the way that isn't ours.
        create_table(self._connection, schema)
        target = table_name(self._connection, schema.schema_name, schema.table_name)
        names, types = schema.column_names, column_types(schema)
        known = schema
        for piece in rows.pieces():
            known = make_room(self._connection, target, known, schema, piece.rows)
            insert_rows(self._connection, target, readable(piece.rows), names, types)
            if piece.odd:
                entries = Entries.copied(piece, schema.key_columns)
                self._odd.keep_copied(schema.id, [entries], types)

    def _keep(self, copies: Sequence[tuple[TableSchema, TableRows]]) -> None:
        """Remember the tables, that each has all rows of its copy, and where changes go on."""
        schemas = [schema for schema, _ in copies]
        table_ids = [schema.id for schema in schemas]
        self.forget_copies(table_ids)
        self._delete("tables", table_ids)
        begins = [Position.just_before(rows.replay_from) for _, rows in copies]
        having_odd = self._odd.complete(list(zip(schemas, begins, strict=True)))
        for schema in schemas:
            if schema.id in having_odd:
                self._quarantine.hold_all(schema)
        named: dict[str, tuple[str, Sequence[object]]] = {
            "table_id": ("BIGINT", table_ids),
            "schema_name": ("VARCHAR", [schema.schema_name for schema in schemas]),
            "table_name": ("VARCHAR", [schema.table_name for schema in schemas]),
        }
        self._insert(
            "copies",
            {
                "table_id": ("BIGINT", table_ids),
                "copy_id": ("VARCHAR", [rows.copy_id for _, rows in copies]),
                "status": ("VARCHAR", ["complete"] * len(copies)),
                "replay_lsn": ("UBIGINT", [rows.replay_from.offset for _, rows in copies]),
            },
        )
        self._insert(
            "tables",
            {
                **named,
                "snapshot_lsn": ("UBIGINT", [schema.snapshot_id.offset for schema in schemas]),
                "replica_identity": ("VARCHAR", [schema.replica_identity for schema in schemas]),
                "columns": ("VARCHAR", [columns_to_json(schema) for schema in schemas]),
                "has_odd_values": ("BOOLEAN", [schema.id in having_odd for schema in schemas]),
            },
        )
        self._insert(
            "positions",
            {
                **named,
                "commit_lsn": ("UBIGINT", [begin.commit_lsn.offset for begin in begins]),
                "ordinal": ("BIGINT", [begin.ordinal for begin in begins]),
            },
        )

    def _delete(self, table: str, table_ids: Sequence[TableId]) -> None:
        self._connection.execute(
            f"DELETE FROM _etl.{table} WHERE table_id {AMONG}", [list(table_ids)]
        )

    def _insert(self, table: str, columns: Mapping[str, tuple[str, Sequence[object]]]) -> None:
        """Append rows, given as columns: of each its type and its values."""
        values = ", ".join(f"unnest(?::{type_}[])" for type_, _ in columns.values())
        self._connection.execute(
            f"INSERT INTO _etl.{table} ({', '.join(columns)}) SELECT {values}",
            [list(column) for _, column in columns.values()],
        )


def same_name(schema: TableSchema, other: TableSchema) -> TableWriteFailed:
    """DuckDB would take the one table for the other."""
    return TableWriteFailed(
        schema.id,
        f"{schema.name} and {other.name} are one name to DuckDB, which doesn't tell upper from "
        "lower case",
        solution="Rename one of them in the source, or leave it out of the publication; then "
        "reset the table.",
    )


def staging_name(table_id: TableId) -> str:
    """Where a copy in chunks is until it is complete.

    In the table's schema, since DuckDB renames tables but doesn't move them between schemas. It
    has more than 63 bytes, so that no table of a Postgres can have it.
    """
    return f"_etl_copy_{table_id}_becomes_the_table_with_that_oid_when_it_is_complete"


def drop_tables(connection: duckdb.DuckDBPyConnection, names: Iterable[str]) -> None:
    """Drop the tables of these names, in whatever schemas they are."""
    found = connection.execute(
        "SELECT schema_name, table_name FROM duckdb_tables() "
        "WHERE database_name = current_database() AND table_name IN (SELECT unnest(?::VARCHAR[]))",
        [list(names)],
    ).fetchall()
    for schema_name, name in found:
        connection.execute(f"DROP TABLE {table_name(connection, schema_name, name)}")
