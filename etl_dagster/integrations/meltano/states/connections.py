"""Connections to the database that holds the state, made again when they break.

There is no pool of threads and no check before each use: a `meltano` command asks two or three
times and ends. Nothing relies on the session, so a pooler in transaction mode may be in between.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import make_conninfo

from etl_dagster.backoff import Backoff
from etl_dagster.integrations.meltano.states.errors import (
    StateLocked,
    StateNotStorable,
    StateStorageError,
    StateStorageForbidden,
    StateStorageRefused,
    StateStorageUnreachable,
    StateTablesMissing,
)
from etl_dagster.integrations.meltano.states.uri import StateLocation
from etl_dagster.pg.failures import Failure, failure_of, message_of
from etl_dagster.pg.settings import PINNED, pin_session

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]

#: Timeouts of the role and of the URI hold, and so does a database that is read only on purpose.
_SESSION = {
    name: value for name, value in PINNED.items() if name != "default_transaction_read_only"
} | {"idle_session_timeout": "0"}
_FIRST_DELAY_S, _LONGEST_DELAY_S, _GIVE_UP_AFTER_S = 0.05, 2.0, 20.0
#: So many are kept for the next use; more are made when threads need them, and closed.
_KEPT = 4


def is_lost(error: BaseException) -> bool:
    """Whether the connection is gone, so that the same may work over another one."""
    return isinstance(error, psycopg.Error) and failure_of(error).is_lost


class Connections:
    """Hands connections out, in autocommit, to one thread at a time each."""

    def __init__(self, location: StateLocation) -> None:
        self._location = location
        self._conninfo = make_conninfo(**location.parameters)
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._process = os.getpid()
        self._was_connected = False

    def connect(self) -> Connection:
        """A connection of its own; the caller closes it.

        Raises:
            StateStorageUnreachable: no server answers.
            StateStorageRefused: the server refuses us.
        """
        try:
            connection = psycopg.connect(
                self._conninfo,
                autocommit=True,
                # Prepared statements belong to a session.
                prepare_threshold=None,
            )
        except psycopg.Error as error:
            raise self.translate(error) from None
        try:
            pin_session(connection, _SESSION)
        except psycopg.Error as error:
            connection.close()
            raise self.translate(error) from None
        self._was_connected = True
        return connection

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Connection]:
        """One for this block; closed after it when anything was amiss."""
        connection = self._take()
        try:
            yield connection
        except BaseException as error:
            if is_lost(error):
                # What else was idle went the same way, if the server restarted.
                self.close()
            self._give_back(connection)
            raise
        self._give_back(connection)

    def run(self, work: Callable[[Connection], T], *, lock_waits: bool = False) -> T:
        """Do the work; when the connection breaks, do it again over another one.

        The first connection of all is tried once: a wrong host should be told at once.

        Args:
            work: may be done twice, also when it was done and only the answer got lost.
            lock_waits: whether the caller deals with LockNotAvailable.

        Raises:
            StateStorageError: the server refused, or is away for longer than twenty seconds.
            LockNotAvailable: with `lock_waits`.
        """
        pauses = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S, give_up_after_s=_GIVE_UP_AFTER_S)
        while True:
            was_connected = self._was_connected
            try:
                with self.borrow() as connection:
                    return work(connection)
            except StateStorageUnreachable:
                if not was_connected or pauses.is_exhausted:
                    raise
            except psycopg.Error as error:
                if lock_waits and isinstance(error, errors.LockNotAvailable):
                    raise
                repeatable = is_lost(error) or failure_of(error) is Failure.CONFLICT
                if not repeatable or pauses.is_exhausted:
                    raise self.translate(error) from None
            time.sleep(pauses.next_delay_s())

    def close(self) -> None:
        """Close what is idle. The next use connects again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def translate(self, error: psycopg.Error) -> StateStorageError:
        """The error in our own vocabulary, without the password."""
        message = message_of(error)
        password = self._location.parameters.get("password")
        if password:
            message = message.replace(password, "***")
        failure = failure_of(error)
        translated = self._translated(failure, message)
        translated.retryable = failure.is_passing
        translated.is_starting = failure is Failure.STARTING
        return translated

    def _translated(self, failure: Failure, message: str) -> StateStorageError:
        where = self._location.shown
        match failure:
            case Failure.LOST | Failure.STARTING | Failure.CONNECTIONS_FULL:
                return StateStorageUnreachable(f"{where} can't be reached: {message}")
            case Failure.REFUSED | Failure.DATABASE_MISSING:
                return StateStorageRefused(f"{where} refuses the connection: {message}")
            case Failure.TLS:
                return StateStorageRefused(
                    f"{where} refuses the connection: {message}",
                    solution="Check sslmode and sslrootcert in state_backend.uri or in "
                    "state_backend.postgres.*, and the certificates.",
                )
            case Failure.OPTIONS:
                return StateStorageRefused(
                    f"{where} refuses the connection: {message}",
                    solution="Correct the options in state_backend.uri or in "
                    "state_backend.postgres.options.",
                )
            case Failure.FORBIDDEN if "permission denied for database" in message:
                return StateStorageRefused(f"{where} refuses the connection: {message}")
            case Failure.FORBIDDEN:
                schema = self._location.schema
                user = self._location.parameters.get("user", "the role")
                return StateStorageForbidden(
                    f"the role may not do this at {where}: {message}",
                    solution=f'GRANT USAGE ON SCHEMA "{schema}" TO "{user}"; GRANT SELECT, INSERT, '
                    f'UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{user}"; (SELECT alone '
                    "is enough to read)",
                )
            case Failure.READ_ONLY:
                return StateStorageForbidden(
                    f"{where} is read only: {message}",
                    solution="Connect to the primary (?target_session_attrs=read-write finds it "
                    "among several hosts), and see whether the role has "
                    "default_transaction_read_only.",
                )
            case Failure.MISSING:
                return StateTablesMissing(
                    f"the tables for state are not at {where}: {message}",
                    solution="Check the schema in state_backend.uri. `meltano upgrade` makes "
                    "missing tables.",
                )
            case Failure.LOCKED:
                return StateLocked("", f"another transaction holds a lock at {where}: {message}")
            case Failure.VALUE | Failure.ENCODING:
                return StateNotStorable(f"Postgres can't store this: {message}")
            case Failure.CANCELED:
                return StateStorageError(
                    f"{where} gave up: {message}",
                    solution="See what keeps the server busy, or raise statement_timeout: in the "
                    "options of the URI or of state_backend.postgres.options, or of the role.",
                )
            case Failure.DISK_FULL:
                return StateStorageError(
                    f"{where} has no room: {message}",
                    solution="Make room on the server's disk, and repeat it.",
                )
        return StateStorageError(f"{where} failed: {message}")

    def _take(self) -> Connection:
        with self._lock:
            if self._process != os.getpid():
                # A forked process must not speak on the sockets of its parent.
                self._process, self._idle = os.getpid(), []
            while self._idle:
                connection = self._idle.pop()
                if not connection.closed:
                    return connection
        return self.connect()

    def _give_back(self, connection: Connection) -> None:
        idle = psycopg.pq.TransactionStatus.IDLE
        with self._lock:
            if (
                not connection.closed
                and connection.info.transaction_status == idle
                and len(self._idle) < _KEPT
            ):
                self._idle.append(connection)
                return
        connection.close()
