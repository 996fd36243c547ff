"""What a thread does to a state while it holds the state's lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from etl_dagster.integrations.meltano.connections import Connection, is_lost
from etl_dagster.integrations.meltano.errors import (
    StateChanged,
    StateLocked,
    StateLockLost,
    StateStorageError,
)
from etl_dagster.integrations.meltano.locks import Lease, Locks
from etl_dagster.integrations.meltano.writing import Answer, Write, Writing

T = TypeVar("T")

#: What happens under a lock is tried so often, when connections break.
_ATTEMPTS = 3


class Session:
    """At most one transaction, from the first statement to the end of the lock.

    Statements are sent without waiting for each one's answer; a write's failure shows at the end of
    the block. When the connection breaks, the transaction is made again over another one, provided
    that the lock is still ours and the state is as we read it.
    """

    def __init__(self, writing: Writing, locks: Locks, lease: Lease) -> None:
        self.lease = lease
        self._writing = writing
        self._locks = locks
        self._open: ExitStack | None = None
        self._connection: Connection | None = None
        self._writes: list[Write | None] = []  # None deletes
        self._answers: list[Answer] = []
        #: The version that we read; None before.
        self._seen: int | None = None
        self._is_done = False

    def get(self) -> tuple[Any, ...] | None:
        statement = self._writing.sql.get_for_update
        row = self._do(lambda c: c.execute(statement, (self.lease.state_id,)).fetchone())
        if not self._writes:
            self._seen = row[3] if row else 0
        return row

    def write(self, write: Write) -> None:
        def step(connection: Connection) -> None:
            self._answers.append(self._writing.write(connection, write, self.lease))

        self._do(step)
        self._writes.append(write)

    def delete(self) -> bool:
        def step(connection: Connection) -> tuple[Any, ...] | None:
            return self._writing.delete(connection, self.lease.state_id, self.lease).fetchone()

        row = self._do(step)
        if row is None or row[0] == 0:
            raise self._lost()
        self._writes.append(None)
        return bool(row[1])

    def finish(self) -> None:
        """Commit and release, in one round trip. Raises StateLockLost."""
        if self._connection is None:
            self._locks.release(self.lease)
            return

        def step(connection: Connection) -> None:
            self._locks.release_with(connection, self.lease)
            self._close_transaction()

        self._do(step)
        self._locks.forget(self.lease)
        if self._is_done:
            return
        for write, answer in zip([w for w in self._writes if w], self._answers, strict=True):
            if answer.version is None:
                if write.expected_version is not None and self.lease.is_held:
                    raise StateChanged(f"state {self.lease.state_id!r} has another version")
                raise self._lost()
            self._writing.prune(self.lease.state_id, answer.version)

    def abandon(self) -> None:
        """Undo what was written, and release."""
        self._roll_back()
        with contextlib.suppress(StateStorageError):  # it expires by itself
            self._locks.release(self.lease)
        self._locks.forget(self.lease)

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
                    raise self._writing.connections.translate(error) from None
            # Waits until the server is back; leaves a connection that is known to work.
            self._writing.connections.run(lambda c: c.execute("SELECT 1"))
        raise AssertionError("unreachable")

    def _begun(self) -> Connection:
        """The transaction's connection; after a break with everything done again."""
        if self._connection is not None:
            return self._connection
        stack = ExitStack()
        try:
            connection = stack.enter_context(self._writing.connections.borrow())
            stack.enter_context(connection.pipeline())
            stack.enter_context(connection.transaction())
            self._writing.begin(connection, self.lease.state_id)
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
        row = connection.execute(self._writing.sql.mark, (state_id,)).fetchone()
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
                self._writing.delete(connection, state_id, self.lease)
            else:
                self._answers.append(self._writing.write(connection, write, self.lease))

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
