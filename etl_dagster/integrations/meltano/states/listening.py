"""Hears over LISTEN that a lock was released; behind a pooler it hears nothing."""

from __future__ import annotations

import time

import psycopg
from psycopg import sql

from etl_dagster.integrations.meltano.states.connections import Connections
from etl_dagster.integrations.meltano.states.errors import StateStorageError
from etl_dagster.pg.connection import Connection


class ReleaseListener:
    """On a connection of its own, made when asked to listen."""

    def __init__(self, connections: Connections, channel: str, payload: str) -> None:
        self._connections = connections
        self._channel = channel
        self._payload = payload
        self._connection: Connection | None = None
        self._is_possible = True

    def listen(self) -> bool:
        """Begin, or go on; False where nothing would be heard: poll then."""
        if self._connection is not None:
            return True
        if not self._is_possible:
            return False
        self._is_possible = False
        try:
            connection = self._connections.connect()
        except StateStorageError:
            return False
        try:
            row = connection.execute("SELECT pg_backend_pid()").fetchone()
            # A pooler hands out a process ID of its own, and sessions that are not ours to keep.
            if row != (connection.info.backend_pid,):
                connection.close()
                return False
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
        except psycopg.Error:
            connection.close()
            return False
        self._connection = connection
        return True

    def wait(self, timeout_s: float) -> None:
        """Until a release is heard, but not longer."""
        assert self._connection is not None
        deadline = time.monotonic() + timeout_s
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                for notify in self._connection.notifies(timeout=left_s, stop_after=1):
                    if notify.payload == self._payload:
                        return
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
