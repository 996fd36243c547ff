"""What the destination remembers in its own file, in schema ``_etl``."""

# Statements are put together of constants only.
# ruff: noqa: S608

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa

from etl_dagster.destinations.duckdb.tables import fetch_row, fold
from etl_dagster.destinations.sql import odd_values, quarantine
from etl_dagster.destinations.sql.odd_values import OddValues
from etl_dagster.destinations.sql.quarantine import Quarantine
from etl_dagster.errors import InvalidState, Superseded
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import (
    ChunkId,
    EventBatch,
    TableChanges,
    TransactionMark,
    TruncateEvent,
)
from etl_dagster.model.identity import DestinationMark, HeldCopy
from etl_dagster.model.position import POSITION_ZERO, Position
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.table_name import TableName
from etl_dagster.values.columns import column_from_json, column_to_json

_CREATE = """
CREATE SCHEMA IF NOT EXISTS _etl;
-- The newest epoch that has written, in files of earlier versions.
CREATE TABLE IF NOT EXISTS _etl.meta (epoch UBIGINT NOT NULL);
-- The tables that are there, and as which version of their schema.
CREATE TABLE IF NOT EXISTS _etl.tables (
    table_id BIGINT NOT NULL, schema_name VARCHAR NOT NULL, table_name VARCHAR NOT NULL,
    snapshot_lsn UBIGINT NOT NULL, replica_identity VARCHAR NOT NULL, columns VARCHAR NOT NULL
);
-- Every change of the table up to this one is applied.
CREATE TABLE IF NOT EXISTS _etl.positions (
    table_id BIGINT NOT NULL, schema_name VARCHAR NOT NULL, table_name VARCHAR NOT NULL,
    commit_lsn UBIGINT NOT NULL, ordinal BIGINT NOT NULL
);
-- status: running, complete, or ended (a newer one has begun). replay_lsn: where the changes begin
-- that are not in a complete copy.
CREATE TABLE IF NOT EXISTS _etl.copies (
    table_id BIGINT NOT NULL, copy_id VARCHAR NOT NULL, status VARCHAR NOT NULL,
    replay_lsn UBIGINT
);
-- The chunks of a running copy that are in its table. The key refuses a second one at a time.
CREATE TABLE IF NOT EXISTS _etl.chunks (
    table_id BIGINT, copy_id VARCHAR, chunk_index BIGINT,
    PRIMARY KEY (table_id, copy_id, chunk_index)
);
-- One row for each applied change, where that is asked for. op: I, U, D, or T for truncate.
CREATE TABLE IF NOT EXISTS _etl.changelog (
    table_id BIGINT NOT NULL, op VARCHAR NOT NULL, commit_lsn UBIGINT NOT NULL,
    ordinal BIGINT NOT NULL
);
INSERT INTO _etl.meta SELECT 0 WHERE NOT EXISTS (FROM _etl.meta);
-- By this the file is told from others; a copy of the file has the same.
CREATE TABLE IF NOT EXISTS _etl.identity (identity VARCHAR NOT NULL);
INSERT INTO _etl.identity SELECT uuid()::VARCHAR WHERE NOT EXISTS (FROM _etl.identity);
-- What each pipeline has written: see etl_dagster.model.identity.DestinationMark.
CREATE TABLE IF NOT EXISTS _etl.pipelines (
    pipeline VARCHAR NOT NULL, revision UBIGINT NOT NULL, epoch UBIGINT NOT NULL,
    durable_lsn UBIGINT NOT NULL, stored_lsn UBIGINT NOT NULL,
    commit_lsn UBIGINT NOT NULL, xid UINTEGER NOT NULL, commit_time_us BIGINT NOT NULL
);
"""
#: What `_CREATE` makes.
_TABLES = (
    "changelog", "chunks", "copies", "identity", "meta", "pipelines", "positions", "tables",
    *odd_values.TABLES, *quarantine.TABLES,
)  # fmt: skip
#: What files of earlier versions lack. wanted_name: what a table is called that is stored under
#: another name, because another table has its own; null for all others. has_odd_values: whether
#: the table may have entries in _etl.odd_values, so that nothing is asked of those that have none.
_ADD = """
ALTER TABLE _etl.tables ADD COLUMN IF NOT EXISTS wanted_name VARCHAR;
ALTER TABLE _etl.tables ADD COLUMN IF NOT EXISTS has_odd_values BOOLEAN;
"""


#: A condition on a column of table IDs; its value is the list of them.
AMONG = "IN (SELECT unnest(?::BIGINT[]))"


class Ledger:
    """Reads and writes the ledger inside a transaction."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        #: Of the tables that were read, those that may have entries in ``_etl.odd_values``.
        self._having_odd: set[TableId] = set()

    def create(self) -> None:
        """Create what is missing: all of it, or what a file of an earlier version lacks."""
        if not self._there().issuperset(_TABLES):
            self._connection.execute(_CREATE + odd_values.CREATE + quarantine.CREATE)
        self._connection.execute(_ADD)

    def _there(self) -> set[str]:
        rows = self._connection.execute(
            "SELECT table_name FROM duckdb_tables() "
            "WHERE schema_name = '_etl' AND database_name = current_database()"
        ).fetchall()
        return {name for (name,) in rows}

    # -- the mark ------------------------------------------------------------------------------

    def mark(self, pipeline: str) -> DestinationMark | None:
        """The mark of a pipeline; None where nothing was written yet."""
        there = self._there()
        if "meta" not in there:
            return None
        if not there.issuperset({"identity", "pipelines"}):
            return DestinationMark("")
        identity = fetch_row(self._connection, "SELECT identity FROM _etl.identity") or ("",)
        mark = self._mark_of(pipeline, identity[0]) or DestinationMark(identity[0])
        others = self._connection.execute(
            "SELECT pipeline FROM _etl.pipelines WHERE pipeline <> ? ORDER BY ALL", [pipeline]
        ).fetchall()
        return replace(mark, others=tuple(name for (name,) in others))

    def _mark_of(self, pipeline: str, identity: str = "") -> DestinationMark | None:
        row = fetch_row(
            self._connection,
            "SELECT revision, epoch, durable_lsn, stored_lsn, commit_lsn, xid, commit_time_us "
            "FROM _etl.pipelines WHERE pipeline = ?",
            [pipeline],
        )
        if row is None:
            return None
        revision, epoch, durable, stored, commit, xid, time_us = row
        last_begin = TransactionMark(Lsn(commit), xid, time_us)
        return DestinationMark(identity, revision, epoch, Lsn(durable), Lsn(stored), last_begin)

    def revisions(self) -> tuple[str, dict[str, int]] | None:
        """The file's identity, and each pipeline's revision; None where there is no ledger."""
        try:
            rows = self._connection.execute(
                "SELECT identity, pipeline, revision FROM _etl.identity "
                "LEFT JOIN _etl.pipelines ON true"
            ).fetchall()
        except duckdb.CatalogException:
            return None
        if not rows:
            return None
        return rows[0][0], {
            pipeline: revision for _, pipeline, revision in rows if pipeline is not None
        }

    def raise_mark(self, events: EventBatch) -> int:
        """Count the batch, and remember its sender; returns the revision.

        Raises:
            Superseded: a newer epoch has written.
        """
        before = self._mark_of(events.pipeline)
        if before is None:
            # A file of an earlier version has one epoch for all.
            newest = fetch_row(self._connection, "SELECT max(epoch) FROM _etl.meta") or (0,)
            before = DestinationMark("", epoch=newest[0] or 0)
            self._connection.execute(
                "INSERT INTO _etl.pipelines VALUES (?, 0, ?, 0, 0, 0, 0, 0)",
                [events.pipeline, before.epoch],
            )
        if events.epoch and events.epoch < before.epoch:
            raise Superseded(f"epoch {events.epoch} was followed by epoch {before.epoch}")
        mark = before.after(events)
        self._connection.execute(
            "UPDATE _etl.pipelines SET revision = ?, epoch = ?, durable_lsn = ?, stored_lsn = ?, "
            "commit_lsn = ?, xid = ?, commit_time_us = ? WHERE pipeline = ?",
            [
                mark.revision,
                mark.epoch,
                mark.durable_lsn.offset,
                mark.stored_lsn.offset,
                mark.last_begin.commit_lsn.offset,
                mark.last_begin.xid,
                mark.last_begin.commit_time_us,
                events.pipeline,
            ],
        )
        return mark.revision

    def tables(self, table_ids: Collection[TableId]) -> dict[TableId, TableSchema]:
        """Those of the tables that are there."""
        return self._tables(f"table_id {AMONG}", [list(table_ids)])

    def all_tables(self) -> list[TableSchema]:
        return list(self._tables("true", []).values())

    def tables_in_the_way(self, schema: TableSchema) -> list[TableSchema]:
        """The table itself as it was before, and those whose names are one with its to DuckDB."""
        found = self._tables(
            "table_id = ? OR lower(schema_name) = lower(?) AND lower(table_name) = lower(?)",
            [schema.id, schema.schema_name, schema.table_name],
        ).values()
        name = fold(TableName(schema.schema_name, schema.table_name))
        return [
            other
            for other in found
            if other.id == schema.id or fold(TableName(other.schema_name, other.table_name)) == name
        ]

    def all_in_the_way(self, schemas: Sequence[TableSchema]) -> list[TableSchema]:
        """As `tables_in_the_way`, for many tables."""
        found = self._tables(
            f"table_id {AMONG} OR (lower(schema_name), lower(table_name)) "
            "IN (SELECT lower(unnest(?::VARCHAR[])), lower(unnest(?::VARCHAR[])))",
            [
                [schema.id for schema in schemas],
                [schema.schema_name for schema in schemas],
                [schema.table_name for schema in schemas],
            ],
        ).values()
        table_ids = {schema.id for schema in schemas}
        names = {fold(TableName(schema.schema_name, schema.table_name)) for schema in schemas}
        return [
            other
            for other in found
            if other.id in table_ids
            or fold(TableName(other.schema_name, other.table_name)) in names
        ]

    def _tables(self, condition: str, values: list[object]) -> dict[TableId, TableSchema]:
        rows = self._connection.execute(
            "SELECT table_id, schema_name, table_name, columns, snapshot_lsn, replica_identity, "
            "has_odd_values FROM _etl.tables WHERE " + condition,
            values,
        ).fetchall()
        self._having_odd |= {row[0] for row in rows if row[6]}
        return {
            table_id: TableSchema(
                table_id,
                schema_name,
                name,
                tuple(map(column_from_json, json.loads(columns))),
                Lsn(snapshot_lsn),
                identity,
            )
            for table_id, schema_name, name, columns, snapshot_lsn, identity, _ in rows
        }

    def keep_table(self, schema: TableSchema, *, wanted_name: str | None = None) -> None:
        """Remember the table as it is stored, and how it is called where that is another name."""
        self.forget_table(schema.id)
        columns = columns_to_json(schema)
        self._connection.execute(
            "INSERT INTO _etl.tables (table_id, schema_name, table_name, snapshot_lsn, "
            "replica_identity, columns, wanted_name, has_odd_values) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                schema.id,
                schema.schema_name,
                schema.table_name,
                schema.snapshot_id.offset,
                schema.replica_identity,
                columns,
                wanted_name,
                schema.id in self._having_odd,
            ],
        )
        if schema.id in self._having_odd:
            OddValues(self._connection).rename(schema)
        if schema.quarantine_columns:
            Quarantine(self._connection).rename(schema)

    def wanted_name(self, table_id: TableId) -> str | None:
        """How a table is called that is stored under another name; None for all others."""
        row = fetch_row(
            self._connection, "SELECT wanted_name FROM _etl.tables WHERE table_id = ?", [table_id]
        )
        return None if row is None else row[0]

    def wanted_names(self) -> dict[TableId, str]:
        """Of the tables that are stored under another name, how they are called."""
        rows = self._connection.execute(
            "SELECT table_id, wanted_name FROM _etl.tables WHERE wanted_name IS NOT NULL"
        ).fetchall()
        return dict(rows)

    def has_odd_values(self, table_id: TableId) -> bool:
        """Whether a table that was read may have entries in ``_etl.odd_values``."""
        return table_id in self._having_odd

    def note_odd_values(self, table_id: TableId, has_any: bool) -> None:
        """Remember whether the table may have entries in ``_etl.odd_values``."""
        if has_any == (table_id in self._having_odd):
            return
        (self._having_odd.add if has_any else self._having_odd.discard)(table_id)
        self._connection.execute(
            "UPDATE _etl.tables SET has_odd_values = ? WHERE table_id = ?", [has_any, table_id]
        )

    def forget_table(self, table_id: TableId) -> None:
        self._connection.execute("DELETE FROM _etl.tables WHERE table_id = ?", [table_id])

    def position(self, table_id: TableId) -> Position:
        row = fetch_row(
            self._connection,
            "SELECT commit_lsn, ordinal FROM _etl.positions WHERE table_id = ?",
            [table_id],
        )
        return POSITION_ZERO if row is None else Position(Lsn(row[0]), row[1])

    def keep_position(self, schema: TableSchema, position: Position) -> None:
        self.forget_position(schema.id)
        self._connection.execute(
            "INSERT INTO _etl.positions VALUES (?, ?, ?, ?, ?)",
            [
                schema.id,
                schema.schema_name,
                schema.table_name,
                position.commit_lsn.offset,
                position.ordinal,
            ],
        )

    def forget_position(self, table_id: TableId) -> None:
        self._connection.execute("DELETE FROM _etl.positions WHERE table_id = ?", [table_id])

    def log(self, step: TableChanges | TruncateEvent) -> None:
        """Write the changes down one by one."""
        if isinstance(step, TruncateEvent):
            self._connection.execute(
                "INSERT INTO _etl.changelog VALUES (?, 'T', ?, ?)",
                [step.schema.id, step.position.commit_lsn.offset, step.position.ordinal],
            )
            return
        ops = pa.array(np.asarray(step.ops, np.uint8).view("S1")).cast(pa.string())
        entries = pa.RecordBatch.from_arrays(
            [ops, pa.array(step.commit_lsns), pa.array(step.ordinals)], ["op", "lsn", "ordinal"]
        )
        self._connection.register("_etl_entries", entries)
        self._connection.execute(
            "INSERT INTO _etl.changelog SELECT ?, op, lsn, ordinal FROM _etl_entries",
            [step.schema.id],
        )
        self._connection.unregister("_etl_entries")

    # -- the copy ------------------------------------------------------------------------------

    def copy_status(self, table_id: TableId, copy_id: str) -> str | None:
        """running, complete, or None for a copy never heard of.

        Raises:
            InvalidState: a newer copy has begun since.
        """
        row = fetch_row(
            self._connection,
            "SELECT status FROM _etl.copies WHERE table_id = ? AND copy_id = ?",
            [table_id, copy_id],
        )
        if row == ("ended",):
            raise InvalidState(f"a newer copy of table {table_id} has begun than {copy_id}")
        return None if row is None else str(row[0])

    def begin_copy(self, table_id: TableId, copy_id: str) -> None:
        """Remember the copy as the one that is running."""
        self.end_copies(table_id)
        self._connection.execute(
            "INSERT INTO _etl.copies VALUES (?, ?, 'running', NULL)", [table_id, copy_id]
        )

    def end_copies(self, table_id: TableId) -> None:
        """From now on refuse every copy of the table that was heard of."""
        self._connection.execute(
            "UPDATE _etl.copies SET status = 'ended' WHERE table_id = ?", [table_id]
        )
        self._forget_chunks(table_id)

    def complete_copy(self, table_id: TableId, copy_id: str, replay_from: Lsn) -> None:
        self._connection.execute(
            "UPDATE _etl.copies SET status = 'complete', replay_lsn = ? "
            "WHERE table_id = ? AND copy_id = ?",
            [replay_from.offset, table_id, copy_id],
        )
        self._forget_chunks(table_id)

    def replay_points(self, table_ids: Collection[TableId]) -> dict[TableId, Lsn]:
        """Of each of the tables' complete copy, where the changes begin that are not in it."""
        rows = self._connection.execute(
            "SELECT table_id, replay_lsn FROM _etl.copies "
            f"WHERE table_id {AMONG} AND status = 'complete'",
            [list(table_ids)],
        ).fetchall()
        return {table_id: Lsn(replay_lsn) for table_id, replay_lsn in rows}

    def held_copies(self, table_ids: Collection[TableId]) -> dict[TableId, HeldCopy]:
        """The tables' current copies, running or complete."""
        if "copies" not in self._there():
            return {}
        rows = self._connection.execute(
            "SELECT table_id, copy_id, status = 'complete', "
            "(SELECT list(chunk_index) FROM _etl.chunks h "
            "WHERE h.table_id = c.table_id AND h.copy_id = c.copy_id) "
            "FROM _etl.copies c WHERE status <> 'ended' "
            "AND table_id IN (SELECT unnest(?::BIGINT[]))",
            [list(table_ids)],
        ).fetchall()
        return {
            table_id: HeldCopy(copy_id, is_complete, frozenset(chunks or ()))
            for table_id, copy_id, is_complete, chunks in rows
        }

    def has_chunk(self, table_id: TableId, chunk: ChunkId) -> bool:
        row = fetch_row(
            self._connection,
            "SELECT 1 FROM _etl.chunks WHERE table_id = ? AND copy_id = ? AND chunk_index = ?",
            [table_id, chunk.copy_id, chunk.index],
        )
        return row is not None

    def keep_chunk(self, table_id: TableId, chunk: ChunkId) -> None:
        self._connection.execute(
            "INSERT INTO _etl.chunks VALUES (?, ?, ?)", [table_id, chunk.copy_id, chunk.index]
        )

    def _forget_chunks(self, table_id: TableId) -> None:
        self._connection.execute("DELETE FROM _etl.chunks WHERE table_id = ?", [table_id])


def folded_name(schema: TableSchema) -> tuple[str, str]:
    """The same for tables whose names are one to DuckDB."""
    return fold(TableName(schema.schema_name, schema.table_name))


def columns_to_json(schema: TableSchema) -> str:
    """As they are kept in ``_etl.tables``."""
    return json.dumps([column_to_json(column) for column in schema.columns])
