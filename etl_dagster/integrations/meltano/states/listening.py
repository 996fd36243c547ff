"""Notices by LISTEN that a lock was released; behind a pooler this does not work."""

from __future__ import annotations

import time

import psycopg

from etl_dagster.integrations.meltano.states.connections import StateConnections
from etl_dagster.integrations.meltano.states.errors import StateStorageError
from etl_dagster.pg.connection import has_own_session
from etl_dagster.pg.listener import Subscription


class ReleaseListener:
    """Listens on a connection of its own, opened by `listen`."""

    def __init__(self, connections: StateConnections, channel: str, payload: str) -> None:
        self._connections = connections
        self._channel = channel
        self._payload = payload
        self._subscription: Subscription | None = None
        self._is_possible = True

    def listen(self) -> bool:
        """Start listening, or continue; False where no notification would come: poll then."""
        if self._subscription is not None:
            return True
        if not self._is_possible:
            return False
        self._is_possible = False
        try:
            connection = self._connections.connect()
        except StateStorageError:
            return False
        try:
            # Behind a pooler, sessions may not be ours to keep.
            if not has_own_session(connection):
                connection.close()
                return False
            self._subscription = Subscription(connection, self._channel)
        except psycopg.Error:
            connection.close()
            return False
        return True

    def wait(self, timeout_s: float) -> None:
        """Wait for a release, or until the time is over."""
        assert self._subscription is not None
        deadline = time.monotonic() + timeout_s
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                if self._payload in self._subscription.wait(left_s):
                    return
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
