"""Hears what other processes changed, over LISTEN/NOTIFY."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
from collections.abc import Callable

import psycopg
from psycopg import sql

from etl_dagster.backoff import Backoff
from etl_dagster.errors import StoreError
from etl_dagster.pg.connection import Connection
from etl_dagster.stores.postgres.connections import Connections

_log = logging.getLogger(__name__)
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 10.0
#: A connection that died without a word is noticed by asking.
_ASK_EVERY_S = 30.0


class Listener:
    """A thread with a connection of its own; it connects again whenever the connection is lost.

    Args:
        on_notify: called with each payload; with ``""`` when notifications may have been missed.
    """

    def __init__(
        self, connections: Connections, channel: str, on_notify: Callable[[str], None]
    ) -> None:
        self._connections = connections
        self._channel = channel
        self._on_notify = on_notify
        self._stopping = threading.Event()
        #: Whether every change from now on will be heard.
        self.is_listening = False
        self._wakeup, self._wakeup_sender = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="etl-store-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._wakeup_sender.send(b"x")
        self._thread.join()
        self._wakeup.close()
        self._wakeup_sender.close()

    def _run(self) -> None:
        pauses = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
        while not self._stopping.is_set():
            try:
                with contextlib.closing(self._connections.connect_session()) as connection:
                    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                    self.is_listening = True
                    self._on_notify("")
                    pauses.reset()
                    self._listen(connection)
            except (psycopg.Error, OSError, StoreError) as error:
                if not self._stopping.is_set():
                    _log.warning("listening to the state store was interrupted: %s", error)
            finally:
                self.is_listening = False
            self._on_notify("")
            self._stopping.wait(pauses.next_delay_s())

    def _listen(self, connection: Connection) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            selector.register(self._wakeup, selectors.EVENT_READ)
            while not self._stopping.is_set():
                # What came together with the answer of an earlier query is already read.
                for notify in connection.notifies(timeout=0):
                    self._on_notify(notify.payload)
                if not selector.select(_ASK_EVERY_S):
                    connection.execute("SELECT 1")
