"""Which tables the destination has, how far each is, and what was applied to it."""

# Statements are put together of constants only.
# ruff: noqa: S608

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.sql.clashes import folded_name
from etl_dagster.destinations.sql.dialect import AMONG
from etl_dagster.destinations.sql.ledger_tables import (
    TABLES,
    add_columns,
    create_tables,
    tables_there,
)
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.quarantine import Quarantine
from etl_dagster.destinations.sql.session import Session, Statement
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import TableChanges, TruncateEvent
from etl_dagster.model.position import POSITION_ZERO, Position
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.values.columns import MODE_FORMAT, column_from_json, column_to_json


class Ledger:
    """Reads and writes ``_etl.tables``, ``_etl.positions`` and ``_etl.changelog``.

    One object belongs to one transaction: it remembers what it has read.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        #: Of the tables that were read, those that may have entries in ``_etl.odd_values``.
        self._having_odd: set[TableId] = set()

    def create(self) -> None:
        """Create what is missing: all of it, or what an earlier version didn't have."""
        if not tables_there(self._session).issuperset(TABLES):
            self._session.run_each(create_tables(self._session.dialect))
            self._session.execute(
                "INSERT INTO _etl.meta SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM _etl.meta)"
            )
            self._session.execute(
                "INSERT INTO _etl.identity SELECT CAST($1 AS VARCHAR) "
                "WHERE NOT EXISTS (SELECT 1 FROM _etl.identity)",
                [str(uuid.uuid4())],
            )
        self._session.run_each(add_columns())

    # -- tables --------------------------------------------------------------------------------

    def tables(self, table_ids: Collection[TableId]) -> dict[TableId, TableSchema]:
        """The tables that the destination has, of these."""
        return self._tables(f"table_id {AMONG}", [list(table_ids)])

    def tables_of_batch(self, table_ids: Collection[TableId]) -> dict[TableId, TableSchema]:
        """The same, for a batch that changes them and is about to read how far each is.

        One that another batch has just replaced is missing.
        """
        lock = self._session.dialect.batch_lock
        return self._tables(f"table_id {AMONG}{lock}", [list(table_ids)])

    def all_tables(self) -> list[TableSchema]:
        return list(self._tables("true", []).values())

    def in_the_way(self, schemas: Sequence[TableSchema]) -> list[TableSchema]:
        """These tables as they are stored, and others whose names are the same to the database."""
        # The database may fold names more than `Dialect.fold` does, never less.
        found = self._tables(
            f"table_id {AMONG} OR (lower(schema_name), lower(table_name)) "
            "IN (SELECT lower(unnest($2::VARCHAR[])), lower(unnest($3::VARCHAR[])))",
            [
                [schema.id for schema in schemas],
                [schema.schema_name for schema in schemas],
                [schema.table_name for schema in schemas],
            ],
        ).values()
        dialect = self._session.dialect
        table_ids = {schema.id for schema in schemas}
        names = {folded_name(dialect, schema) for schema in schemas}
        return [
            other
            for other in found
            if other.id in table_ids or folded_name(dialect, other) in names
        ]

    def _tables(self, condition: str, values: list[object]) -> dict[TableId, TableSchema]:
        rows = self._session.fetch(
            "SELECT table_id, schema_name, table_name, columns, snapshot_lsn, replica_identity, "
            "has_odd_values, mode FROM _etl.tables WHERE " + condition,
            values,
        )
        self._having_odd |= {row[0] for row in rows if row[6]}
        return {
            table_id: TableSchema(
                table_id,
                schema_name,
                name,
                tuple(map(column_from_json, json.loads(columns))),
                Lsn(snapshot_lsn),
                identity,
                mode or "mirror",
            )
            for table_id, schema_name, name, columns, snapshot_lsn, identity, _, mode in rows
        }

    def keep_table(self, schema: TableSchema, *, wanted_name: str | None = None) -> None:
        """Record the table as it is stored, and the name that it should have if that is another."""
        self.forget_table(schema.id)
        self._session.execute(
            "INSERT INTO _etl.tables (table_id, schema_name, table_name, snapshot_lsn, "
            "replica_identity, columns, wanted_name, has_odd_values, mode) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            [
                schema.id,
                schema.schema_name,
                schema.table_name,
                schema.snapshot_id.offset,
                schema.replica_identity,
                columns_to_json(schema),
                wanted_name,
                schema.id in self._having_odd,
                schema.mode,
            ],
        )
        if schema.id in self._having_odd:
            OddValues(self._session).rename(schema)
        if schema.quarantine_columns:
            Quarantine(self._session).rename(schema)

    def wanted_name(self, table_id: TableId) -> str | None:
        """The name that a table should have, if it is stored under another; else None."""
        row = self._session.fetch_row(
            "SELECT wanted_name FROM _etl.tables WHERE table_id = $1", [table_id]
        )
        return None if row is None else row[0]

    def wanted_names(self) -> dict[TableId, str]:
        """For the tables that are stored under another name, the names that they should have."""
        rows = self._session.fetch(
            "SELECT table_id, wanted_name FROM _etl.tables WHERE wanted_name IS NOT NULL"
        )
        return dict(rows)

    def has_odd_values(self, table_id: TableId) -> bool:
        """Whether a table that was read may have entries in ``_etl.odd_values``."""
        return table_id in self._having_odd

    def note_odd_values(self, table_id: TableId, has_any: bool) -> None:
        """Remember whether the table may have entries in ``_etl.odd_values``."""
        if has_any == (table_id in self._having_odd):
            return
        (self._having_odd.add if has_any else self._having_odd.discard)(table_id)
        self._session.execute(
            "UPDATE _etl.tables SET has_odd_values = $1 WHERE table_id = $2", [has_any, table_id]
        )

    def forget_table(self, table_id: TableId) -> None:
        self._session.execute("DELETE FROM _etl.tables WHERE table_id = $1", [table_id])

    # -- positions -----------------------------------------------------------------------------

    def position(self, table_id: TableId) -> Position:
        row = self._session.fetch_row(
            "SELECT commit_lsn, ordinal FROM _etl.positions WHERE table_id = $1", [table_id]
        )
        return POSITION_ZERO if row is None else Position(Lsn(row[0]), row[1])

    def keep_position(self, schema: TableSchema, position: Position) -> None:
        self.forget_position(schema.id)
        self._session.execute(
            "INSERT INTO _etl.positions VALUES ($1, $2, $3, $4, $5)",
            [
                schema.id,
                schema.schema_name,
                schema.table_name,
                position.commit_lsn.offset,
                position.ordinal,
            ],
        )

    def forget_position(self, table_id: TableId) -> None:
        self._session.execute("DELETE FROM _etl.positions WHERE table_id = $1", [table_id])

    # -- the changelog -------------------------------------------------------------------------

    def log(self, step: TableChanges | TruncateEvent) -> None:
        """Write an entry for each change."""
        if isinstance(step, TruncateEvent):
            self._session.execute(
                "INSERT INTO _etl.changelog VALUES ($1, 'T', $2, $3)",
                [step.schema.id, step.position.commit_lsn.offset, step.position.ordinal],
            )
            return
        ops = pa.array(np.asarray(step.ops, np.uint8).view("S1")).cast(pa.string())
        entries = pa.RecordBatch.from_arrays(
            [ops, pa.array(step.commit_lsns), pa.array(step.ordinals)], ["op", "lsn", "ordinal"]
        )
        self._session.run(
            Statement(
                "INSERT INTO _etl.changelog "
                "SELECT CAST($1 AS BIGINT), op, lsn, ordinal FROM _etl_entries",
                [step.schema.id],
                {"_etl_entries": entries},
            )
        )


def columns_to_json(schema: TableSchema) -> str:
    """The columns as they are kept in ``_etl.tables``."""
    mark = {} if schema.mode == "mirror" else {"format": MODE_FORMAT}
    return json.dumps([column_to_json(column) | mark for column in schema.columns])
