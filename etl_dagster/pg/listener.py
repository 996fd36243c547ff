"""Hears over LISTEN/NOTIFY what other processes changed."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable

import psycopg
from psycopg import sql

from etl_dagster.backoff import Backoff
from etl_dagster.errors import EtlError
from etl_dagster.pg.cancelling import answered_within
from etl_dagster.pg.connection import Connection

_log = logging.getLogger(__name__)
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 10.0
#: A server that is gone is noticed by asking whether it is there: the answer doesn't come in time.
_ASK_EVERY_S, _ANSWER_S = 30.0, 20.0


class Subscription:
    """A session that listens to one channel; every notification sent from now on is heard.

    Args:
        connection: in autocommit, with a session that stays its own. It is the subscription's from
            now on, and closed when it can't listen.
        ask_every_s: after this many seconds without a notification, the server is asked whether
            it is there.
        answer_s: how many seconds it may take to answer.

    Raises:
        psycopg.Error: the server refuses, doesn't answer, or the connection is lost; so do all
            methods.
    """

    def __init__(
        self,
        connection: Connection,
        channel: str,
        *,
        ask_every_s: float = _ASK_EVERY_S,
        answer_s: float = _ANSWER_S,
    ) -> None:
        self._connection = connection
        self._ask_every_s, self._answer_s = ask_every_s, answer_s
        try:
            with answered_within(connection, answer_s):
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        except BaseException:
            connection.close()
            raise

    def wait(self, timeout_s: float, *, wakeup: socket.socket | None = None) -> list[str]:
        """The payloads that came; empty when nothing did in time.

        Args:
            wakeup: ends the wait once it is readable.
        """
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection.fileno(), selectors.EVENT_READ)
            if wakeup is not None:
                selector.register(wakeup, selectors.EVENT_READ)
            while True:
                # What came together with the answer of an earlier query is already read.
                found = [notify.payload for notify in self._connection.notifies(timeout=0)]
                left_s = deadline - time.monotonic()
                if found or left_s <= 0:
                    return found
                ready = selector.select(min(left_s, self._ask_every_s))
                if any(key.fileobj is wakeup for key, _ in ready):
                    return []
                if not ready:
                    with answered_within(self._connection, self._answer_s):
                        self._connection.execute("SELECT 1")

    def close(self) -> None:
        self._connection.close()


class Listener:
    """A thread with a connection of its own; it connects again whenever the connection is lost.

    Args:
        connect: makes a connection for a `Subscription`.
        on_notify: called with each payload; with ``""`` when notifications may have been missed.
        subject: whose changes they are, for the log.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        channel: str,
        on_notify: Callable[[str], None],
        *,
        subject: str,
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._on_notify = on_notify
        self._subject = subject
        self._stopping = threading.Event()
        #: Whether every change from now on will be heard.
        self.is_listening = False
        self._wakeup, self._wakeup_sender = socket.socketpair()
        self._thread = threading.Thread(
            target=self._run, name=f"listener to {subject}", daemon=True
        )
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
                with contextlib.closing(Subscription(self._connect(), self._channel)) as heard:
                    self.is_listening = True
                    self._on_notify("")
                    pauses.reset()
                    while not self._stopping.is_set():
                        for payload in heard.wait(_ASK_EVERY_S, wakeup=self._wakeup):
                            self._on_notify(payload)
            except (psycopg.Error, OSError, EtlError) as error:
                if not self._stopping.is_set():
                    _log.warning("listening to %s was interrupted: %s", self._subject, error)
            finally:
                self.is_listening = False
            self._on_notify("")
            self._stopping.wait(pauses.next_delay_s())
