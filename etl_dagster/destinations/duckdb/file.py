"""One DuckDB file that several threads and several processes share."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import duckdb
import filelock

from etl_dagster.config.text import parse_size
from etl_dagster.destinations.duckdb import upkeep
from etl_dagster.destinations.duckdb.failures import translate
from etl_dagster.destinations.duckdb.readiness import is_unfinished, wal_of
from etl_dagster.destinations.duckdb.turns import HOLDING, Holding, WriterTurns
from etl_dagster.errors import (
    DestinationError,
    DestinationUnreachable,
)
from etl_dagster.threads import Background

_log = logging.getLogger(__name__)

#: How often a process that waits for the file tries, and the holder looks whether one waits.
_POLL_S = 0.005
#: Between two tries to open a file that a process without our lock has open: first, and at most.
_RETRY_S, _LONGEST_RETRY_S = 0.005, 0.1
#: Nothing is fetched from the network.
_CONFIG = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
#: Another thread of this process, which has just let go of the lock, has not closed it altogether.
_OURS = "different configuration than existing connections"
_HOLDER = re.compile(r"Conflicting lock is held in (.*?\(PID \d+\))")


class Guard(Protocol):
    """Looks at the file each time it is opened; raises where it isn't the one from before."""

    def before_opening(self) -> None:
        """While the lock is held; opening would make a file that is missing."""

    def after_opening(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Outside of any transaction."""

    def while_open(self) -> None:
        """Before and after each transaction; what goes into a file without a name is lost."""


class DatabaseFile:
    """Opens the file when it is needed, and lets go of it soon.

    DuckDB lets one process write a file, and no other can read it meanwhile. So a process
    holds ``<path>.lock`` while it has the file open. Its threads share that one database, where
    each has transactions of its own. Who waits for the lock holds ``<path>.wanted``, so that the
    file is kept open from one write to the next only while no other process waits.
    """

    def __init__(
        self,
        path: Path,
        *,
        memory_limit: str,
        lock_timeout_s: float,
        bounds: upkeep.Bounds = upkeep.BOUNDS,
        holding: Holding = HOLDING,
    ) -> None:
        self.path = path
        #: What must be true of the file each time it is opened: it may have been replaced.
        self.guard: Guard | None = None
        self._lock_timeout_s = lock_timeout_s
        #: Once set, other processes are not waited for.
        self.stop = threading.Event()
        self._config: dict[str, Any] = {
            "memory_limit": memory_limit,
            # Queries run in the threads that call; more of them would only cost memory.
            "threads": 1,
            "preserve_insertion_order": False,
        } | upkeep.CONFIG
        self.upkeep = upkeep.Upkeep(int(parse_size(memory_limit)), bounds)
        self._file_lock = lock_of(path)
        self._wanted = _wanted_by(path)
        self._changed = threading.Condition()
        self._database: duckdb.DuckDBPyConnection | None = None
        self._is_opening = False
        self._is_broken = False
        self._users = 0
        self._turns = WriterTurns(holding=holding)

    @contextmanager
    def transaction(
        self, *, more_follows: bool | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection inside a transaction, which is durable when the block ends well.

        Args:
            more_follows: whether the next transaction is known to come soon. If it is known not to,
                the file is closed at once, for readers.

        Raises:
            DestinationUnreachable: the file is in use elsewhere, or can't be written now.
        """
        with self._connection(more_follows) as connection:
            self._check_place()
            connection.execute("BEGIN TRANSACTION")
            try:
                yield connection
                connection.execute("COMMIT")
                self._check_place()
            except duckdb.Error as error:
                self._roll_back(connection)
                if isinstance(error, duckdb.FatalException | duckdb.InternalException):
                    self._is_broken = True
                raise translate(error, self.path) from error
            except BaseException:
                self._roll_back(connection)
                raise

    def _check_place(self) -> None:
        if self.guard is not None:
            try:
                self.guard.while_open()
            except BaseException:
                self._is_broken = True
                raise

    def close(self) -> None:
        """Close the file as soon as no caller uses it."""
        with self._changed:
            self._is_broken = True
            self._changed.notify_all()
            while self._database is not None or self._is_opening:
                self._changed.wait()

    @contextmanager
    def _connection(self, more_follows: bool | None) -> Iterator[duckdb.DuckDBPyConnection]:
        database = self._enter()
        try:
            connection = database.cursor()
            try:
                yield connection
            finally:
                connection.close()
        finally:
            with self._changed:
                self._users -= 1
                self._turns.written(
                    more_follows, is_closing_costly=not self.upkeep.is_written_at_once
                )
                self._changed.notify_all()

    def _enter(self) -> duckdb.DuckDBPyConnection:
        deadline = time.monotonic() + self._lock_timeout_s
        with self._changed:
            while self._is_opening or (self._database is not None and self._is_due):
                if not self._changed.wait(deadline - time.monotonic()):
                    raise DestinationUnreachable(
                        f"{self.path} is still written by other threads of this process after "
                        f"{self._lock_timeout_s:g} s"
                    )
            if self._database is not None:
                self._users += 1
                return self._database
            self._is_opening = True
            left_to_others_s = self._turns.before_opening()
        database = None
        try:
            time.sleep(left_to_others_s)
            database = self._open()
        finally:
            with self._changed:
                self._is_opening = False
                if database is not None:
                    self._database, self._users, self._is_broken = database, 1, False
                    self._turns.opened()
                self._changed.notify_all()
        Background(self._close_when_idle, name="duckdb-closer").start()
        return database

    def _open(self) -> duckdb.DuckDBPyConnection:
        guard = self.guard

        def before_try() -> None:
            self._turns.opening()
            if guard is not None:
                guard.before_opening()

        database = open_locked(
            self.path,
            self._file_lock,
            self._config,
            timeout_s=self._lock_timeout_s,
            stop=self.stop,
            before_try=before_try,
        )
        try:
            if guard is not None:
                guard.after_opening(database)
            self.upkeep.opened(database)
        except BaseException:
            database.close()
            self._file_lock.release()
            raise
        return database

    @property
    def _is_due(self) -> bool:
        return self._is_broken or self._turns.is_held_long or _is_taken(self._wanted)

    def _close_when_idle(self) -> None:
        """Runs in a thread of its own while the file is open."""
        with self._changed:
            while True:
                if self._users:
                    self._changed.wait()
                    continue
                linger_s = self._turns.linger_s
                if self._is_due or not linger_s:
                    break
                self._changed.wait(min(linger_s, _POLL_S))
            try:
                if self._database is not None:
                    self._close_database(self._database)
            finally:
                self._database = None
                self._turns.closed()
                self._file_lock.release()
                self._changed.notify_all()

    def _close_database(self, database: duckdb.DuckDBPyConnection) -> None:
        try:
            try:
                self.upkeep.before_close(database)
            finally:
                database.close()
            self.upkeep.closed(is_wal_left=wal_of(self.path).exists())
        except duckdb.Error as error:
            # What was committed is in the file or in its WAL; the next one to open it hears of it.
            reason = translate(error, self.path).reason
            _log.warning("%s was not closed as it should be: %s", self.path, reason)

    @staticmethod
    def _roll_back(connection: duckdb.DuckDBPyConnection) -> None:
        try:
            connection.execute("ROLLBACK")
        except duckdb.Error:
            pass  # the failure itself has ended the transaction


def lock_of(path: Path) -> filelock.BaseFileLock:
    """The lock that everybody who opens the file holds; another object for each caller."""
    # The thread that closes isn't the one that opened.
    return filelock.FileLock(f"{path}.lock", thread_local=False)


def _wanted_by(path: Path) -> filelock.BaseFileLock:
    """The lock that the next one holds who waits for the lock of the file."""
    return filelock.FileLock(f"{path}.wanted", thread_local=False)


def _is_taken(lock: filelock.BaseFileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    except OSError:
        return False  # what is wrong with it is found when the file is opened
    lock.release()
    return False


def open_locked(
    path: Path,
    lock: filelock.BaseFileLock,
    config: dict[str, Any],
    *,
    timeout_s: float,
    stop: threading.Event | None = None,
    before_try: Callable[[], None] = lambda: None,
    **how: Any,
) -> duckdb.DuckDBPyConnection:
    """Take the lock and open the file, waiting for others to leave it; the lock is kept.

    Args:
        stop: once set, nothing more is waited for; what is free is still opened.
        before_try: called with the lock, each time before the file is opened.

    Raises:
        DestinationUnreachable: others kept the file for too long, or it can't be opened now.
        DestinationError: it can't be opened at all.
    """
    stop = stop or threading.Event()
    deadline = time.monotonic() + timeout_s
    _take_turn(path, lock, timeout_s, stop)
    try:
        before_try()
        if not how.get("read_only") and is_unfinished(path):
            path.unlink()
        retry_s = _RETRY_S
        while True:
            try:
                database = duckdb.connect(str(path), config=_CONFIG | config, **how)
                database.execute("SET GLOBAL TimeZone = 'UTC'")
                return database
            except duckdb.Error as error:
                # A program that doesn't know our lock, such as the duckdb shell.
                found = _HOLDER.search(str(error))
                if found is None and _OURS not in str(error):
                    raise translate(error, path) from error
                holder = "this process" if found is None else found[1]
                if time.monotonic() > deadline or stop.is_set():
                    raise DestinationUnreachable(
                        f"{path} is held open by {holder}; "
                        + (
                            "the pipeline is stopping"
                            if stop.is_set()
                            else f"waited {timeout_s:g} s"
                        ),
                        solution="Close it there (DuckDB lets only one process have a file that "
                        "is written); the pipeline retries by itself.",
                    ) from error
            stop.wait(retry_s)
            retry_s = min(retry_s * 1.2, _LONGEST_RETRY_S)
            before_try()
    except BaseException:
        lock.release()
        raise


def _take_turn(
    path: Path, lock: filelock.BaseFileLock, timeout_s: float, stop: threading.Event
) -> None:
    """Take the lock of the file, in the order of arrival."""
    deadline = time.monotonic() + timeout_s
    wanted = _wanted_by(path)
    try:
        # At least one try, however little time there is.
        _acquire(wanted, deadline, stop)
        try:
            _acquire(lock, deadline, stop)
        finally:
            wanted.release()
    except filelock.Timeout as error:
        raise DestinationUnreachable(
            f"{path} is in use by another process; "
            + (
                "the pipeline is stopping"
                if stop.is_set()
                else f"waited {timeout_s:g} s for {path}.lock"
            ),
            solution="Find who holds it (`fuser` names the process) and let it finish; "
            "the pipeline retries by itself.",
        ) from error
    except OSError as error:
        raise DestinationError(
            f"{path}.lock can't be written: {error.strerror}",
            solution="Give this user the right to write in the folder, or correct "
            "destination.path.",
        ) from error


def _acquire(lock: filelock.BaseFileLock, deadline: float, stop: threading.Event) -> None:
    """Raises filelock.Timeout at the deadline, or once `stop` is set; after one try at least."""
    while True:
        try:
            lock.acquire(timeout=0)
            return
        except filelock.Timeout:
            if stop.is_set() or time.monotonic() >= deadline:
                raise
        stop.wait(_POLL_S)
