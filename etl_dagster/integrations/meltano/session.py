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
    """At most one transaction, from the first read to the end of the lock.

    Writes are sent at the end, together with the release; so a failure shows there. Between two
    round trips the server knows that we idle, and ends the transaction of a process that stands
    still. When the connection breaks, the transaction is made again over another one, provided that
    the lock is still ours and the state is as we read it.
    """

    def __init__(self, writing: Writing, locks: Locks, lease: Lease) -> None:
        self.lease = lease
        self._writing = writing
        self._locks = locks
        self._open: ExitStack | None = None
        self._connection: Connection | None = None
        self._pipeline: psycopg.Pipeline | None = None
        #: What the block writes; None deletes. The first of them were sent and have their answers.
        self._writes: list[Write | None] = []
        self._answers: list[Answer] = []
        #: The version that we read; None before.
        self._seen: int | None = None
        self._is_done = False

    def get(self) -> tuple[Any, ...] | None:
        """The row as it is in this transaction, and stays until its end."""

        def step() -> tuple[Any, ...] | None:
            connection = self._send()
            statement = self._writing.sql.get_for_update
            cursor = connection.execute(statement, (self.lease.state_id,))
            self._sync()
            return cursor.fetchone()

        row: tuple[Any, ...] | None = self._do(step)
        if not self._writes:
            self._seen = row[3] if row else 0
        return row

    def write(self, write: Write) -> None:
        self._writes.append(write)

    def delete(self) -> bool:
        """Whether there was a state. Raises StateLockLost."""
        self._writes.append(None)

        def step() -> tuple[Any, ...] | None:
            self._send()
            self._sync()
            return self._answers[-1].row

        row = self._do(step)
        if row is None or not row[0]:
            raise self._lost()
        return bool(row[1])

    def finish(self) -> None:
        """Write, release and commit, in one round trip. Raises StateLockLost, StateChanged."""
        if self._connection is None and not self._writes:
            self._locks.release(self.lease)
            return

        def step() -> None:
            self._locks.release_with(self._send(), self.lease)
            self._close_transaction()

        self._do(step)
        self._locks.forget(self.lease)
        if self._is_done:
            return
        for write, answer in zip(self._writes, self._answers, strict=True):
            if write is None:
                if not answer.row or not answer.row[0]:
                    raise self._lost()
                continue
            if answer.row is None:
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

    def _do(self, step: Callable[[], T]) -> T:
        for attempt in range(_ATTEMPTS):
            try:
                return step()
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

    def _send(self) -> Connection:
        """Send what is still to be written; in a new transaction everything."""
        connection = self._begun()
        if self._is_done:
            return connection
        state_id = self.lease.state_id
        for write in self._writes[len(self._answers) :]:
            if write is None:
                cursor = self._writing.delete(connection, state_id, self.lease)
            else:
                cursor = self._writing.write(connection, write, self.lease)
            self._answers.append(Answer(cursor))
        return connection

    def _sync(self) -> None:
        """One round trip. From here on the server counts how long we idle."""
        assert self._pipeline is not None
        self._pipeline.sync()

    def _begun(self) -> Connection:
        if self._connection is not None:
            return self._connection
        is_repeated = self._seen is not None or bool(self._answers)
        self._answers.clear()
        with ExitStack() as stack:
            connection = stack.enter_context(self._writing.connections.borrow())
            pipeline = stack.enter_context(connection.pipeline())
            stack.enter_context(connection.transaction())
            self._writing.begin(connection, self.lease.state_id, self.lease)
            if is_repeated:
                self._look_again(connection)
            self._open, self._connection, self._pipeline = stack.pop_all(), connection, pipeline
        return connection

    def _look_again(self, connection: Connection) -> None:
        """Over a new connection: is the state as we saw it, or was our commit done after all?"""
        state_id = self.lease.state_id
        row = connection.execute(self._writing.sql.mark, (state_id,)).fetchone()
        if self._writes:
            last = self._writes[-1]
            if last is None:
                self._is_done = row is None and self._seen != 0
            else:
                self._is_done = row is not None and row[1] == last.write_id
        if not self._is_done and self._seen not in (None, row[0] if row else 0):
            raise StateChanged(f"state {state_id!r} was written by another while we were cut off")

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
