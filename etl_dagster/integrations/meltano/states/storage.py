"""States of Meltano in PostgreSQL, without Meltano: read, written, locked, with their history."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

from etl_dagster.integrations.meltano.states import records
from etl_dagster.integrations.meltano.states.connections import StateConnections
from etl_dagster.integrations.meltano.states.errors import (
    StateChanged,
    StateStorageForbidden,
    StateUriError,
    StateVersionMissing,
)
from etl_dagster.integrations.meltano.states.glob import literal_prefix, matcher
from etl_dagster.integrations.meltano.states.locks import LockRow, Locks, StateLease
from etl_dagster.integrations.meltano.states.migrate import StateTables, ensure_tables, script
from etl_dagster.integrations.meltano.states.options import StorageOptions
from etl_dagster.integrations.meltano.states.records import (
    Difference,
    Half,
    NewState,
    StateVersion,
    StoredState,
    check_id,
    to_text,
)
from etl_dagster.integrations.meltano.states.session import StateSession
from etl_dagster.integrations.meltano.states.uri import StateLocation, locate
from etl_dagster.integrations.meltano.states.writing import (
    Answer,
    Statement,
    Write,
    Writing,
    send,
)
from etl_dagster.pg.connection import Connection

__all__ = [
    "Difference",
    "Half",
    "LockRow",
    "NewState",
    "StateLease",
    "StateLocation",
    "StateStorage",
    "StateVersion",
    "StorageOptions",
    "StoredState",
    "locate",
]

T = TypeVar("T")

#: Postgres cuts longer names off; ours get a suffix.
_LONGEST_NAME = 63 - len("_before_etl_dagster")


class StateStorage:
    """Safe for threads and processes. Connects at the first use, and again after a break.

    Every write is one transaction, waits for those of others to the same state, and leaves a row in
    the history. Every method raises `StateStorageError` when the database refuses or is away.

    Args:
        location: from `locate`.
        writer: who writes, for the history; by default ``user@host:pid``.
        run_id: the run that writes, or a function that tells it at each write.
    """

    def __init__(
        self,
        location: StateLocation,
        *,
        state_table: str = "meltano_state",
        locks_table: str = "meltano_state_locks",
        options: StorageOptions | None = None,
        writer: str | None = None,
        run_id: str | Callable[[], str | None] | None = None,
    ) -> None:
        for name in (state_table, locks_table):
            if not name or "\0" in name or len(name.encode()) > _LONGEST_NAME:
                raise StateUriError(
                    f"a table's name must have 1 to {_LONGEST_NAME} bytes",
                    solution="Correct state_backend.postgres.state_table or locks_table.",
                )
        self.location = location
        self.tables = StateTables(location.schema, state_table, locks_table)
        self.options = options or StorageOptions()
        tell_run = run_id if callable(run_id) else lambda: run_id
        self._connections = StateConnections(location)
        self._locks = Locks(self._connections, self.tables, tell_run)
        self._writing = Writing(
            self._connections, self.tables, self.options, writer=writer, run_id=tell_run
        )
        self._sessions = threading.local()
        self._is_ready = False

    @classmethod
    def from_uri(
        cls, uri: str, *, options: StorageOptions | None = None, **keywords: Any
    ) -> StateStorage:
        """Connect to a URI; keywords are those of the class."""
        return cls(locate(uri), options=options, **keywords)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location.shown!r})"

    def close(self) -> None:
        """Close idle connections; what is used later connects again. Locks are not touched."""
        self._connections.close()

    def migrate(self) -> int:
        """Make or upgrade the tables; returns how many migrations were run."""
        count = self._connections.run(
            lambda connection: ensure_tables(
                connection,
                self.tables,
                create=self.options.create_tables,
                create_schema=self.options.create_schema,
            )
        )
        self._is_ready = True
        return count

    def migration_script(self) -> str:
        """What `migrate` would run, as SQL for an administrator; empty when nothing is due."""
        return self._connections.run(lambda connection: script(self.tables, connection))

    def require_writable(self) -> None:
        """Look, and change nothing.

        Raises:
            StateStorageForbidden: the role or the server can't write; says what is missing.
        """
        names = {key: name.as_string(None) for key, name in self.tables.identifiers().items()}
        sql = self._writing.sql.missing_rights
        rows = self._run(lambda c: c.execute(sql, names).fetchall())
        if rows:
            missing = ", ".join(what for (what,) in rows)
            raise StateStorageForbidden(
                f"states can't be written at {self.location.shown}: {missing}",
                solution="Grant what is missing, or connect to the server that takes writes.",
            )

    # -- reading ---------------------------------------------------------------------------------

    def get(self, state_id: str) -> StoredState | None:
        """The state; None when there is none. Under `lock`, it stays like that until its end."""
        check_id(state_id)
        session = self._session(state_id)
        row = (
            session.get()
            if session
            else self._run(
                lambda c: c.execute(self._writing.sql.get, {"state_id": state_id}).fetchone()
            )
        )
        return StoredState(*row) if row else None

    def list_ids(self, pattern: str | None = None) -> list[str]:
        """The IDs that match a pattern such as ``dev:*``, in the order of their characters."""
        prefix = literal_prefix(pattern).replace("\0", "")
        rows = self._run(lambda c: c.execute(self._writing.sql.ids, (prefix,)).fetchall())
        matches = matcher(pattern)
        return [state_id for (state_id,) in rows if matches is None or matches(state_id)]

    def get_all(self, pattern: str | None = None) -> list[StoredState]:
        """All states that match, in the order of their IDs."""
        matches, prefix = matcher(pattern), literal_prefix(pattern).replace("\0", "")
        sql = self._writing.sql
        if matches is not None and not prefix:
            # States may be large: only those are fetched that are wanted.
            ids = self.list_ids(pattern)
            rows = self._run(lambda c: c.execute(sql.get_some, (ids,)).fetchall())
        else:
            rows = self._run(lambda c: c.execute(sql.get_all, (prefix,)).fetchall())
        return [StoredState(*row) for row in rows if matches is None or matches(row[0])]

    # -- writing ---------------------------------------------------------------------------------

    def set(
        self,
        state_id: str,
        *,
        partial: Half = None,
        completed: Half = None,
        expected_version: int | None = None,
        operation: str = "set",
    ) -> None:
        """Replace both halves.

        Args:
            expected_version: write only if this is the stored version; 0 if there must be none.

        Raises:
            StateNotStorable: NaN, or what is not a JSON object.
            StateChanged: another version is stored.
            StateLockLost: under `lock`, and the lock was taken. Raised at the end of the block.
        """
        check_id(state_id)
        write = Write(
            state_id,
            to_text(state_id, partial, "partial"),
            to_text(state_id, completed, "completed"),
            operation,
            expected_version,
        )
        session = self._session(state_id)
        if session:
            session.write(write)
            return
        self._ready()
        row = self._writing.transaction(state_id, self._writing.write(write))
        if row is None:
            mark = self._run(lambda c: send(c, self._writing.mark(state_id))[0])
            # Done by an attempt whose answer was lost, or not at all.
            if mark is None or mark[1] != write.write_id:
                raise StateChanged(
                    f"state {state_id!r} has another version than {expected_version}"
                )
        else:
            self._writing.prune(state_id, row[0])

    def merge(self, state_id: str, partial: Mapping[str, Any]) -> None:
        """Merge into the partial half, as Meltano does; one transaction, so nothing gets lost.

        Raises:
            StateCorrupt: the stored partial half can't be read; nothing was changed.
            StateNotStorable: as `set`.
        """
        check_id(state_id)
        to_text(state_id, partial, "partial")

        def merged(stored: StoredState | None) -> Write:
            below = stored.partial_object() if stored else {}
            text = to_text(state_id, records.merge(below, partial), "partial")
            return Write(state_id, text, stored.completed if stored else None, "merge")

        session = self._session(state_id)
        if session:
            session.write(merged(self.get(state_id)))
            return

        def change(row: Answer) -> Statement:
            return self._writing.write(merged(StoredState(*row) if row else None))

        self._ready()
        row = self._writing.read_and_write(state_id, change)
        if row is not None:
            self._writing.prune(state_id, row[0])

    def delete(self, state_id: str) -> bool:
        """Forget the state, not its history; whether there was one."""
        check_id(state_id)
        session = self._session(state_id)
        if session:
            return session.delete()
        self._ready()
        row = self._writing.transaction(state_id, self._writing.delete(state_id))
        return row is not None and row[1] > 0

    def set_all(self, states: Iterable[NewState], *, operation: str = "import") -> int:
        """Replace many states in one transaction: all or none. Of one ID twice, the last counts.

        Raises:
            StateNotStorable: one of them is; nothing was written.
        """
        given: dict[str, tuple[str | None, str | None]] = {}
        for state in states:
            check_id(state.state_id)
            given[state.state_id] = (
                to_text(state.state_id, state.partial, "partial"),
                to_text(state.state_id, state.completed, "completed"),
            )
        if not given:
            return 0
        parameters = {
            **self._writing.author(),
            "ids": list(given),
            "partials": [partial for partial, _ in given.values()],
            "completeds": [completed for _, completed in given.values()],
            "operation": operation,
        }
        self._ready()
        return self._writing.table_transaction((self._writing.sql.write_all, parameters))

    def set_each(
        self, states: Iterable[tuple[NewState, int]], *, operation: str = "set"
    ) -> frozenset[str]:
        """Replace many states, each only over its expected version, in one transaction.

        What another writes at this moment is left out, and so is what has another version; neither
        is waited for.

        Args:
            states: each with the version to write it over, 0 if there must be none.

        Returns:
            The IDs of those that were written.

        Raises:
            StateNotStorable: one of them is; nothing was written.
        """
        writes = []
        for state, expected in states:
            check_id(state.state_id)
            partial = to_text(state.state_id, state.partial, "partial")
            completed = to_text(state.state_id, state.completed, "completed")
            writes.append(Write(state.state_id, partial, completed, operation, expected))
        self._ready()
        versions = self._writing.write_each(writes)
        for state_id, version in versions.items():
            self._writing.prune(state_id, version)
        return frozenset(versions)

    def clear_all(self) -> int:
        """Forget all states, not their history, in one transaction; how many there were."""
        self._ready()
        return self._writing.table_transaction(
            (self._writing.sql.clear_all, self._writing.author())
        )

    # -- history ---------------------------------------------------------------------------------

    def history(self, state_id: str, *, limit: int | None = None) -> list[StateVersion]:
        """The versions that are kept, the newest first."""
        parameters = {"state_id": state_id, "limit": limit}
        rows = self._run(lambda c: c.execute(self._writing.sql.history, parameters).fetchall())
        return [StateVersion(*row) for row in rows]

    def version(self, state_id: str, version: int) -> StateVersion:
        """Raises StateVersionMissing."""
        parameters = {"state_id": state_id, "version": version}
        row = self._run(lambda c: c.execute(self._writing.sql.version, parameters).fetchone())
        if row is None:
            raise StateVersionMissing(f"state {state_id!r} has no version {version} in its history")
        return StateVersion(*row)

    def diff(self, state_id: str, before: int, after: int | None = None) -> list[Difference]:
        """What changed from one version to another, or to what is stored now."""
        old = self.version(state_id, before)
        new = self.version(state_id, after) if after is not None else self.get(state_id)
        if new is None:
            nothing = StoredState(state_id, None, None, 0, datetime.min, None, None)
            return records.diff(old, nothing)
        return records.diff(old, new)

    def restore(self, state_id: str, version: int, *, expected_version: int | None = None) -> None:
        """Write an earlier version again, to the letter; a deleted one deletes.

        Raises:
            StateVersionMissing: the history has no such version.
            StateChanged: another version is stored than `expected_version`; 0 means none.
        """
        old = self.version(state_id, version)
        with self.lock(state_id):
            if expected_version is not None:
                stored = self.get(state_id)
                if (stored.version if stored else 0) != expected_version:
                    raise StateChanged(f"state {state_id!r} was written meanwhile")
            if old.operation == "delete":
                self.delete(state_id)
                return
            session = self._session(state_id)
            assert session is not None
            # As it was, even if it is not JSON: that is what the user asked for.
            session.write(Write(state_id, old.partial, old.completed, "restore"))

    # -- locks -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, state_id: str, *, retry_seconds: float | None = None) -> Iterator[StateLease]:
        """No other process may hold this state's lock during the block.

        What the block reads and writes of this state is one transaction, which ends with the block;
        an exception undoes it. The lock can be taken again by the thread that holds it.

        Raises:
            StateLocked: another process held it for longer than `StorageOptions.wait_s`.
            StateLockLost: at the end of the block, when it had something to write.
        """
        check_id(state_id)
        session = self._session(state_id)
        if session:
            yield session.lease
            return
        self._ready()
        longest = self.options.lock_retry_seconds
        lease = self._locks.acquire(
            "write",
            state_id,
            lease_s=self.options.lease_s,
            wait_s=self.options.wait_s,
            retry_s=longest if retry_seconds is None else min(longest, max(retry_seconds, 0.001)),
        )
        session = StateSession(self._writing, self._locks, lease)
        self._by_id()[state_id] = session
        try:
            yield lease
        except BaseException:
            session.abandon()
            raise
        else:
            session.finish()
        finally:
            del self._by_id()[state_id]

    @contextlib.contextmanager
    def run_lease(
        self, state_id: str, *, wait_seconds: float = 0.0, lease_seconds: float = 60.0
    ) -> Iterator[StateLease]:
        """Only one process runs a pipeline with this state during the block.

        It doesn't keep states from being written: the pipeline itself writes. The lease is renewed
        by a thread; a process that died holds it for `lease_seconds` at most. Ask the lease's
        `is_held` before doing what must not be done twice.

        Raises:
            StateLocked: another process has it, and had it for `wait_seconds`; says who.
        """
        check_id(state_id)
        self._ready()
        lease = self._locks.acquire(
            "run",
            state_id,
            lease_s=max(1.0, lease_seconds),
            wait_s=wait_seconds,
            retry_s=self.options.lock_retry_seconds,
        )
        try:
            yield lease
        finally:
            self._locks.release(lease)

    def locks(self) -> list[LockRow]:
        """All locks and run leases, the oldest first."""
        self._ready()
        return self._locks.rows()

    # -- inside ----------------------------------------------------------------------------------

    def _by_id(self) -> dict[str, StateSession]:
        by_id: dict[str, StateSession] | None = getattr(self._sessions, "by_id", None)
        if by_id is None:
            by_id = self._sessions.by_id = {}
        return by_id

    def _session(self, state_id: str) -> StateSession | None:
        """The lock that this thread holds."""
        return self._by_id().get(state_id)

    def _ready(self) -> None:
        if not self._is_ready:
            self.migrate()

    def _run(self, work: Callable[[Connection], T]) -> T:
        self._ready()
        return self._connections.run(work)
