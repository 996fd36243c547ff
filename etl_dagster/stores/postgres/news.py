"""Who hears of what changes in a pipeline's rows: other processes, caches, threads that wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, TypeAlias

from etl_dagster.model.change_signal import ChangeSignal
from etl_dagster.pg.connection import Connection
from etl_dagster.pg.listener import Listener

#: What a notification says has changed.
Topic: TypeAlias = Literal["states", "schemas", "metadata", "plans"]


class News:
    """Of one pipeline, over LISTEN/NOTIFY, from the first `listen` on.

    Args:
        channel: the pipeline's own.
        connect: makes a connection that keeps its session.
    """

    def __init__(self, channel: str, connect: Callable[[], Connection]) -> None:
        self.channel = channel
        self._connect = connect
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self._forget: list[tuple[Topic, Callable[[], None]]] = []
        self.changes = ChangeSignal()

    def forget_after(self, topic: Topic, forget: Callable[[], None]) -> None:
        """Have a cache forget what it holds when it may have changed."""
        self._forget.append((topic, forget))

    def listen(self) -> None:
        """Hear the changes of other processes from now on."""
        with self._lock:
            if self._listener is None:
                self._listener = Listener(
                    self._connect, self.channel, self.heard, subject="the state store"
                )

    @property
    def is_heard(self) -> bool:
        """Whether every change of another process will be heard of, so that caches may be kept."""
        listener = self._listener
        return listener is not None and listener.is_listening

    def heard(self, topic: str) -> None:
        """Forget what has changed; everything, when notifications may have been missed."""
        for known, forget in self._forget:
            if topic in ("", known):
                forget()
        self.changes.bump()

    def close(self) -> None:
        """Stop listening; `listen` begins again."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
