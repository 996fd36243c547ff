"""A state store in one SQLite file: the three small contracts of `etl_dagster.model.stores`.

A pipeline that runs in one process needs no more than this module. What several processes need is
in `etl_files.coordination`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from etl_dagster.config import PipelineConfig, StoreConfig
from etl_dagster.errors import StateRollbackError
from etl_dagster.lsn import Lsn
from etl_dagster.model.schema import SnapshotId, TableId, TableSchema, TableSchemaRetention
from etl_dagster.model.states import TableState, is_durable, state_from_json, state_to_json
from etl_dagster.model.stores import DestinationTableMetadata, TableSyncWorker, WorkerType
from pydantic import Field, TypeAdapter

from etl_files.sqlite_file import SqliteFile

_TABLES = (
    *SqliteFile.tables,
    # The state of a table is the newest of its rows; those before are its history.
    "CREATE TABLE IF NOT EXISTS states "
    "(id INTEGER PRIMARY KEY AUTOINCREMENT, table_id INTEGER NOT NULL, state TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS states_of_table ON states (table_id, id)",
    "CREATE TABLE IF NOT EXISTS schemas (table_id INTEGER, snapshot TEXT, schema TEXT NOT NULL, "
    "PRIMARY KEY (table_id, snapshot))",
    "CREATE TABLE IF NOT EXISTS progress (worker TEXT PRIMARY KEY, flush_lsn TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS metadata (table_id INTEGER PRIMARY KEY, metadata TEXT NOT NULL)",
)
#: The model's dataclasses to JSON and back.
_SCHEMA = TypeAdapter(TableSchema)
_METADATA = TypeAdapter(DestinationTableMetadata)


class SqliteStoreConfig(StoreConfig):
    """The section ``state_store`` of `etl.yaml`."""

    type: Literal["sqlite"]
    path: Path = Field(description="The file, of one pipeline; its folder must exist.")
    busy_timeout_s: float = Field(30.0, gt=0, description="How long to wait for another writer.")


class SqliteStore(SqliteFile):
    """Keeps everything of one pipeline in one file, which the first call makes."""

    config_model = SqliteStoreConfig
    tables = _TABLES

    @classmethod
    def from_config(cls, config: SqliteStoreConfig, pipeline: PipelineConfig) -> Self:
        return cls(config.path, pipeline.pipeline, busy_timeout_s=config.busy_timeout_s)

    # -- schemas -------------------------------------------------------------------------------

    def get_table_schema(self, table_id: TableId, snapshot_id: SnapshotId) -> TableSchema | None:
        found = self._read(
            "SELECT schema FROM schemas WHERE table_id = ? AND snapshot <= ? "
            "ORDER BY snapshot DESC LIMIT 1",
            *(table_id, _text(snapshot_id)),
        )
        return _SCHEMA.validate_json(found[0][0]) if found else None

    def get_table_schemas(self) -> Sequence[TableSchema]:
        rows = self._read("SELECT schema FROM schemas ORDER BY table_id, snapshot")
        return [_SCHEMA.validate_json(schema) for (schema,) in rows]

    def load_table_schemas(self) -> int:
        return len(self.get_table_schemas())

    def store_table_schema(self, schema: TableSchema) -> TableSchema:
        self._write(
            "INSERT OR REPLACE INTO schemas VALUES (?, ?, ?)",
            *(schema.id, _text(schema.snapshot_id), _SCHEMA.dump_json(schema).decode()),
        )
        return schema

    def prune_table_schemas(self, retentions: Mapping[TableId, TableSchemaRetention]) -> int:
        # Without a version in force, max() is NULL, and nothing is less.
        statement = (
            "DELETE FROM schemas WHERE table_id = ?1 AND snapshot < "
            "(SELECT max(snapshot) FROM schemas WHERE table_id = ?1 AND snapshot <= ?2)"
        )
        with self._transaction() as connection:
            return sum(
                connection.execute(statement, (table_id, _text(retention.lsn))).rowcount
                for table_id, retention in retentions.items()
            )

    # -- states --------------------------------------------------------------------------------

    def get_table_replication_state(self, table_id: TableId) -> TableState | None:
        found = self._read(
            "SELECT state FROM states WHERE table_id = ? ORDER BY id DESC LIMIT 1", table_id
        )
        return state_from_json(json.loads(found[0][0])) if found else None

    def get_table_replication_states(self) -> Mapping[TableId, TableState]:
        rows = self._read(
            "SELECT table_id, state FROM states "
            "WHERE id IN (SELECT max(id) FROM states GROUP BY table_id) ORDER BY table_id"
        )
        return {table_id: state_from_json(json.loads(state)) for table_id, state in rows}

    def load_table_replication_states(self) -> int:
        return len(self.get_table_replication_states())

    def update_table_replication_states(
        self, updates: Sequence[tuple[TableId, TableState]]
    ) -> None:
        with self._transaction() as connection:
            for table_id, state in updates:
                self._set_state(connection, table_id, state)

    def rollback_table_replication_state(self, table_id: TableId) -> TableState:
        with self._transaction() as connection:
            history = connection.execute(
                "SELECT id, state FROM states WHERE table_id = ? ORDER BY id DESC", (table_id,)
            ).fetchall()
            for number, text in history[1:]:
                state = state_from_json(json.loads(text))
                if is_durable(state):
                    connection.execute(
                        "DELETE FROM states WHERE table_id = ? AND id > ?", (table_id, number)
                    )
                    return state
        raise StateRollbackError(f"table {table_id} has no earlier state to go back to")

    def _set_state(
        self, connection: sqlite3.Connection, table_id: TableId, state: TableState
    ) -> None:
        # The same state again is not a change; it would only make a rollback go nowhere.
        if self.get_table_replication_state(table_id) != state:
            connection.execute(
                "INSERT INTO states (table_id, state) VALUES (?, ?)",
                (table_id, json.dumps(state_to_json(state))),
            )

    # -- progress ------------------------------------------------------------------------------

    def get_replication_progress(self, worker: WorkerType) -> Lsn | None:
        found = self._read("SELECT flush_lsn FROM progress WHERE worker = ?", worker_key(worker))
        return _lsn(found[0][0]) if found else None

    def upsert_replication_progress(self, worker: WorkerType, flush_lsn: Lsn) -> Lsn:
        [(stored,)] = self._write(
            "INSERT INTO progress VALUES (?, ?) ON CONFLICT (worker) DO UPDATE "
            "SET flush_lsn = max(flush_lsn, excluded.flush_lsn) RETURNING flush_lsn",
            *(worker_key(worker), _text(flush_lsn)),
        )
        return _lsn(stored)

    def delete_replication_progress(self, worker: WorkerType) -> None:
        self._write("DELETE FROM progress WHERE worker = ?", worker_key(worker))

    # -- destination metadata ------------------------------------------------------------------

    def get_destination_table_metadata(self, table_id: TableId) -> DestinationTableMetadata | None:
        found = self._read("SELECT metadata FROM metadata WHERE table_id = ?", table_id)
        return _METADATA.validate_json(found[0][0]) if found else None

    def get_applied_destination_table_metadata(
        self, table_id: TableId
    ) -> DestinationTableMetadata | None:
        metadata = self.get_destination_table_metadata(table_id)
        return None if metadata is None else metadata.require_applied()

    def load_destination_tables_metadata(self) -> int:
        return int(self._read("SELECT count(*) FROM metadata")[0][0])

    def store_destination_table_metadata(
        self, table_id: TableId, metadata: DestinationTableMetadata
    ) -> None:
        self._write(
            "INSERT OR REPLACE INTO metadata VALUES (?, ?)",
            *(table_id, _METADATA.dump_json(metadata).decode()),
        )

    # -- lifecycle -----------------------------------------------------------------------------

    def clear_table_copy_state(self, table_id: TableId) -> None:
        with self._transaction() as connection:
            self._clear_copy(connection, table_id)

    def delete_table_pipeline_state(self, table_id: TableId) -> None:
        with self._transaction() as connection:
            self._clear_copy(connection, table_id)
            connection.execute("DELETE FROM states WHERE table_id = ?", (table_id,))

    def _clear_copy(self, connection: sqlite3.Connection, table_id: TableId) -> None:
        connection.execute("DELETE FROM schemas WHERE table_id = ?", (table_id,))
        connection.execute("DELETE FROM metadata WHERE table_id = ?", (table_id,))
        worker = worker_key(TableSyncWorker(table_id))
        connection.execute("DELETE FROM progress WHERE worker = ?", (worker,))


def _text(lsn: Lsn) -> str:
    """An LSN as text that sorts as it does; SQLite's integers have a sign."""
    return f"{lsn.offset:016X}"


def _lsn(text: str) -> Lsn:
    return Lsn(int(text, 16))


def worker_key(worker: WorkerType) -> str:
    return f"table_sync:{worker.table_id}" if isinstance(worker, TableSyncWorker) else "apply"
