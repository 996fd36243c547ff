"""Who writes a lake at a time.

That no change is lost or done twice doesn't depend on it: of two transactions that compare and set,
DuckLake refuses the later one (`fence.py`). It spares them the work that would be done again, and
keeps long ones from losing against short ones for ever.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import filelock
import psycopg

from etl_dagster.destinations.duckdb.file import lock_of
from etl_dagster.destinations.ducklake.catalogs import FileCatalog, PostgresCatalog
from etl_dagster.destinations.ducklake.failures import from_postgres
from etl_dagster.errors import DestinationError, DestinationUnreachable
from etl_dagster.pg.advisory import text_key
from etl_dagster.pg.connection import Connection, connect_shared
from etl_dagster.pg.pool import Pool
from etl_dagster.pg.settings import TIMEOUTS

_KEPT: Final = 2
_POLL_S: Final = 0.005


class LakeTurns(ABC):
    """Turns of one lake, among the threads of this process and others."""

    @abstractmethod
    def take(self, *, alone: bool) -> contextlib.AbstractContextManager[None]:
        """A turn, for the block.

        Args:
            alone: no other process has such a turn at the same time.

        Raises:
            DestinationError: others have kept theirs for too long, or the catalog is away.
        """

    def close(self) -> None:
        """Let go of what is kept between turns."""
        return


class ServerTurns(LakeTurns):
    """Those that are alone come one after the other, by a lock at the server of the catalog.

    The lock is that of a transaction, so a pooler may be in between.
    """

    def __init__(self, catalog: PostgresCatalog, timeout_s: float) -> None:
        self._catalog = catalog
        self._timeout_s = timeout_s
        self._here = threading.Lock()
        self._key = text_key("etl_dagster", "lake", catalog.schema or "")
        self._pool = Pool(self._connect, self._translate, kept=_KEPT, give_up_after_s=timeout_s)

    def _connect(self) -> Connection:
        connection, _ = connect_shared(
            self._catalog.dsn.with_defaults(
                connect_timeout="10", application_name="etl_dagster lake"
            ),
            TIMEOUTS,
        )
        return connection

    def _translate(self, error: psycopg.Error) -> DestinationError:
        return from_postgres(error, self._catalog)

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        if not alone:
            yield
            return
        # One connection for a process that waits, not one for each of its threads.
        if not self._here.acquire(timeout=self._timeout_s):
            raise _kept("other threads of this process", self._catalog.place, self._timeout_s)
        try:
            with contextlib.ExitStack() as stack:
                failure: DestinationError | None = None
                try:
                    connection = stack.enter_context(self._pool.borrow(is_checked=True))
                    connection.execute("BEGIN")
                    timeout_ms = max(1, round(self._timeout_s * 1000))
                    connection.execute(f"SET LOCAL lock_timeout = {timeout_ms:d}".encode())
                    connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", [self._key])
                except psycopg.Error as error:
                    failure = self._translate(error)
                if failure is not None:
                    # Neither as a cause nor as a context: libpq's text may hold a secret.
                    raise failure from None
                try:
                    yield
                finally:
                    # Where the connection is gone, so is the lock.
                    with contextlib.suppress(psycopg.Error):
                        connection.execute("ROLLBACK")
        finally:
            self._here.release()

    def close(self) -> None:
        self._pool.close()


class FileTurns(LakeTurns):
    """Writers come one after the other, by ``<path>.lock`` next to the file of the catalog."""

    def __init__(self, catalog: FileCatalog, timeout_s: float) -> None:
        self._catalog = catalog
        self._timeout_s = timeout_s
        self._here = threading.Lock()
        self._lock = lock_of(catalog.path)

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        deadline = time.monotonic() + self._timeout_s
        if not self._here.acquire(timeout=self._timeout_s):
            raise _kept("other threads of this process", self._catalog.place, self._timeout_s)
        try:
            try:
                left_s = max(deadline - time.monotonic(), 0.0)
                self._lock.acquire(timeout=left_s, poll_interval=_POLL_S)
            except filelock.Timeout as error:
                raise _kept("another process", self._catalog.place, self._timeout_s) from error
            except OSError as error:
                raise DestinationError(
                    f"{self._catalog.path}.lock can't be written: {error.strerror}",
                    solution="Give this user the right to write in the folder, or correct "
                    "destination.catalog.",
                ) from error
            try:
                yield
            finally:
                self._lock.release()
        finally:
            self._here.release()


def _kept(who: str, place: str, timeout_s: float) -> DestinationUnreachable:
    return DestinationUnreachable(
        f"the lake {place} is still written by {who} after {timeout_s:g} s",
        solution="Let it finish; the pipeline retries by itself. destination.lock_timeout_s says "
        "how long to wait.",
    )
