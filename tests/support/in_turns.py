"""Threads that run one at a time, in the order that a test says.

A thread that was started here runs until it calls `pause` the next time. So whatever two workers
do to each other between two calls happens in every order that a test can write down.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.support.waiting import PATIENCE_S


class _Left(BaseException):
    """The test is over before the thread."""


class Turns:
    """Actors by name. Everything but `pause` belongs to the test's thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._threads: dict[str, threading.Thread] = {}
        self._names: dict[int, str] = {}
        #: Actors whose work is over. Their threads may live a moment longer; a turn given to one of
        #: them would never come back.
        self._ended: set[str] = set()
        #: Whose turn it is; None: the test's.
        self._turn: str | None = None
        self._is_over = False
        self._failures: list[BaseException] = []
        #: What is done at the beginning of each turn.
        self.on_turn: Callable[[], None] = lambda: None

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Let an actor come to its first pause."""

        def run() -> None:
            self._names[threading.get_ident()] = name
            try:
                self.pause()
                work()
            except _Left:
                pass
            except BaseException as failure:
                self._failures.append(failure)
            finally:
                with self._changed:
                    self._names.pop(threading.get_ident())
                    self._ended.add(name)
                    if self._turn == name:
                        self._turn = None
                    self._changed.notify_all()

        thread = self._threads[name] = threading.Thread(target=run, name=name, daemon=True)
        with self._changed:
            self._turn = name
        thread.start()
        self._await_turn(None, f"{name} to pause")

    def has_ended(self, name: str) -> bool:
        with self._changed:
            return name in self._ended

    def resume(self, name: str) -> None:
        """Let an actor run to its next pause, or to its end; raises what it failed with."""
        if self.has_ended(name):
            return
        self.on_turn()
        with self._changed:
            self._turn = name
            self._changed.notify_all()
        self._await_turn(None, f"{name} to pause")
        if self._failures:
            raise self._failures[0]

    def pause(self) -> bool:
        """Called from an actor: the others may continue. Elsewhere nothing, and False."""
        name = self._names.get(threading.get_ident())
        if name is None or self._is_over:
            return False
        with self._changed:
            self._turn = None
            self._changed.notify_all()
        self._await_turn(name, "its turn")
        if self._is_over:
            raise _Left
        return True

    def end(self) -> None:
        """Have every actor end, wherever it is."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        for name, thread in self._threads.items():
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"{name} did not end"

    def _await_turn(self, turn: str | None, what: str) -> None:
        with self._changed:
            is_there = self._changed.wait_for(
                lambda: self._turn == turn or self._is_over, PATIENCE_S
            )
        assert is_there, f"waited {PATIENCE_S} s for {what}"
