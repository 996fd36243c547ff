"""Whole copies of many small tables in one transaction."""

# Statements are put together of constants only.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from etl_dagster.destinations.sql.clashes import folded_name, same_name
from etl_dagster.destinations.sql.copies import Copies
from etl_dagster.destinations.sql.dialect import AMONG
from etl_dagster.destinations.sql.kept_copies import KeptCopies
from etl_dagster.destinations.sql.ledger import Ledger, columns_to_json
from etl_dagster.destinations.sql.modes import BY_NAME
from etl_dagster.destinations.sql.names import TableNames
from etl_dagster.destinations.sql.odd_values import OddEntries, OddValues
from etl_dagster.destinations.sql.quarantine import Quarantine
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.statements import insert
from etl_dagster.destinations.sql.tables import Target, create_table, drop_tables
from etl_dagster.model.events import TableRows
from etl_dagster.model.position import Position
from etl_dagster.model.schema import TableId, TableSchema

#: Turns a failure inside of the block into one of the table.
Blaming = Callable[[TableId, str], AbstractContextManager[None]]


class WholeTables:
    """Writes inside a transaction; what is written is complete when that is committed.

    A copy in chunks has a table of its own until it is complete. Here the transaction takes the
    place of that.

    Args:
        is_known: whether the pipeline has a table; one that it forgot may be replaced by name.
    """

    def __init__(
        self,
        session: Session,
        blaming: Blaming,
        is_known: Callable[[TableId], bool],
    ) -> None:
        self._session = session
        self._ledger = Ledger(session)
        self._copies = Copies(session)
        self._odd = OddValues(session)
        self._blaming = blaming
        self._is_known = is_known

    def forget_copies(self, table_ids: Sequence[TableId]) -> None:
        """From now on refuse every known copy of the tables."""
        self._copies.end(table_ids)
        self._delete("positions", table_ids)

    def write(self, copies: Sequence[tuple[TableSchema, TableRows]]) -> None:
        """Write the tables whose copies are not complete yet.

        Raises:
            TableWriteFailed: one table refuses.
            InvalidState: a newer copy of a table has begun.
        """
        complete = self._copies.complete_among({schema.id: rows.copy_id for schema, rows in copies})
        todo = [(schema, rows) for schema, rows in copies if schema.id not in complete]
        if not todo:
            return
        names = TableNames(self._session, self._ledger)
        for schema, rows in todo:
            if schema.mode != "mirror":
                with self._blaming(schema.id, schema.name):
                    self._write_kept(names, schema, rows)
        mirrors = [(schema, rows) for schema, rows in todo if schema.mode == "mirror"]
        self._make_way(names, [schema for schema, _ in mirrors])
        for schema, rows in mirrors:
            with self._blaming(schema.id, schema.name):
                self._write_table(schema, rows)
        if mirrors:
            self._keep(mirrors)
        names.settle()

    def _write_kept(self, names: TableNames, schema: TableSchema, rows: TableRows) -> None:
        """Write a table that keeps more than its source has: its copy is staged first."""
        self.forget_copies([schema.id])
        self._copies.begin(schema.id, rows.copy_id)
        staging = Target.staging(self._session.dialect, schema)
        drop_tables(self._session, [staging.name])
        create_table(self._session, staging)
        self._fill(staging, schema, rows)
        kept = KeptCopies(self._session, self._ledger, names, self._is_known)
        kept.finish(BY_NAME[schema.mode], schema, rows)

    def _make_way(self, names: TableNames, schemas: Sequence[TableSchema]) -> None:
        """Drop what the tables replace, and make their names free."""
        dialect = self._session.dialect
        by_id = {schema.id: schema for schema in schemas}
        by_name: dict[tuple[str, str], TableSchema] = {}
        for schema in schemas:
            other = by_name.setdefault(folded_name(dialect, schema), schema)
            if other is not schema:
                raise same_name(dialect, schema, other)
        claimed: dict[TableId, TableSchema] = {}
        for other in self._ledger.in_the_way(schemas):
            schema = by_id.get(other.id) or by_name[folded_name(dialect, other)]
            claimed[schema.id] = schema
        kept = KeptCopies(self._session, self._ledger, names, self._is_known)
        for schema in claimed.values():
            kept.make_way(schema)
        drop_tables(self._session, (Target.staging(dialect, schema).name for schema in schemas))

    def _write_table(self, schema: TableSchema, rows: TableRows) -> None:
        target = Target.of(self._session.dialect, schema)
        # Refused if a table that isn't ours has the name.
        create_table(self._session, target)
        self._fill(target, schema, rows)
        self._session.complete(target.sql, schema)

    def _fill(self, target: Target, schema: TableSchema, rows: TableRows) -> None:
        known = schema
        for piece in rows.pieces():
            known = self._session.make_room(target.sql, known, schema, piece.rows)
            self._session.run(insert(target, piece.rows))
            if piece.odd:
                entries = OddEntries.copied(piece, schema.key_columns)
                self._odd.keep_copied(schema.id, [entries], target.types)

    def _keep(self, copies: Sequence[tuple[TableSchema, TableRows]]) -> None:
        """Remember the tables, that each has all rows of its copy, and where changes continue."""
        uint64 = self._session.dialect.uint64
        schemas = [schema for schema, _ in copies]
        table_ids = [schema.id for schema in schemas]
        self.forget_copies(table_ids)
        self._delete("tables", table_ids)
        begins = [Position.just_before(rows.replay_from) for _, rows in copies]
        having_odd = self._odd.complete(list(zip(schemas, begins, strict=True)))
        for schema in schemas:
            if schema.id in having_odd:
                Quarantine(self._session).hold_all(schema)
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
                "replay_lsn": (uint64, [rows.replay_from.offset for _, rows in copies]),
            },
        )
        self._insert(
            "tables",
            {
                **named,
                "snapshot_lsn": (uint64, [schema.snapshot_id.offset for schema in schemas]),
                "replica_identity": ("VARCHAR", [schema.replica_identity for schema in schemas]),
                "columns": ("VARCHAR", [columns_to_json(schema) for schema in schemas]),
                "has_odd_values": ("BOOLEAN", [schema.id in having_odd for schema in schemas]),
                "mode": ("VARCHAR", [schema.mode for schema in schemas]),
            },
        )
        self._insert(
            "positions",
            {
                **named,
                "commit_lsn": (uint64, [begin.commit_lsn.offset for begin in begins]),
                "ordinal": ("BIGINT", [begin.ordinal for begin in begins]),
            },
        )

    def _delete(self, table: str, table_ids: Sequence[TableId]) -> None:
        self._session.execute(f"DELETE FROM _etl.{table} WHERE table_id {AMONG}", [list(table_ids)])

    def _insert(self, table: str, columns: Mapping[str, tuple[str, Sequence[object]]]) -> None:
        """Append rows, given as columns: for each its type and its values."""
        values = ", ".join(
            f"unnest(${number}::{type_}[])"
            for number, (type_, _) in enumerate(columns.values(), start=1)
        )
        self._session.execute(
            f"INSERT INTO _etl.{table} ({', '.join(columns)}) SELECT {values}",
            [list(column) for _, column in columns.values()],
        )
