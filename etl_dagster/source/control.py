"""The control connection: short questions and commands, alongside the streams and the copies."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg

from etl_dagster.config import SourceConfig
from etl_dagster.errors import EtlError, SourceUnreachable, TableLocked
from etl_dagster.pg.cancelling import Abandoned, cut, unless_stopped
from etl_dagster.pg.failures import Failure, failure_of
from etl_dagster.source.connection import connect, translate
from etl_dagster.source.locks import ExclusiveLock, describe_locks, fetch_exclusive_locks

P = ParamSpec("P")
T = TypeVar("T")
Connection = psycopg.Connection[Any]

#: No question takes long; a server that doesn't answer is a server that isn't reachable.
_STATEMENT_TIMEOUT_S = 60.0
#: Others wait for the connection, which must not wait for a table that another session has locked.
_LOCK_TIMEOUT_S = 5.0


class SourceControl:
    """One connection for all callers, made when first needed and again when it broke.

    Safe for several threads; one question at a time.
    """

    def __init__(
        self,
        config: SourceConfig,
        *,
        application_name: str,
        verify: Callable[[Connection], None] = lambda connection: None,
        lock_timeout_s: float = _LOCK_TIMEOUT_S,
    ) -> None:
        """Args:
        verify: called with each new connection; raises where it leads to the wrong server.
        lock_timeout_s: how long a question may wait for a table that another session has locked.
        """
        self._lock_timeout_s = lock_timeout_s
        #: How the source is reached.
        self.config = config
        self._verify = verify
        self._application_name = application_name
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        #: How often `close` has ended a connection that a question was waiting for.
        self._cuts = 0
        self._ended = threading.Event()

    def ask(
        self,
        what: str,
        question: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call `question` with the connection, in autocommit, and return its answer.

        A broken connection is made again and the question repeated, once; and each time that
        `close` was what ended it.

        Args:
            what: what is being done, such as ``reading the publication``; begins the error.

        Raises:
            TableLocked: another session had a table to itself for some seconds.
            SourceUnreachable: no server answers, or `end` was called.
            EtlError: of the kind that `translate` finds, or what the question raised itself.
        """
        with self._lock:
            is_fresh = self._connection is None or self._connection.closed
            while True:
                cuts = self._cuts
                try:
                    return question(self._open(), *args, **kwargs)
                except psycopg.Error as error:
                    self._require_open()
                    is_cut = self._cuts != cuts
                    if not self._is_broken(error) or (is_fresh and not is_cut):
                        raise self._failure(error, what) from None
                is_fresh = True

    def _failure(self, error: psycopg.Error, what: str) -> EtlError:
        if not isinstance(error, psycopg.errors.LockNotAvailable):
            return translate(error, what)
        locks: list[ExclusiveLock] = []
        with contextlib.suppress(psycopg.Error):
            locks = fetch_exclusive_locks(self._open(), older_than_s=0.0)
        by = f"; locked now: {describe_locks(locks)}" if locks else ""
        return TableLocked(f"{what}: another session has a table locked{by}")

    def close(self) -> None:
        """Disconnect at once; a question that waits for its answer is asked over a new connection.

        From any thread; also where the server doesn't answer any more.
        """
        connection = self._connection
        if self._lock.acquire(blocking=False):
            try:
                if connection is not None:
                    connection.close()
            finally:
                self._lock.release()
        elif connection is not None:
            # Before the question can notice.
            self._cuts += 1
            cut(connection)

    def end(self) -> None:
        """Disconnect for good: who waits for an answer gets an error now. From any thread."""
        self._ended.set()
        self.close()

    def _require_open(self) -> None:
        if self._ended.is_set():
            raise SourceUnreachable(
                "the source is not asked any more: the pipeline ends",
                solution="No action needed: the next start resumes where this one stopped.",
            )

    def _open(self) -> Connection:
        self._require_open()
        if self._connection is None or self._connection.closed:
            try:
                connection = unless_stopped(
                    self._connect, self._ended, after_s=0.0, name="connecting to the source"
                )
            except Abandoned:
                self._require_open()
                raise
            self._connection = connection
            try:
                self._verify(connection)
            except BaseException:
                self._connection = None
                connection.close()
                raise
        return self._connection

    def _connect(self) -> Connection:
        connection = connect(
            self.config,
            application_name=self._application_name,
            statement_timeout_s=_STATEMENT_TIMEOUT_S,
            lock_timeout_s=self._lock_timeout_s,
        )
        if self._ended.is_set():
            connection.close()
        return connection

    def _is_broken(self, error: psycopg.Error) -> bool:
        connection = self._connection
        if connection is None or connection.broken or connection.closed:
            return True
        if failure_of(error) is not Failure.LOST:
            return False
        # libpq takes a connection over which it could not send for one that still has an answer.
        connection.close()
        return True
