"""Meltano's states in PostgreSQL, without Meltano: read, written, locked, with their history."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString, TypeVar

from etl_dagster.integrations.meltano.states import records, statements
from etl_dagster.integrations.meltano.states.connections import BULK_S, StateConnections
from etl_dagster.integrations.meltano.states.errors import (
    StateChanged,
    StateStorageError,
    StateStorageForbidden,
    StateStorageUnreachable,
    StateUriError,
    StateVersionMissing,
)
from etl_dagster.integrations.meltano.states.glob import literal_prefix, matcher
from etl_dagster.integrations.meltano.states.locks import LockRow, Locks, StateLease
from etl_dagster.integrations.meltano.states.migrate import ensure_tables, script
from etl_dagster.integrations.meltano.states.options import OPTIONS, StorageOptions
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
from etl_dagster.integrations.meltano.states.statements import filled
from etl_dagster.integrations.meltano.states.tables import StateTables
from etl_dagster.integrations.meltano.states.uri import SETTINGS, StateLocation, locate
from etl_dagster.integrations.meltano.states.writing import Write, Writing
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

_log = logging.getLogger(__name__)

#: Migrations wait a minute for other transactions' locks.
_MIGRATION_S = 90.0
#: Postgres cuts longer names off; ours get a suffix.
_LONGEST_NAME = 63 - len("_before_etl_dagster")


class StateStorage:
    """Safe for threads and processes. Connects at the first use, and again after a break.

    Every write is one transaction, waits for other writers of the same state, and adds a row to the
    history. Every method raises `StateStorageError` when the database refuses or is away.

    Args:
        location: from `locate`.
        writer: who writes, for the history; by default ``user@host:pid``.
        run_id: the run that writes, or a function that returns it at each write.
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
        self._connections = StateConnections(
            location, lock_wait_s=self.options.wait_s, is_run=lambda: tell_run() is not None
        )
        self._locks = Locks(self._connections, self.tables, tell_run)
        self._writing = Writing(
            self._connections, self.tables, self.options, writer=writer, run_id=tell_run
        )
        self._sessions = threading.local()
        self._is_ready = False

    @classmethod
    def from_uri(
        cls, uri: str, settings: Mapping[str, Any] | None = None, **keywords: Any
    ) -> StateStorage:
        """Create it from what Meltano passes to a state backend.

        Args:
            settings: Meltano's, by the last part of their names; None, "" and other names are
                ignored.
            keywords: further arguments of the class, except for those that are settings.

        Raises:
            StateUriError: the URI or a setting can't be understood.
        """
        given = {n: value for n, value in (settings or {}).items() if value not in (None, "")}
        options = {name: given[name] for name in OPTIONS if name in given}
        tables = {name: given[name] for name in ("state_table", "locks_table") if name in given}
        location = locate(uri, **{name: given[name] for name in SETTINGS if name in given})
        return cls(location, options=StorageOptions(**options), **tables, **keywords)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location.shown!r})"

    def close(self) -> None:
        """Close idle connections; what is used later connects again. Locks are not touched."""
        self._connections.close()

    def migrate(self) -> int:
        """Create or upgrade the tables; returns how many migrations were run."""
        count = self._connections.run(
            lambda connection: ensure_tables(
                connection,
                self.tables,
                create=self.options.create_tables,
                create_schema=self.options.create_schema,
            ),
            answer_s=_MIGRATION_S,
        )
        self._is_ready = True
        return count

    def migration_script(self) -> str:
        """What `migrate` would run, as SQL for an administrator; empty when nothing is due."""
        return self._connections.run(lambda connection: script(self.tables, connection))

    def place(self) -> str:
        """A text that no other table of states has, not even a later one of the same name."""
        table = self.tables.identifiers()["state"].as_string()

        def ask(connection: Connection) -> list[Any]:
            query = (
                "SELECT current_database(), to_regclass(%s)::oid, "
                "has_function_privilege('pg_control_system()', 'execute')"
            )
            *names, may_ask = connection.execute(query, [table]).fetchone() or ()
            identifier = "SELECT system_identifier FROM pg_control_system()"
            # Two statements: Postgres demands the right also for a call that it wouldn't make.
            row = connection.execute(identifier).fetchone() if may_ask else None
            return [*names, row[0] if row else None]

        return f"{table} in {' '.join(map(str, self._connections.run(ask)))}"

    def require_writable(self) -> None:
        """Check that states can be written; changes nothing.

        Raises:
            StateStorageForbidden: the role or the server can't write; says what is missing.
        """
        names = {key: name.as_string(None) for key, name in self.tables.identifiers().items()}
        rows = self._rows(statements.MISSING_RIGHTS, names)
        if rows:
            missing = ", ".join(what for (what,) in rows)
            raise StateStorageForbidden(
                f"states can't be written at {self.location.shown}: {missing}",
                solution="Grant what is missing, or connect to the server that takes writes.",
            )

    # -- reading ---------------------------------------------------------------------------------

    def get(self, state_id: str) -> StoredState | None:
        """The state; None when there is none. Under `lock`, no other process changes it."""
        check_id(state_id)
        session = self._session(state_id)
        if session:
            row = session.get()
            return StoredState(*row) if row else None
        rows = self._rows(statements.GET, {"state_id": state_id})
        return StoredState(*rows[0]) if rows else None

    def list_ids(self, pattern: str | None = None) -> list[str]:
        """The IDs that match a pattern such as ``dev:*``, in the order of their characters."""
        prefix = literal_prefix(pattern).replace("\0", "")
        rows = self._rows(statements.IDS, [prefix])
        matches = matcher(pattern)
        return [state_id for (state_id,) in rows if matches is None or matches(state_id)]

    def get_all(self, pattern: str | None = None) -> list[StoredState]:
        """All states that match, in the order of their IDs."""
        matches, prefix = matcher(pattern), literal_prefix(pattern).replace("\0", "")
        if matches is not None and not prefix:
            # States may be large: only those that match are fetched.
            rows = self._rows(statements.GET_SOME, [self.list_ids(pattern)], answer_s=BULK_S)
        else:
            rows = self._rows(statements.GET_ALL, [prefix], answer_s=BULK_S)
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
            StateLockLost: under `lock`, another process has taken the lock. Raised at the end of
                the block.
        """
        self.put(NewState(state_id, partial, completed, expected_version), operation=operation)

    def put(self, state: NewState, *, operation: str = "set") -> None:
        """As `set`."""
        (write,) = self._writes([state], operation)
        self._write(write)

    def merge(self, state_id: str, partial: Mapping[str, Any]) -> None:
        """Merge into the partial half, as Meltano does; one transaction, so nothing gets lost.

        Raises:
            StateCorrupt: the stored partial half can't be read; nothing was changed.
            StateNotStorable: as `set`.
        """
        check_id(state_id)
        to_text(state_id, partial, "partial")
        with self.lock(state_id):
            stored = self.get(state_id)
            below = stored.partial_object() if stored else {}
            text = to_text(state_id, records.merge(below, partial), "partial")
            completed = stored.completed if stored else None
            self._write(Write(state_id, text, completed, "merge", uuid.uuid4()))

    def delete(self, state_id: str) -> bool:
        """Delete the state, not its history; returns whether there was one."""
        check_id(state_id)
        session = self._session(state_id)
        if session:
            return session.delete()
        self._ready()
        row = self._writing.alone(state_id, self._writing.delete(state_id))
        return row is not None and row[1] > 0

    def set_all(self, states: Iterable[NewState], *, operation: str = "import") -> int:
        """Replace many states in one transaction: all or none. If an ID is there twice, the last
        one counts.

        Raises:
            StateNotStorable: one of them is; nothing was written.
        """
        writes = self._writes(states, operation)
        if writes:
            self._ready()
            self._writing.put(None, writes)
        return len(writes)

    def set_each(self, states: Iterable[NewState], *, operation: str = "set") -> dict[str, int]:
        """Replace many states, each only over its expected version, in one transaction.

        A state that another process is writing now is left out, and so is one that has another
        version. This waits for neither.

        Returns:
            By ID, the new versions of the states that were written.

        Raises:
            StateNotStorable: one of them is; nothing was written.
        """
        writes = self._writes(states, operation)
        if not writes:
            return {}
        self._ready()
        versions = self._writing.put_free(writes)
        self._writing.prune(versions)
        return versions

    def clear_all(self) -> int:
        """Delete all states, not their history, in one transaction; returns how many there were."""
        self._ready()
        row = self._writing.alone(None, self._writing.delete(None))
        return int(row[1]) if row else 0

    # -- history ---------------------------------------------------------------------------------

    def history(self, state_id: str, *, limit: int | None = None) -> list[StateVersion]:
        """The versions that are kept, the newest first."""
        rows = self._rows(statements.HISTORY, {"state_id": state_id, "limit": limit})
        return [StateVersion(*row) for row in rows]

    def version(self, state_id: str, version: int) -> StateVersion:
        """Raises StateVersionMissing."""
        rows = self._rows(statements.HISTORY_VERSION, {"state_id": state_id, "version": version})
        if not rows:
            raise StateVersionMissing(f"state {state_id!r} has no version {version} in its history")
        return StateVersion(*rows[0])

    def diff(self, state_id: str, before: int, after: int | None = None) -> list[Difference]:
        """What changed from one version to another, or to what is stored now."""
        old = self.version(state_id, before)
        new = self.version(state_id, after) if after is not None else self.get(state_id)
        if new is None:
            nothing = StoredState(state_id, None, None, 0, datetime.min, None, None)
            return records.diff(old, nothing)
        return records.diff(old, new)

    def restore(self, state_id: str, version: int, *, expected_version: int | None = None) -> None:
        """Write an earlier version again, to the letter; where that was a deletion, delete.

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
            # As it was, even if it is not JSON: that is what the user asked for.
            self._write(Write(state_id, old.partial, old.completed, "restore", uuid.uuid4()))

    # -- locks -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, state_id: str, *, retry_seconds: float | None = None) -> Iterator[StateLease]:
        """No other process may hold this state's lock during the block.

        What the block reads and writes of this state is one transaction, which ends with the block;
        an exception undoes it. The lock can be taken again by the thread that holds it.

        Raises:
            StateLocked: another process held it for longer than `StorageOptions.wait_s`.
            StateLockLost: another process has taken the lock. Raised at the end of the block, if it
                had something to write.
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
        except BaseException as error:
            session.abandon(is_released=not isinstance(error, StateStorageUnreachable))
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
            StateLocked: another process still has it after `wait_seconds`; the message names it.
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
            try:
                self._locks.release(lease)
            except StateStorageError as error:
                # The outcome of the block counts, and the lease ends by itself.
                _log.warning(
                    "the run lease of %r could not be released, and ends by itself within %g s: %s",
                    state_id,
                    lease.lease_s,
                    error.reason,
                )

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
        """The session of this thread, if it holds the lock of the state."""
        return self._by_id().get(state_id)

    def _writes(self, states: Iterable[NewState], operation: str) -> list[Write]:
        """Raises StateNotStorable."""
        write_id = uuid.uuid4()
        found = {}
        for state in states:
            check_id(state.state_id)
            found[state.state_id] = Write(
                state.state_id,
                to_text(state.state_id, state.partial, "partial"),
                to_text(state.state_id, state.completed, "completed"),
                operation,
                write_id,
                state.expected_version,
                state.is_kept,
            )
        return list(found.values())

    def _write(self, write: Write) -> None:
        """Raises StateChanged."""
        session = self._session(write.state_id)
        if session:
            session.write(write)
            return
        self._ready()
        versions = self._writing.put(write.state_id, [write])
        if not versions:
            raise StateChanged(
                f"state {write.state_id!r} has another version than {write.expected_version}"
            )
        self._writing.prune(versions)

    def _ready(self) -> None:
        if not self._is_ready:
            self.migrate()

    def _rows(
        self,
        text: LiteralString,
        parameters: Mapping[str, Any] | Sequence[Any],
        *,
        answer_s: float | None = None,
    ) -> list[tuple[Any, ...]]:
        query = filled(text, self.tables)
        self._ready()
        return self._connections.run(
            lambda c: c.execute(query, parameters).fetchall(), answer_s=answer_s
        )
