"""A few connections to one server, kept for the next use, and made again when they break."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import psycopg

from etl_dagster.backoff import Backoff
from etl_dagster.errors import EtlError
from etl_dagster.pg.connection import Connection
from etl_dagster.pg.failures import Failure, failure_of

T = TypeVar("T")

#: Pauses between two tries, when a connection breaks.
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 2.0
#: One that wasn't used for this long is closed when another one comes back.
_LONGEST_IDLE_S = 600.0
#: What may be over within seconds.
SOON_OVER = frozenset(
    {
        Failure.LOST,
        Failure.STARTING,
        Failure.CONNECTIONS_FULL,
        Failure.RESOURCES_SHORT,
        Failure.CONFLICT,
    }
)


class Pool:
    """Hands out connections in autocommit, to one thread at a time each. Opened when used.

    There is no thread of its own. A connection that broke while idle is noticed by the work that
    gets it, which is done again where it may be; for other work it is looked at before.

    Args:
        connect: makes a connection, or raises psycopg's error.
        translate: makes the caller's error of psycopg's.
        kept: so many connections are kept idle.
        at_most: so many are used at a time, others wait; None for any number.
        give_up_after_s: how long work is tried again, and a free connection waited for.
        retried: failures after which work is tried again.
        works: whether a connection that was idle still does.
        is_patient: whether also the first connection of all is tried again. Without it that is
            tried once: a wrong host is reported at once.
        on_away: called with the caller's error when no connection can be made, and another try
            follows; once for each piece of work.
        clock: seconds that only grow.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        translate: Callable[[psycopg.Error], EtlError],
        *,
        kept: int,
        at_most: int | None = None,
        give_up_after_s: float,
        retried: Collection[Failure] = SOON_OVER,
        works: Callable[[Connection], bool] | None = None,
        is_patient: Callable[[], bool] = lambda: False,
        on_away: Callable[[EtlError], object] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._connect = connect
        self._translate = translate
        self._kept = kept
        self._places = None if at_most is None else threading.BoundedSemaphore(at_most)
        self._give_up_after_s = give_up_after_s
        self._retried = retried
        self._works = works or does_work
        self._is_patient = is_patient
        self._on_away = on_away
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        #: With the time of their last use; the one used last is last.
        self._idle: list[tuple[Connection, float]] = []
        #: Connections of an earlier generation, or process, are not used again.
        self._generation = 0
        self._process = os.getpid()
        self._was_connected = False

    def run(
        self,
        work: Callable[[Connection], T],
        *,
        is_repeatable: bool = True,
        untranslated: type[psycopg.Error] | tuple[type[psycopg.Error], ...] = (),
    ) -> T:
        """Do the work; when the connection breaks, do it again over another one.

        Args:
            work: may be done twice, also when it was done and only the answer got lost. Work that
                isn't repeatable is only done again when it was not begun, or was rolled back.
            untranslated: errors that the caller handles.

        Raises:
            EtlError: as translated: the server refused, or was away for too long.
        """
        pauses = Backoff(
            _FIRST_DELAY_S,
            _LONGEST_DELAY_S,
            give_up_after_s=self._give_up_after_s,
            clock=self._clock,
        )
        is_told = False
        while True:
            was_connected, is_begun = self._was_connected or self._is_patient(), False
            try:
                with self.borrow(is_checked=not is_repeatable) as connection:
                    is_begun = True
                    return work(connection)
            except psycopg.Error as error:
                if isinstance(error, untranslated):
                    raise
                failure = failure_of(error)
                if is_begun:
                    may_repeat = is_repeatable or failure is Failure.CONFLICT
                else:
                    may_repeat = was_connected
                if failure not in self._retried or not may_repeat or pauses.is_exhausted:
                    raise self._translate(error) from None
                if not is_begun and not is_told:
                    is_told = True
                    self._on_away(self._translate(error))
            self._sleep(pauses.next_delay_s())

    def connect(self) -> Connection:
        """A connection that is not the pool's; the caller closes it.

        Raises:
            EtlError: as translated: the server refuses, or is away.
        """
        try:
            return self._connect()
        except psycopg.Error as error:
            raise self._translate(error) from None

    @contextlib.contextmanager
    def borrow(self, *, is_checked: bool = False) -> Iterator[Connection]:
        """A connection for this block; closed after it when anything was amiss.

        Args:
            is_checked: whether to find out first that it still works.

        Raises:
            psycopg.Error: the server is away or refuses us, or no connection gets free in time.
        """
        with self._place():
            connection, generation = self._take(is_checked=is_checked)
            try:
                yield connection
            except BaseException as error:
                if isinstance(error, psycopg.Error) and failure_of(error).is_lost:
                    # What else was idle went the same way, if the server restarted.
                    self.close()
                raise
            finally:
                self._give_back(connection, generation)

    def close(self) -> None:
        """Close the connections: idle ones now, others after use. The next use connects again."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._generation += 1
        for connection, _ in idle:
            connection.close()

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        places = self._places
        if places is None:
            yield
            return
        if not places.acquire(timeout=self._give_up_after_s):
            raise psycopg.OperationalError(
                f"no connection became free within {self._give_up_after_s:g} s"
            )
        try:
            yield
        finally:
            places.release()

    def _take(self, *, is_checked: bool) -> tuple[Connection, int]:
        while (found := self._take_idle()) is not None:
            connection, generation = found
            if not is_checked or self._works(connection):
                return connection, generation
            connection.close()
        generation = self._generation
        connection = self._connect()
        self._was_connected = True
        return connection, generation

    def _take_idle(self) -> tuple[Connection, int] | None:
        with self._lock:
            if self._process != os.getpid():
                # A forked process must not speak on the sockets of its parent.
                self._process, self._idle = os.getpid(), []
            while self._idle:
                connection, _ = self._idle.pop()
                if not connection.closed:
                    return connection, self._generation
        return None

    def _give_back(self, connection: Connection, generation: int) -> None:
        idle, now = psycopg.pq.TransactionStatus.IDLE, self._clock()
        done = []
        with self._lock:
            if (
                generation == self._generation
                and not connection.closed
                and connection.info.transaction_status == idle
                and len(self._idle) < self._kept
            ):
                self._idle.append((connection, now))
            else:
                done.append(connection)
            while self._idle and self._idle[0][1] < now - _LONGEST_IDLE_S:
                done.append(self._idle.pop(0)[0])
        for connection in done:
            connection.close()


def does_work(connection: Connection) -> bool:
    """Whether the server answers over it."""
    try:
        connection.execute("")
    except psycopg.Error:
        return False
    return True
