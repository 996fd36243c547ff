"""States of Meltano in PostgreSQL, without Meltano: read, written, locked, with their history."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from etl_dagster.integrations.meltano import records
from etl_dagster.integrations.meltano.connections import Connection, Connections, is_lost
from etl_dagster.integrations.meltano.errors import (
    StateChanged,
    StateLocked,
    StateLockLost,
    StateStorageError,
    StateUriError,
    StateVersionMissing,
)
from etl_dagster.integrations.meltano.glob import literal_prefix, matcher
from etl_dagster.integrations.meltano.locks import Lease, LockRow, Locks, own_name
from etl_dagster.integrations.meltano.migrate import StateTables, ensure_tables
from etl_dagster.integrations.meltano.records import (
    Half,
    NewState,
    StateVersion,
    StoredState,
    check_id,
    to_text,
)
from etl_dagster.integrations.meltano.statements import Statements
from etl_dagster.integrations.meltano.uri import StateLocation, locate

T = TypeVar("T")

#: The history is pruned at every so many-th version of a state.
_PRUNE_EVERY = 16
#: What happens under a lock is tried so often, when connections break.
_ATTEMPTS = 3
#: Postgres cuts longer names off; ours get a suffix.
_LONGEST_NAME = 63 - len("_before_etl_dagster")


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """How a storage behaves; the names are those of Meltano's settings."""

    #: A lock that wasn't renewed for so long is over. Also how long a transaction under it may idle.
    lock_timeout_seconds: float = 10.0
    #: The longest pause between two attempts; a release usually ends the pause at once.
    lock_retry_seconds: float = 1.0
    #: How long to wait for an owner that lives. None: 30 s, or three times the lock timeout.
    lock_wait_seconds: float | None = None
    #: So many versions of each state are kept; 0 keeps no history at all.
    history_versions: int = 100
    #: Of older versions, the last of each run is kept for so long.
    history_days: int = 90
    #: Whether missing tables are made.
    create_tables: bool = True
    #: Whether a missing schema is made.
    create_schema: bool = False

    def __post_init__(self) -> None:
        for name in ("lock_timeout_seconds", "lock_retry_seconds"):
            if not getattr(self, name) > 0:
                raise StateUriError(
                    f"{name} must be more than 0", solution=f"Correct state_backend.{name}."
                )
        for name in ("history_versions", "history_days"):
            if getattr(self, name) < 0:
                raise StateUriError(
                    f"{name} must not be negative",
                    solution=f"Correct state_backend.postgres.{name}.",
                )

    @property
    def lease_s(self) -> float:
        return max(1.0, self.lock_timeout_seconds)

    @property
    def wait_s(self) -> float:
        if self.lock_wait_seconds is not None:
            return self.lock_wait_seconds
        return max(30.0, 3 * self.lock_timeout_seconds)


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
        self._writer = writer
        self._run_id = run_id if callable(run_id) else lambda: run_id
        self._connections = Connections(location)
        self._locks = Locks(self._connections, self.tables, self._run_id)
        self._sql = Statements.of(self.tables)
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

    # -- reading ---------------------------------------------------------------------------------

    def get(self, state_id: str) -> StoredState | None:
        """The state; None when there is none. Under `lock`, it stays like that until its end."""
        check_id(state_id)
        session = self._session(state_id)
        row = session.get() if session else self._run(lambda c: self._get(c, state_id))
        return StoredState(*row) if row else None

    def list_ids(self, pattern: str | None = None) -> list[str]:
        """The IDs that match a pattern such as ``dev:*``, in the order of their characters."""
        prefix = literal_prefix(pattern).replace("\0", "")
        rows = self._run(lambda c: c.execute(self._sql.ids, (prefix,)).fetchall())
        matches = matcher(pattern)
        return [state_id for (state_id,) in rows if matches is None or matches(state_id)]

    def get_all(self, pattern: str | None = None) -> list[StoredState]:
        """All states that match, by ID, as they are at one moment."""
        if matcher(pattern) is None:
            rows = self._run(lambda c: c.execute(self._sql.get_all).fetchall())
        else:
            ids = self.list_ids(pattern)
            rows = self._run(lambda c: c.execute(self._sql.get_some, (ids,)).fetchall())
        return [StoredState(*row) for row in rows]

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
            StateNotStorable: NaN, or what is no JSON object.
            StateChanged: another version is stored.
            StateLockLost: under `lock`, and the lock was taken. Raised at the end of the block.
        """
        check_id(state_id)
        write = _Write(
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
        answer = self._transaction(state_id, lambda c: self._write(c, write))
        if answer.version is None and self._mark(state_id)[1] != write.write_id:
            raise StateChanged(f"state {state_id!r} has another version than {expected_version}")
        self._prune(state_id, answer.version)

    def merge(self, state_id: str, partial: Mapping[str, Any]) -> None:
        """Merge into the partial half, as Meltano does; one transaction, so nothing gets lost.

        Raises:
            StateCorrupt: the stored partial half can't be read; nothing was changed.
            StateNotStorable: as `set`.
        """
        check_id(state_id)
        to_text(state_id, partial, "partial")

        def merged(stored: StoredState | None) -> _Write:
            below = stored.partial_object() if stored else {}
            text = to_text(state_id, records.merge(below, partial), "partial")
            return _Write(state_id, text, stored.completed if stored else None, "merge")

        session = self._session(state_id)
        if session:
            session.write(merged(self.get(state_id)))
            return

        def work(connection: Connection) -> _Answer:
            row = self._get(connection, state_id)
            return self._write(connection, merged(StoredState(*row) if row else None))

        self._prune(state_id, self._transaction(state_id, work).version)

    def delete(self, state_id: str) -> bool:
        """Forget the state, not its history; whether there was one."""
        check_id(state_id)
        session = self._session(state_id)
        if session:
            return session.delete()
        row = self._transaction(state_id, lambda c: self._delete(c, state_id, None).fetchone())
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
            **self._author(),
            "ids": list(given),
            "partials": [partial for partial, _ in given.values()],
            "completeds": [completed for _, completed in given.values()],
            "operation": operation,
        }
        return self._with_table_locked(lambda c: c.execute(self._sql.write_all, parameters))

    def clear_all(self) -> int:
        """Forget all states, not their history, in one transaction; how many there were."""
        return self._with_table_locked(lambda c: c.execute(self._sql.clear_all, self._author()))

    # -- history ---------------------------------------------------------------------------------

    def history(self, state_id: str, *, limit: int | None = None) -> list[StateVersion]:
        """The versions that are kept, the newest first."""
        parameters = {"state_id": state_id, "limit": limit}
        rows = self._run(lambda c: c.execute(self._sql.history, parameters).fetchall())
        return [StateVersion(*row) for row in rows]

    def version(self, state_id: str, version: int) -> StateVersion:
        """Raises StateVersionMissing."""
        parameters = {"state_id": state_id, "version": version}
        row = self._run(lambda c: c.execute(self._sql.version, parameters).fetchone())
        if row is None:
            raise StateVersionMissing(f"state {state_id!r} has no version {version} in its history")
        return StateVersion(*row)

    def diff(self, state_id: str, before: int, after: int | None = None) -> list[records.Change]:
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
            # As it was, even if it is no JSON: that is what somebody asked for.
            session.write(_Write(state_id, old.partial, old.completed, "restore"))

    # -- locks -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, state_id: str, *, retry_seconds: float | None = None) -> Iterator[Lease]:
        """Nobody else may hold this state's lock during the block.

        What the block reads and writes of this state is one transaction, which ends with the block;
        an exception undoes it. The lock can be taken again by the thread that holds it.

        Raises:
            StateLocked: somebody else held it for longer than `StorageOptions.wait_s`.
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
        session = _Session(self, lease)
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
    ) -> Iterator[Lease]:
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

    def _by_id(self) -> dict[str, _Session]:
        by_id: dict[str, _Session] | None = getattr(self._sessions, "by_id", None)
        if by_id is None:
            by_id = self._sessions.by_id = {}
        return by_id

    def _session(self, state_id: str) -> _Session | None:
        """The lock that this thread holds."""
        return self._by_id().get(state_id)

    def _ready(self) -> None:
        if not self._is_ready:
            self.migrate()

    def _run(self, work: Callable[[Connection], T]) -> T:
        self._ready()
        return self._connections.run(work)

    def _transaction(self, state_id: str, work: Callable[[Connection], T]) -> T:
        """One transaction, in which nobody else writes this state."""

        def transact(connection: Connection) -> T:
            with connection.pipeline(), connection.transaction():
                self._begin(connection, state_id)
                return work(connection)

        self._ready()
        try:
            return self._connections.run(transact, lock_waits=True)
        except errors.LockNotAvailable:
            raise StateLocked(
                state_id, f"another transaction writes state {state_id!r} and doesn't end"
            ) from None

    def _begin(self, connection: Connection, state_id: str) -> None:
        """The beginning of a transaction that writes; nothing of it outlives the transaction."""
        connection.execute(
            "SELECT set_config('lock_timeout', %s, true), "
            "set_config('idle_in_transaction_session_timeout', %s, true)",
            (str(round(1000 * self.options.wait_s) or 1), str(round(1000 * self.options.lease_s))),
        )
        tables = self.tables
        digest = hashlib.sha256(
            "\0".join((tables.schema, tables.state, state_id)).encode()
        ).digest()
        connection.execute(
            "SELECT pg_advisory_xact_lock(%s)", (int.from_bytes(digest[:8], "big", signed=True),)
        )

    def _get(self, connection: Connection, state_id: str) -> tuple[Any, ...] | None:
        return connection.execute(self._sql.get, (state_id,)).fetchone()

    def _author(self) -> dict[str, Any]:
        return {
            "writer": self._writer or own_name(),
            "run_id": self._run_id(),
            "keep": self.options.history_versions > 0,
        }

    def _write(self, connection: Connection, write: _Write, lease: Lease | None = None) -> _Answer:
        cursor = connection.execute(
            self._sql.write,
            {
                **self._author(),
                "state_id": write.state_id,
                "partial": write.partial,
                "completed": write.completed,
                "operation": write.operation,
                "expected": write.expected_version,
                "write_id": write.write_id,
                "lock_key": lease.key if lease else None,
                "lock_id": lease.lock_id if lease else None,
            },
        )
        return _Answer(cursor)

    def _delete(
        self, connection: Connection, state_id: str, lease: Lease | None
    ) -> psycopg.Cursor[Any]:
        return connection.execute(
            self._sql.delete,
            {
                **self._author(),
                "state_id": state_id,
                "lock_key": lease.key if lease else None,
                "lock_id": lease.lock_id if lease else None,
            },
        )

    def _mark(self, state_id: str) -> tuple[int, uuid.UUID | None]:
        """Version and last write; version 0 when there is no state."""
        row = self._run(lambda c: c.execute(self._sql.mark, (state_id,)).fetchone())
        return (row[0], row[1]) if row else (0, None)

    def _prune(self, state_id: str, version: int | None) -> None:
        options = self.options
        if not options.history_versions or not version or version % _PRUNE_EVERY:
            return
        parameters = {
            "state_id": state_id,
            "versions": options.history_versions,
            "age": timedelta(days=options.history_days),
        }
        self._run(lambda c: c.execute(self._sql.prune, parameters))

    def _with_table_locked(self, work: Callable[[Connection], psycopg.Cursor[Any]]) -> int:
        def transact(connection: Connection) -> int:
            with connection.transaction():
                wait_ms = str(round(1000 * self.options.wait_s) or 1)
                connection.execute("SELECT set_config('lock_timeout', %s, true)", (wait_ms,))
                connection.execute(self._sql.lock_table)
                row = work(connection).fetchone()
                return int(row[0]) if row else 0

        self._ready()
        return self._connections.run(transact)


@dataclass(frozen=True, slots=True)
class _Write:
    state_id: str
    partial: str | None
    completed: str | None
    operation: str
    expected_version: int | None = None
    write_id: uuid.UUID = field(default_factory=uuid.uuid4)


class _Answer:
    """What a write said; asked only after its transaction, to save a round trip."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self._cursor = cursor
        self._row: tuple[Any, ...] | None = None
        self._is_read = False

    @property
    def version(self) -> int | None:
        """None when nothing was written."""
        if not self._is_read:
            self._row, self._is_read = self._cursor.fetchone(), True
        return self._row[0] if self._row else None


class _Session:
    """What a thread does under a state's lock: at most one transaction, from its first statement on.

    Statements are sent without waiting for each one's answer; a write's failure shows at the end of
    the block. When the connection breaks, the transaction is made again over another one, provided
    that the lock is still ours and the state is as we read it.
    """

    def __init__(self, storage: StateStorage, lease: Lease) -> None:
        self.lease = lease
        self._storage = storage
        self._open: ExitStack | None = None
        self._connection: Connection | None = None
        self._writes: list[_Write | None] = []  # None deletes
        self._answers: list[_Answer] = []
        #: The version that we read; None before.
        self._seen: int | None = None
        self._is_done = False

    def get(self) -> tuple[Any, ...] | None:
        statement = self._storage._sql.get_for_update
        row = self._do(lambda c: c.execute(statement, (self.lease.state_id,)).fetchone())
        if not self._writes:
            self._seen = row[3] if row else 0
        return row

    def write(self, write: _Write) -> None:
        def step(connection: Connection) -> None:
            self._answers.append(self._storage._write(connection, write, self.lease))

        self._do(step)
        self._writes.append(write)

    def delete(self) -> bool:
        def step(connection: Connection) -> tuple[Any, ...] | None:
            return self._storage._delete(connection, self.lease.state_id, self.lease).fetchone()

        row = self._do(step)
        if row is None or row[0] == 0:
            raise self._lost()
        self._writes.append(None)
        return bool(row[1])

    def finish(self) -> None:
        """Commit and release, in one round trip. Raises StateLockLost."""
        locks = self._storage._locks
        if self._connection is None:
            locks.release(self.lease)
            return

        def step(connection: Connection) -> None:
            locks.release_with(connection, self.lease)
            self._close_transaction()

        self._do(step)
        locks.forget(self.lease)
        if self._is_done:
            return
        for write, answer in zip([w for w in self._writes if w], self._answers, strict=True):
            if answer.version is None:
                if write.expected_version is not None and self.lease.is_held:
                    raise StateChanged(f"state {self.lease.state_id!r} has another version")
                raise self._lost()
            self._storage._prune(self.lease.state_id, answer.version)

    def abandon(self) -> None:
        """Undo what was written, and release."""
        self._roll_back()
        with contextlib.suppress(StateStorageError):  # it expires by itself
            self._storage._locks.release(self.lease)
        self._storage._locks.forget(self.lease)

    def _do(self, step: Callable[[Connection], T]) -> T:
        for attempt in range(_ATTEMPTS):
            try:
                return step(self._begun())
            except psycopg.Error as error:
                self._roll_back()
                if isinstance(error, errors.LockNotAvailable):
                    raise StateLocked(
                        self.lease.state_id,
                        f"another transaction writes state {self.lease.state_id!r}",
                    ) from None
                if not is_lost(error) or attempt == _ATTEMPTS - 1:
                    raise self._storage._connections.translate(error) from None
            # Waits until the server is back; leaves a connection that is known to work.
            self._storage._connections.run(lambda c: c.execute("SELECT 1"))
        raise AssertionError("unreachable")

    def _begun(self) -> Connection:
        """The transaction's connection; after a break with everything done again."""
        if self._connection is not None:
            return self._connection
        stack = ExitStack()
        try:
            connection = stack.enter_context(self._storage._connections.borrow())
            stack.enter_context(connection.pipeline())
            stack.enter_context(connection.transaction())
            self._storage._begin(connection, self.lease.state_id)
            self._open, self._connection = stack, connection
            if self._seen is not None or self._writes:
                self._repeat(connection)
        except BaseException:
            if self._connection is None:
                stack.close()
            raise
        return connection

    def _repeat(self, connection: Connection) -> None:
        """Write again what the broken connection took along."""
        state_id = self.lease.state_id
        row = connection.execute(self._storage._sql.mark, (state_id,)).fetchone()
        last = self._writes[-1] if self._writes else None
        if last is not None and row is not None and row[1] == last.write_id:
            self._is_done = True  # the commit had worked, only its answer was lost
            return
        if self._seen is not None and self._seen != (row[0] if row else 0):
            if self._writes and last is None and row is None:
                self._is_done = True  # so had the deletion
                return
            raise StateChanged(f"state {state_id!r} was written by another while we were cut off")
        self._answers.clear()
        for write in self._writes:
            if write is None:
                self._storage._delete(connection, state_id, self.lease)
            else:
                self._answers.append(self._storage._write(connection, write, self.lease))

    def _close_transaction(self) -> None:
        stack, self._open, self._connection = self._open, None, None
        if stack is not None:
            stack.close()

    def _roll_back(self) -> None:
        stack, self._open, self._connection = self._open, None, None
        if stack is not None:
            rollback = psycopg.Rollback()
            with contextlib.suppress(psycopg.Error):
                stack.__exit__(type(rollback), rollback, None)

    def _lost(self) -> StateLockLost:
        return StateLockLost(
            f"the lock of {self.lease.state_id!r} expired and was taken by another; nothing was "
            "written"
        )
