"""Watches transactions at the destination: ends them at a stop, and says what they wait for."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import psycopg

from etl_dagster.errors import EtlError
from etl_dagster.pg.blocking import Blocker
from etl_dagster.pg.cancelling import cut
from etl_dagster.pg.connection import Connection

_log = logging.getLogger(__name__)

#: A stop leaves what is under way so long to end by itself; most writes take less.
GRACE_S = 0.5
#: A transaction that is open for this long is asked what it waits for, and again so often.
TELL_AFTER_S = 3.0
_TURN_S = 0.1
#: A request to cancel may come a moment before the statement that it is to cancel.
_CANCEL_AGAIN_S = 0.2
_CANCEL_TIMEOUT_S = 0.5
#: A server that was asked so often and ended nothing does not answer any more.
_MOST_CANCELS = 5
#: A thread that had nothing to watch for this long ends.
_LONGEST_IDLE_S = 10.0


@dataclass(eq=False)
class WatchedTransaction:
    """A transaction that is open."""

    connection: Connection
    #: Of the backend that serves it; behind a pooler it is known once the transaction has begun.
    pid: int | None
    #: Of our sessions; one that waits for another is as it should be.
    application_name: str | None = None
    began: float = field(default_factory=time.monotonic)
    cancel_at: float = 0.0
    #: How often the server was asked to cancel it.
    cancelled: int = 0
    look_at: float = 0.0
    blockers: Sequence[Blocker] = ()
    #: Held while a request to cancel is sent, so that none meets a later user of the connection.
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_over: bool = False


class TransactionWatch:
    """One thread for all transactions, which lives while there are any.

    Args:
        fetch_blockers: what the backend with this PID waits for; from a connection of its own.
        tell_after_s: a transaction that is open for this long is asked, and again so often.
    """

    def __init__(
        self,
        fetch_blockers: Callable[[int], Sequence[Blocker]],
        *,
        tell_after_s: float = TELL_AFTER_S,
    ) -> None:
        self._fetch_blockers = fetch_blockers
        self._tell_after_s = tell_after_s
        self._lock = threading.Lock()
        self._watched: list[WatchedTransaction] = []
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        #: Set by `interrupt`.
        self.interrupted = threading.Event()
        self._interrupted_at = 0.0
        #: Whether the server didn't even answer a request to cancel.
        self._is_silent = False

    def interrupt(self) -> None:
        """From now on, end what doesn't end by itself. Safe in a signal handler."""
        if not self.interrupted.is_set():
            self._interrupted_at = time.monotonic()
            self.interrupted.set()

    @property
    def is_interrupted(self) -> bool:
        return self.interrupted.is_set()

    def waiting_for(self) -> str | None:
        """What a transaction has waited for since it was looked at last; from memory."""
        with self._lock:
            waiting = [watched for watched in self._watched if watched.blockers]
        return _described(waiting[0].blockers) if waiting else None

    @contextlib.contextmanager
    def watching(self, connection: Connection, pid: int | None) -> Iterator[WatchedTransaction]:
        """Watch a connection while the block lasts."""
        name = connection.info.parameter_status("application_name")
        watched = WatchedTransaction(connection, pid, name)
        with self._lock:
            self._watched.append(watched)
            self._wanted.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="postgres watch")
                self._thread.daemon = True
                self._thread.start()
        try:
            yield watched
        finally:
            with self._lock:
                self._watched.remove(watched)
            with watched.lock:
                watched.is_over = True
        if watched.blockers:
            _log.info("what a write to the destination waited for is over")

    # -- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while self._is_wanted():
            self.interrupted.wait(_TURN_S)
            now = time.monotonic()
            with self._lock:
                watched = list(self._watched)
            for each in watched:
                if self.is_interrupted:
                    self._end(each, now)
                elif now >= max(each.began + self._tell_after_s, each.look_at):
                    each.look_at = now + self._tell_after_s
                    self._look(each)
            if self.is_interrupted:
                time.sleep(_TURN_S)

    def _is_wanted(self) -> bool:
        """Wait until there is something to watch; whether there is."""
        while True:
            is_set = self._wanted.wait(_LONGEST_IDLE_S)
            with self._lock:
                if self._watched:
                    return True
                self._wanted.clear()
                if not is_set:
                    self._thread = None
                    return False

    def _end(self, watched: WatchedTransaction, now: float) -> None:
        if now < max(self._interrupted_at, watched.began) + GRACE_S or now < watched.cancel_at:
            return
        watched.cancel_at = now + _CANCEL_AGAIN_S
        with watched.lock:
            if watched.is_over:
                return
            watched.cancelled += 1
            if watched.cancelled > _MOST_CANCELS:
                cut(watched.connection)
                return
            if not self._is_silent:
                try:
                    watched.connection.cancel_safe(timeout=_CANCEL_TIMEOUT_S)
                except psycopg.Error:
                    self._is_silent = True
            if self._is_silent:
                cut(watched.connection)

    def _look(self, watched: WatchedTransaction) -> None:
        if watched.pid is None:
            return
        try:
            blockers = self._fetch_blockers(watched.pid)
        except (psycopg.Error, EtlError) as error:
            _log.debug("a wait can't be looked into: %s", type(error).__name__)
            return
        if blockers and [b.pid for b in blockers] != [b.pid for b in watched.blockers]:
            waits = f"a write to the destination waits: {_described(blockers)}"
            first = blockers[0]
            if first.gid is None and first.application_name == watched.application_name:
                _log.info("%s", waits)
            else:
                _log.warning("%s. End that transaction, or: %s", waits, first.solution)
        watched.blockers = blockers


def _described(blockers: Sequence[Blocker]) -> str:
    """Such as ``public.orders is locked by PID 71 (psql), idle in transaction, open for 32 s``."""
    first = blockers[0]
    what = f"{first.relation} is locked" if first.relation else "a lock is held"
    more = f" and {len(blockers) - 1} more" if len(blockers) > 1 else ""
    return f"{what} by {first}{more}"
