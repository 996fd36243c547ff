"""Locks and run leases: rows that expire unless their owner keeps renewing them.

A row is committed, so every session can see who holds what. Only the server's clock is compared.

No lease is longer than an hour. So one that ends more than two hours from now can't be real: the
clock was set back, or the row was written by hand. It counts as expired.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, LiteralString

from psycopg import errors

from etl_dagster.integrations.meltano.states import lock_statements
from etl_dagster.integrations.meltano.states.connections import StateConnections
from etl_dagster.integrations.meltano.states.errors import (
    StateLocked,
    StateLockLost,
    StateStorageError,
)
from etl_dagster.integrations.meltano.states.listening import ReleaseListener
from etl_dagster.integrations.meltano.states.statements import filled
from etl_dagster.integrations.meltano.states.tables import StateTables

_log = logging.getLogger(__name__)

Kind = Literal["write", "run"]
#: The first pause of a waiting process: about the time that a write takes.
_FIRST_PAUSE_S = 0.004
#: A process that has waited this long listens for the release, on a connection of its own. Shorter
#: waits are mostly in the server, for the transaction of the owner.
_LISTEN_AFTER_S = 0.25
_LONGEST_LEASE_S = 3600.0
#: See `Locks.give_way`; no more locks than this are remembered for it.
_GIVE_WAY_S, _TURNS_KEPT = 0.004, 1_000
#: A renewal doesn't wait for our own transaction, which holds the row anyway.
_RENEWAL_WAIT_MS = 200


def own_name() -> str:
    """Who we are, for people: ``user@host:pid``."""
    return _name_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _name_of(pid: int) -> str:
    """Looked up once in each process, also in one that was forked."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{pid}"


def lock_key(kind: Kind, state_id: str) -> bytes:
    """Key of the row; its length doesn't depend on that of the ID."""
    return hashlib.sha256(f"{kind}\0{state_id}".encode()).digest()


@dataclass(frozen=True, slots=True)
class LockRow:
    """A lock or run lease as every process sees it."""

    state_id: str
    kind: Kind
    owner: str
    host: str
    pid: int
    run_id: str | None
    fencing_token: int
    acquired_at: datetime
    renewed_at: datetime
    expires_at: datetime
    #: By the server's clock; an expired one is taken by the next process.
    is_expired: bool


class StateLease:
    """A lock or run lease of this process. Renewed by a thread until it is released."""

    def __init__(self, kind: Kind, state_id: str, lease_s: float, fencing_token: int) -> None:
        self.kind = kind
        self.state_id = state_id
        self.lease_s = lease_s
        #: Larger than that of every earlier owner.
        self.fencing_token = fencing_token
        self.lock_id = uuid.uuid4()
        self.key = lock_key(kind, state_id)
        #: By the monotonic clock: when it was last known to be ours.
        self.renewed_at = time.monotonic()
        self._lost = threading.Event()

    @property
    def is_held(self) -> bool:
        """False once another process took it, or it may have expired without our noticing."""
        return not self._lost.is_set() and time.monotonic() < self.renewed_at + self.lease_s

    def lose(self) -> None:
        self._lost.set()

    def require_held(self) -> None:
        """Raises StateLockLost."""
        if not self.is_held:
            what = "run lease" if self.kind == "run" else "lock"
            raise StateLockLost(
                f"the {what} of {self.state_id!r} is no longer held by this process"
            )


class Locks:
    """The lock table. One thread renews the leases that are held; it ends when there are none."""

    def __init__(
        self, connections: StateConnections, tables: StateTables, run_id: Callable[[], str | None]
    ) -> None:
        self._connections = connections
        self._tables = tables
        self._run_id = run_id
        digest = hashlib.sha256(f"{tables.schema}\0{tables.locks}".encode()).hexdigest()
        self._channel = f"etl_dagster_state_{digest[:16]}"
        self._guard = threading.Condition()
        self._held: dict[uuid.UUID, StateLease] = {}
        self._turns: dict[bytes, float] = {}
        self._keeper: threading.Thread | None = None

    def acquire(
        self, kind: Kind, state_id: str, *, lease_s: float, wait_s: float, retry_s: float
    ) -> StateLease:
        """Take the lock, as soon as it is free or has expired.

        Args:
            lease_s: how long it lasts without being renewed; an hour at most.
            wait_s: how long to wait for an owner that is alive.
            retry_s: the longest pause between two attempts; a release is usually heard at once.

        Raises:
            StateLocked: it was not free in that time; the message names the owner.
        """
        lease = StateLease(kind, state_id, min(lease_s, _LONGEST_LEASE_S), 0)
        with self._guard:
            turn_at = self._turns.pop(lease.key, 0.0)
        time.sleep(max(0.0, turn_at - time.monotonic()))
        deadline = time.monotonic() + wait_s
        if not self._try(lease, deadline):
            waiting = ReleaseListener(self._connections, self._channel, lease.key.hex())
            try:
                self._wait(lease, deadline, retry_s, waiting)
            finally:
                waiting.close()
        self._keep(lease)
        return lease

    def release(self, lease: StateLease) -> None:
        """Release the lock, if it is still ours."""
        self.forget(lease)
        text, parameters = self.release_statement(lease)
        row = self._connections.run(lambda c: c.execute(text, parameters).fetchone())
        self.give_way(lease, row)

    def release_statement(self, lease: StateLease) -> tuple[bytes, Mapping[str, Any]]:
        """For the caller's transaction. Call `forget` before it, and `give_way` with its row."""
        parameters = {
            "key": lease.key,
            "lock_id": lease.lock_id,
            "channel": self._channel,
            "hex": lease.key.hex(),
        }
        return filled(lock_statements.RELEASE, self._tables), parameters

    def give_way(self, lease: StateLease, released: tuple[Any, ...] | None) -> None:
        """After a release that another process waited for, our next turn comes a little later.

        We would always be faster than those who have to wake up first, and they would starve.
        """
        if released and released[0] is not None:
            with self._guard:
                if len(self._turns) > _TURNS_KEPT:
                    self._turns.clear()
                self._turns[lease.key] = time.monotonic() + _GIVE_WAY_S

    def forget(self, lease: StateLease) -> None:
        """Stop renewing it."""
        with self._guard:
            self._held.pop(lease.lock_id, None)

    def rows(self) -> list[LockRow]:
        """All locks and run leases, the oldest first; also expired ones not taken yet."""
        text = filled(lock_statements.LIST, self._tables)
        rows = self._connections.run(lambda c: c.execute(text).fetchall())
        return [LockRow(*row) for row in rows]

    def _row(self, text: LiteralString, parameters: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Raises LockNotAvailable."""
        query = filled(text, self._tables)
        return self._connections.run(
            lambda c: c.execute(query, parameters).fetchone(), untranslated=errors.LockNotAvailable
        )

    # -- waiting ---------------------------------------------------------------------------------

    def _try(self, lease: StateLease, deadline: float) -> bool:
        parameters = {
            "key": lease.key,
            "kind": lease.kind,
            "state_id": lease.state_id,
            "lock_id": lease.lock_id,
            "owner": own_name(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "run_id": self._run_id(),
            "lease": timedelta(seconds=lease.lease_s),
            "wait_ms": _milliseconds(deadline),
        }
        began = time.monotonic()
        try:
            row = self._row(lock_statements.ACQUIRE, parameters)
        except errors.LockNotAvailable:
            return False
        if row is None:
            return False
        lease.fencing_token, previous = row
        lease.renewed_at = began
        if previous is not None:
            _log.warning(
                "took over the expired %s lock of %r from %s", lease.kind, lease.state_id, previous
            )
        return True

    def _wait(
        self, lease: StateLease, deadline: float, retry_s: float, waiting: ReleaseListener
    ) -> None:
        pause_s = min(_FIRST_PAUSE_S, retry_s)
        began = time.monotonic()
        while True:
            holder = self._mark_awaited(lease, deadline)
            if holder is not None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise StateLocked(lease.state_id, _held_by(lease, holder))
                expires_in_s = max(holder[-1], 0.0) + 0.001
                is_long = time.monotonic() - began > _LISTEN_AFTER_S
                if is_long and waiting.listen():
                    # Marked again, since the release may have come before we listened.
                    if self._mark_awaited(lease, deadline) is not None:
                        waiting.wait(min(retry_s, left_s, expires_in_s))
                else:
                    # Random, so that several waiting processes don't keep colliding.
                    time.sleep(min(random.uniform(0.3, 1) * pause_s, left_s, expires_in_s))
                    if is_long:  # and there will be no notification: a pooler is in between
                        pause_s = min(1.5 * pause_s, retry_s)
            if self._try(lease, deadline):
                return

    def _mark_awaited(self, lease: StateLease, deadline: float) -> tuple[Any, ...] | None:
        """Ask for a notification at the release; returns who holds it, None when it is free."""
        parameters = {"key": lease.key, "wait_ms": _milliseconds(deadline)}
        try:
            return self._row(lock_statements.AWAIT, parameters)
        except errors.LockNotAvailable:
            # Its transaction holds the row; reading waits for no other session.
            return self._row(lock_statements.HOLDER, parameters)

    # -- renewal ---------------------------------------------------------------------------------

    def _keep(self, lease: StateLease) -> None:
        with self._guard:
            self._held[lease.lock_id] = lease
            if self._keeper is None or not self._keeper.is_alive():
                self._keeper = threading.Thread(
                    target=self._renew_all, name="meltano-state-leases", daemon=True
                )
                self._keeper.start()
            elif lease.kind == "run":
                self._guard.notify()

    def _renew_all(self) -> None:
        idle_since: float | None = None
        while True:
            with self._guard:
                now = time.monotonic()
                due = [x for x in self._held.values() if now >= x.renewed_at + x.lease_s / 3]
                if not due:
                    idle_since = (idle_since or now) if not self._held else None
                    if idle_since is not None and now - idle_since > 10:
                        self._keeper = None
                        return
                    next_s = [x.renewed_at + x.lease_s / 3 - now for x in self._held.values()]
                    # Short locks come and go without waking this thread; the shortest lease is 1 s.
                    self._guard.wait(min([*next_s, 0.3]))
                    continue
            idle_since = None
            for lease in due:
                self._renew_one(lease)

    def _renew_one(self, lease: StateLease) -> None:
        parameters = {
            "key": lease.key,
            "lock_id": lease.lock_id,
            "lease": timedelta(seconds=lease.lease_s),
            "wait_ms": str(_RENEWAL_WAIT_MS),
        }
        began = time.monotonic()
        try:
            row = self._row(lock_statements.RENEW, parameters)
        except errors.LockNotAvailable:
            # Our own transaction holds the row, so no other process can take it before that ends.
            lease.renewed_at = began
            return
        except StateStorageError as error:
            if lease.is_held:
                _log.warning("the lock of %r could not be renewed yet: %s", lease.state_id, error)
            # Still due, so the next round tries again, until the lease is over.
            time.sleep(0.1)
            if not lease.is_held:
                lease.lose()
                self.forget(lease)
            return
        if row is None:
            with self._guard:
                released = lease.lock_id not in self._held
            if not released:
                lease.lose()
                self.forget(lease)
                _log.error(
                    "the %s lock of %r was taken by another process", lease.kind, lease.state_id
                )
            return
        lease.renewed_at = began


def _milliseconds(deadline: float) -> str:
    """The time left until the deadline, for lock_timeout: never 0, which means for ever."""
    return str(max(1, round(1000 * (deadline - time.monotonic()))))


def _held_by(lease: StateLease, holder: tuple[Any, ...]) -> str:
    owner, host, pid, run_id, acquired_at, _ = holder
    what = "is run by" if lease.kind == "run" else "is locked by"
    run = f", run {run_id}" if run_id else ""
    return (
        f"state {lease.state_id!r} {what} {owner} (host {host}, pid {pid}{run}), "
        f"since {acquired_at:%Y-%m-%d %H:%M:%S %Z}"
    )
