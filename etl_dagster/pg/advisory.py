"""Leases that end with the process: session advisory locks, each on a connection of its own."""

from __future__ import annotations

import hashlib
import select
import struct
import threading
import time
from collections.abc import Sequence

import psycopg

from etl_dagster.pg.connection import Connection

#: A server that vanished without a word is asked this often, at most.
_ASK_EVERY_S = 2.0


def lock_key(schema: str, pipeline: str, name: str) -> tuple[int, int]:
    """The two int4 keys of an advisory lock, the same in every process and version."""
    digest = hashlib.sha256("\0".join((schema, pipeline, name)).encode()).digest()
    high, low = struct.unpack_from("!ii", digest)
    return high, low


def text_key(*names: str) -> int:
    """The one int8 key of an advisory lock, the same in every process and version."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class _Session:
    """The connection behind some leases; it is closed with the last of them."""

    def __init__(self, connection: Connection, leases: int) -> None:
        self.connection = connection
        self.lock = threading.Lock()
        self.leases = leases
        self._asked_at = time.monotonic()

    def is_alive(self) -> bool:
        with self.lock:
            if self.connection.closed:
                return False
            try:
                if self._said_something() or time.monotonic() - self._asked_at > _ASK_EVERY_S:
                    self.connection.execute("SELECT 1")
                    self._asked_at = time.monotonic()
            except (psycopg.Error, OSError):
                self.connection.close()
                return False
            return True

    def _said_something(self) -> bool:
        """Nothing is expected from the server: what comes is its farewell."""
        poll = select.poll()
        poll.register(self.connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))


class PostgresLease:
    """Held while its session lives. The server frees the lock when the process dies."""

    def __init__(self, session: _Session, key: tuple[int, int]) -> None:
        self._session = session
        self._key = key
        self._is_released = False

    @property
    def is_held(self) -> bool:
        return not self._is_released and self._session.is_alive()

    def release(self) -> None:
        session = self._session
        with session.lock:
            if self._is_released:
                return
            self._is_released = True
            session.leases -= 1
            if session.connection.closed:
                return
            try:
                # Closing alone would leave the lock for the moment that the backend needs to go.
                session.connection.execute("SELECT pg_advisory_unlock(%s, %s)", self._key)
            except psycopg.Error:
                session.connection.close()  # the connection is lost, and the lock with it
            finally:
                if session.leases == 0:
                    session.connection.close()


def try_acquire(connection: Connection, key: tuple[int, int]) -> PostgresLease | None:
    """Take the lock if it is free. The connection, in autocommit, is the lease's from now on."""
    return try_acquire_all(connection, [key]).get(key)


def try_acquire_all(
    connection: Connection, keys: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], PostgresLease]:
    """Take each of the locks that is free, all in the session of this connection, in autocommit,
    which is theirs from now on."""
    try:
        rows = connection.execute(
            "SELECT pg_try_advisory_lock(high, low) "
            "FROM unnest(%s::int[], %s::int[]) WITH ORDINALITY AS k (high, low, place) "
            "ORDER BY place",
            ([high for high, _ in keys], [low for _, low in keys]),
        ).fetchall()
    except BaseException:
        connection.close()
        raise
    taken = [key for key, row in zip(keys, rows, strict=True) if row == (True,)]
    if not taken:
        connection.close()
    session = _Session(connection, len(taken))
    return {key: PostgresLease(session, key) for key in taken}


def locked_keys(connection: Connection) -> set[tuple[int, int]]:
    """Every pair of int4 keys that a session of this database has locked."""
    # pg_locks shows the two keys as OIDs, unsigned; objsubid 2 marks a pair of int4 keys.
    rows = connection.execute(
        "SELECT classid::bigint, objid::bigint FROM pg_locks "
        "JOIN pg_database ON pg_database.oid = database "
        "WHERE locktype = 'advisory' AND datname = current_database() AND granted "
        "AND objsubid = 2"
    ).fetchall()
    return {(_signed(high), _signed(low)) for high, low in rows}


def _signed(part: int) -> int:
    return part - 0x100000000 if part & 0x80000000 else part


def is_locked(connection: Connection, key: tuple[int, int]) -> bool:
    """Whether a session holds the lock."""
    # pg_locks shows the two keys as OIDs, unsigned; objsubid 2 marks a pair of int4 keys.
    classid, objid = (part & 0xFFFFFFFF for part in key)
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database "
        "WHERE locktype = 'advisory' AND datname = current_database() AND granted "
        "AND classid::bigint = %s AND objid::bigint = %s AND objsubid = 2)",
        (classid, objid),
    ).fetchone()
    return row == (True,)
