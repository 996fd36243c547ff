"""The SQLite file behind the store: opened late, shared with others, checked by `doctor`."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from etl_dagster.errors import StoreError, StoreUnreachable

from etl_files.locks import locked


class SqliteFile:
    """One file for one pipeline; the first call makes or opens it."""

    #: Statements that make what isn't there yet.
    tables: ClassVar[tuple[str, ...]] = (
        "CREATE TABLE IF NOT EXISTS pipeline "
        "(name TEXT NOT NULL, epoch INTEGER NOT NULL DEFAULT 0)",
    )

    def __init__(self, path: Path, pipeline: str, *, busy_timeout_s: float = 30.0) -> None:
        self.path = path
        self.pipeline = pipeline
        self._busy_timeout_s = busy_timeout_s
        # Threads take turns on one connection; SQLite lets only one write at a time anyway.
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    # -- what commands ask for, where a store has it -------------------------------------------

    def close(self) -> None:
        """Let go of the file; a later call opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def knows_pipeline(self) -> bool:
        """Whether the pipeline ever ran on this store; creates nothing."""
        return self._is_begun()

    def check(self) -> str:
        """Whether the file can be used, or made; changes nothing.

        Raises:
            StoreError: it can't, with what to do.
        """
        folder = self.path.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise StoreError(
                f"state_store.path: {folder} is not a folder that can be written to",
                solution="Create it or give this user the right to write there, or correct "
                "state_store.path.",
            )
        return str(self.path) if self._is_begun() else f"{self.path}: made at the start"

    def _is_begun(self) -> bool:
        if not self.path.exists():
            return False
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True)) as connection:
                if not connection.execute("SELECT 1 FROM sqlite_master").fetchall():
                    return False  # its creator was killed before more was done
                self._require_own(connection)
        except sqlite3.Error as error:
            raise self._explained(error) from error
        return True

    # -- for the store -------------------------------------------------------------------------

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._opened().execute(query, values).fetchall()
            except (sqlite3.Error, OSError) as error:
                raise self._explained(error) from error

    def _write(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._transaction() as connection:
            return connection.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, as the only writer meanwhile, in this process or another."""
        with self._lock:
            try:
                connection = self._opened()
                connection.execute("BEGIN IMMEDIATE")
                with connection:  # commits, or rolls back
                    yield connection
            except (sqlite3.Error, OSError) as error:
                raise self._explained(error) from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = self._connect()
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self.path,
            timeout=self._busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # A commit must outlast a power failure: Postgres forgets what is reported to it.
        connection.execute("PRAGMA synchronous = FULL")
        # Only here SQLite does not wait when two processes come at once, so we do.
        with locked(self.path.with_name(f"{self.path.name}.lock"), self._busy_timeout_s):
            connection.execute("PRAGMA journal_mode = WAL")  # readers don't wait for a writer
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                for statement in self.tables:
                    connection.execute(statement)
                connection.execute(
                    "INSERT INTO pipeline (name) SELECT ? "
                    "WHERE NOT EXISTS (SELECT 1 FROM pipeline)",
                    (self.pipeline,),
                )
                self._require_own(connection)

    def _require_own(self, connection: sqlite3.Connection) -> None:
        [(name,)] = connection.execute("SELECT name FROM pipeline").fetchall()
        if name != self.pipeline:
            raise StoreError(
                f"state_store.path: {self.path} is of the pipeline {name!r}",
                solution="Give each pipeline a file of its own.",
            )

    def _explained(self, error: sqlite3.Error | OSError) -> StoreError:
        is_busy = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
        if is_busy or isinstance(error, TimeoutError):
            return StoreUnreachable(
                f"another process has kept {self.path} for {self._busy_timeout_s:g} s",
                solution="Find out which, for example with `fuser`; the pipeline tries again.",
            )
        return StoreError(
            f"state_store.path: {self.path}: {error}",
            solution="Check that the file is a state store, and the rights on it and its folder.",
        )
