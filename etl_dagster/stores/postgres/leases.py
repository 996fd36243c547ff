"""Leases that end with the process: session advisory locks, each on a connection of its own."""

from __future__ import annotations

import hashlib
import select
import struct
import threading
import time

import psycopg

from etl_dagster.stores.postgres.connections import Connection

#: A server that vanished without a word is asked this often, at most.
_ASK_EVERY_S = 2.0


def lock_key(schema: str, pipeline: str, name: str) -> tuple[int, int]:
    """The two int4 keys of an advisory lock, the same in every process and version."""
    digest = hashlib.sha256("\0".join((schema, pipeline, name)).encode()).digest()
    high, low = struct.unpack_from("!ii", digest)
    return high, low


class PostgresLease:
    """Held while the connection lives. The server frees the lock when the process dies."""

    def __init__(self, connection: Connection, key: tuple[int, int]) -> None:
        self._connection = connection
        self._key = key
        self._lock = threading.Lock()
        self._asked_at = time.monotonic()

    @property
    def is_held(self) -> bool:
        with self._lock:
            if self._connection.closed:
                return False
            try:
                if self._said_something() or time.monotonic() - self._asked_at > _ASK_EVERY_S:
                    self._connection.execute("SELECT 1")
                    self._asked_at = time.monotonic()
            except (psycopg.Error, OSError):
                self._connection.close()
                return False
            return True

    def release(self) -> None:
        with self._lock:
            if self._connection.closed:
                return
            try:
                # Closing alone would leave the lock for the moment that the backend needs to go.
                self._connection.execute("SELECT pg_advisory_unlock(%s, %s)", self._key)
            except psycopg.Error:
                pass  # the connection is lost, and the lock with it
            finally:
                self._connection.close()

    def _said_something(self) -> bool:
        """Nothing is expected from the server: what comes is its farewell."""
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))


def try_acquire(connection: Connection, key: tuple[int, int]) -> PostgresLease | None:
    """Take the lock if it is free. The connection, in autocommit, is the lease's from now on."""
    try:
        row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", key).fetchone()
    except BaseException:
        connection.close()
        raise
    if row == (True,):
        return PostgresLease(connection, key)
    connection.close()
    return None


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
