"""What a thread does to a state while it holds the state's lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import psycopg
from psycopg import errors

from etl_dagster.integrations.meltano.states.errors import (
    StateChanged,
    StateLocked,
    StateLockLost,
    StateStorageError,
)
from etl_dagster.integrations.meltano.states.locks import Locks, StateLease
from etl_dagster.integrations.meltano.states.writing import (
    BEGIN,
    COMMIT,
    Answer,
    Statement,
    Write,
    Writing,
    send,
)
from etl_dagster.pg.cancelling import answered_within
from etl_dagster.pg.connection import Connection
from etl_dagster.pg.failures import failure_of

T = TypeVar("T")

#: How often the work under a lock is tried, when connections break.
_ATTEMPTS = 3


class StateSession:
    """At most one transaction, from the first read to the end of the lock.

    Writes are sent at the end, together with the release; so the end raises their errors. In
    between the transaction is idle, and the server ends it where a process hangs. When the
    connection breaks, the transaction is repeated over another one, provided that the lock is still
    ours and the state is as we read it.
    """

    def __init__(self, writing: Writing, locks: Locks, lease: StateLease) -> None:
        self.lease = lease
        self._writing = writing
        self._locks = locks
        self._connection: Connection | None = None
        self._borrowed = ExitStack()
        #: What the block writes; None deletes. As many as there are answers have been sent.
        self._writes: list[Write | None] = []
        self._answers: list[Answer] = []
        #: The version that we read, 0 for no state; None before.
        self._seen: int | None = None

    def get(self) -> Answer:
        """The state's row, which no other process changes before the end of the transaction."""
        row = self._do(lambda: self._send(self._writing.get(self.lease.state_id))[0])
        if not self._writes:
            self._seen = row[3] if row else 0
        return row

    def write(self, write: Write) -> None:
        self._writes.append(write)

    def delete(self) -> bool:
        """Whether there was a state. Raises StateLockLost."""
        self._writes.append(None)
        self._do(self._send)
        row = self._answers[-1]
        if row is None or not row[0]:
            raise self._lost()
        return bool(row[1])

    def finish(self) -> None:
        """Write, release and commit, in one round trip. Raises StateLockLost, StateChanged."""
        if self._connection is None and not self._writes:
            self._locks.release(self.lease)
            return

        def step() -> None:
            released, _ = self._send(self._locks.release_statement(self.lease), COMMIT)
            self._give_back()
            self._locks.give_way(self.lease, released)

        self._locks.forget(self.lease)
        try:
            self._do(step)
        except _WasDone:
            self._roll_back()
            return
        self._check_answers()

    def abandon(self, *, is_released: bool) -> None:
        """Undo what was written.

        Args:
            is_released: False where the server is away: releasing would only wait for it again.
        """
        self._roll_back()
        if not is_released:
            self._locks.forget(self.lease)
            return
        with contextlib.suppress(StateStorageError):  # it expires by itself
            self._locks.release(self.lease)

    def _check_answers(self) -> None:
        for write, row in zip(self._writes, self._answers, strict=True):
            if write is None:
                if not row or not row[0]:
                    raise self._lost()
            elif row is None or row[0] is None:
                if write.expected_version is not None and self.lease.is_held:
                    raise StateChanged(f"state {self.lease.state_id!r} has another version")
                raise self._lost()
            else:
                self._writing.prune({self.lease.state_id: row[1][0]})

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
                if not failure_of(error).is_lost or attempt == _ATTEMPTS - 1:
                    raise self._writing.connections.translate(error) from None
            # Waits until the server is back; leaves a connection that is known to work.
            self._writing.connections.run(lambda c: c.execute("SELECT 1"))
        raise AssertionError("unreachable")

    def _send(self, *more: Statement) -> list[Answer]:
        """Send the writes that were not sent yet, and `more`; in a new transaction all of them.

        Returns:
            The answers to `more`.
        """
        state_id = self.lease.state_id
        first: list[Statement] = []
        if self._connection is None:
            self._connection = self._borrowed.enter_context(self._writing.connections.borrow())
            first = [BEGIN, *self._writing.begin(state_id, self.lease)]
            if self._seen is not None or self._answers:
                mark = self._writing.mark(state_id)
                self._compare(self._ask(self._connection, *first, mark)[-1])
                first = []
            self._answers.clear()
        waiting = [
            self._writing.write([write], self.lease)
            if write
            else self._writing.delete(state_id, self.lease)
            for write in self._writes[len(self._answers) :]
        ]
        if not waiting and not more:
            return []
        rows = self._ask(self._connection, *first, *waiting, *more)[len(first) :]
        self._answers.extend(rows[: len(waiting)])
        return rows[len(waiting) :]

    def _ask(self, connection: Connection, *statements: Statement) -> list[Answer]:
        with answered_within(connection, self._writing.connections.answer_s):
            return send(connection, *statements)

    def _compare(self, mark: Answer) -> None:
        """After a reconnect, raise unless the state is as we read it.

        Raises:
            _WasDone: our commit had worked.
            StateChanged: another process has written the state.
        """
        if self._writes:
            last = self._writes[-1]
            was_deleted = last is None and mark is None and self._seen != 0
            if was_deleted or (last and mark and mark[1] == last.write_id):
                raise _WasDone
        if self._seen not in (None, mark[0] if mark else 0):
            raise StateChanged(
                f"another process wrote state {self.lease.state_id!r} while the connection was down"
            )

    def _give_back(self) -> None:
        self._connection = None
        self._borrowed.close()

    def _roll_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.closed:
            with contextlib.suppress(psycopg.Error):
                connection.rollback()
        self._borrowed.close()

    def _lost(self) -> StateLockLost:
        return StateLockLost(
            f"the lock of {self.lease.state_id!r} expired and was taken by another process; "
            "nothing was written"
        )


class _WasDone(Exception):
    """The commit had worked; only its answer was lost with the connection."""
