"""What several processes need of a store: `Coordination`, by the same file and files next to it.

With it the pipeline runs under Dagster, where every copy is a process of its own, and a copy that
was interrupted continues where it was.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from etl_dagster.model.coordination import CopyPlan, FinishedChunk, epoch_by_clock
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import Init, TableState
from etl_dagster.model.stores import ApplyWorker
from pydantic import TypeAdapter

from etl_files.locks import FileLease, try_lock
from etl_files.store import SqliteStore, worker_key

_PLAN = TypeAdapter(CopyPlan)
#: How late a change of another process may be seen.
_POLL_S = 0.02
#: Who asks whether a lease is taken has it for a moment; so a first refusal isn't the last word.
_LEASE_TRIES = 5


class SharedSqliteStore(SqliteStore):
    """A store that the processes of one machine share. Keep it on a local disk: over a network,
    neither SQLite's locks nor ours can be relied on."""

    tables = (
        *SqliteStore.tables,
        "CREATE TABLE IF NOT EXISTS plans (table_id INTEGER PRIMARY KEY, plan TEXT NOT NULL)",
        "CREATE TABLE IF NOT EXISTS status (key TEXT PRIMARY KEY, payload TEXT NOT NULL)",
        "CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, note TEXT NOT NULL)",
    )

    def __init__(self, path: Path, pipeline: str, *, busy_timeout_s: float = 30.0) -> None:
        super().__init__(path, pipeline, busy_timeout_s=busy_timeout_s)
        self._leases = path.with_name(path.name + ".leases")
        self._watch: sqlite3.Connection | None = None
        self._woken = threading.Condition()
        self._wakes = 0
        #: What each thread saw when its last wait ended.
        self._seen = threading.local()

    def close(self) -> None:
        """Let go of the file; leases live on until they are released."""
        super().close()
        self.wake()
        with self._woken:
            if self._watch is not None:
                self._watch.close()
                self._watch = None

    # -- states --------------------------------------------------------------------------------

    def transition_table_state(
        self, table_id: TableId, expected: TableState, new: TableState
    ) -> bool:
        with self._transaction() as connection:
            if self.get_table_replication_state(table_id) != expected:
                return False
            self._set_state(connection, table_id, new)
        return True

    def request_copy(self, table_id: TableId) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM plans WHERE table_id = ?", (table_id,))
            self._set_state(connection, table_id, Init())

    def reset_for_resync(self) -> int:
        with self._transaction() as connection:
            table_ids = list(self.get_table_replication_states())
            for table_id in table_ids:
                self._set_state(connection, table_id, Init())
            worker = worker_key(ApplyWorker())
            connection.execute("DELETE FROM progress WHERE worker = ?", (worker,))
            connection.execute("DELETE FROM plans")
        return len(table_ids)

    # -- waiting -------------------------------------------------------------------------------

    def wait_for_change(self, timeout_s: float) -> None:
        """Return when anything was committed since this thread's last wait, or in time."""
        deadline = time.monotonic() + timeout_s
        before = getattr(self._seen, "version", None)
        with self._woken:
            while (version := self._version()) == before:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    break
                self._woken.wait(min(remaining_s, _POLL_S))
        self._seen.version = version

    def wake(self) -> None:
        with self._woken:
            self._wakes += 1
            self._woken.notify_all()

    def _version(self) -> tuple[int, int]:
        # SQLite counts the commits of all other connections; so this one must never write.
        # Source: https://sqlite.org/pragma.html#pragma_data_version
        try:
            if self._watch is None:
                with self._lock:
                    self._opened()
                self._watch = self._connect()
            [version] = self._watch.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            raise self._explained(error) from error
        return version, self._wakes

    # -- leases and epochs ---------------------------------------------------------------------

    def acquire_lease(self, name: str) -> FileLease | None:
        self._leases.mkdir(exist_ok=True)
        path = self._lease_path(name)
        for _ in range(_LEASE_TRIES):
            file = try_lock(path)
            if file is not None:
                return FileLease(path, file)
            time.sleep(0.01)
        return None

    def is_leased(self, name: str) -> bool:
        path = self._lease_path(name)
        if not path.exists():
            return False
        file = try_lock(path)
        if file is not None:
            file.close()
        return file is None

    def _lease_path(self, name: str) -> Path:
        return self._leases / f"{quote(name, safe='')}.lock"

    def take_epoch(self) -> int:
        [(epoch,)] = self._write(
            "UPDATE pipeline SET epoch = max(epoch + 1, ?) RETURNING epoch", epoch_by_clock()
        )
        return int(epoch)

    def current_epoch(self) -> int:
        return int(self._read("SELECT epoch FROM pipeline")[0][0])

    # -- copies --------------------------------------------------------------------------------

    def get_copy_plan(self, table_id: TableId) -> CopyPlan | None:
        found = self._read("SELECT plan FROM plans WHERE table_id = ?", table_id)
        return _PLAN.validate_json(found[0][0]) if found else None

    def store_copy_plan(self, table_id: TableId, plan: CopyPlan) -> None:
        with self._transaction() as connection:
            self._set_plan(connection, table_id, replace(plan, finished={}))

    def finish_chunk(self, table_id: TableId, copy_id: str, chunk: FinishedChunk) -> None:
        with self._transaction() as connection:
            plan = self.get_copy_plan(table_id)
            if plan is None or plan.copy_id != copy_id:
                return
            if chunk.index in {planned.index for planned in plan.remaining}:
                finished = {**plan.finished, chunk.index: chunk}
                self._set_plan(connection, table_id, replace(plan, finished=finished))

    def _set_plan(self, connection: sqlite3.Connection, table_id: TableId, plan: CopyPlan) -> None:
        connection.execute(
            "INSERT OR REPLACE INTO plans VALUES (?, ?)",
            (table_id, _PLAN.dump_json(plan).decode()),
        )

    def _clear_copy(self, connection: sqlite3.Connection, table_id: TableId) -> None:
        super()._clear_copy(connection, table_id)
        connection.execute("DELETE FROM plans WHERE table_id = ?", (table_id,))

    # -- status --------------------------------------------------------------------------------

    def publish_status(self, key: str, payload: Mapping[str, Any]) -> None:
        self._write("INSERT OR REPLACE INTO status VALUES (?, ?)", key, json.dumps(payload))

    def get_status(self, key: str) -> Mapping[str, Any] | None:
        found = self._read("SELECT payload FROM status WHERE key = ?", key)
        return json.loads(found[0][0]) if found else None

    # -- notes ---------------------------------------------------------------------------------

    def get_note(self, key: str) -> Mapping[str, Any] | None:
        # A status under the key is a note that was kept before there were notes.
        [(note,)] = self._read(
            "SELECT coalesce((SELECT payload FROM status WHERE key = ?1), "
            "(SELECT note FROM notes WHERE key = ?1))",
            key,
        )
        return json.loads(note) if note else None

    def put_note(self, key: str, note: Mapping[str, Any]) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM status WHERE key = ?", (key,))
            connection.execute(
                "INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, json.dumps(note))
            )
