"""The control connection is replaced when it broke, however libpq reports it."""

from __future__ import annotations

import socket
import threading
from queue import SimpleQueue
from typing import Any

import psycopg
import pytest

from etl_dagster.errors import SourceError, SourceUnreachable
from etl_dagster.source.control import SourceControl
from tests.support.scripted import config
from tests.support.waiting import PATIENCE_S

LOST = psycopg.OperationalError("consuming input failed: server closed the connection unexpectedly")


class Stub:
    """A connection over which libpq could not send: it still counts as open."""

    def __init__(self) -> None:
        self.closed = self.broken = False
        self._ours, self._theirs = socket.socketpair()

    def fileno(self) -> int:
        return self._ours.fileno()

    def close(self) -> None:
        self.closed = True
        self._ours.close()
        self._theirs.close()

    def wait_for_answer(self) -> None:
        """Until the connection is cut."""
        self._ours.settimeout(PATIENCE_S)
        assert self._ours.recv(1) == b""
        raise LOST


class Control(SourceControl):
    def __init__(self) -> None:
        super().__init__(config().source, application_name="test")
        self.made: list[Stub] = []

    def _connect(self) -> Any:
        self.made.append(Stub())
        return self.made[-1]


def failing_over(first: Stub, error: psycopg.Error) -> Any:
    def question(connection: Any) -> str:
        if connection is first:
            raise error
        return "answer"

    return question


def test_a_question_is_repeated_where_libpq_could_not_send_it() -> None:
    control = Control()
    control.ask("asking", lambda connection: None)
    [first] = control.made

    assert control.ask("asking", failing_over(first, LOST)) == "answer"
    assert first.closed
    assert len(control.made) == 2


def test_a_question_that_the_server_refuses_is_not_repeated() -> None:
    control = Control()
    control.ask("asking", lambda connection: None)
    [first] = control.made

    with pytest.raises(SourceError):
        control.ask("asking", failing_over(first, psycopg.errors.UndefinedTable("no")))
    assert control.made == [first]


def test_a_question_whose_connection_is_closed_meanwhile_is_repeated_each_time() -> None:
    """After an interruption, the apply thread closes what another thread has just opened."""
    control = Control()
    control.ask("asking", lambda connection: None)
    is_asked: SimpleQueue[None] = SimpleQueue()

    def close_twice() -> None:
        for _ in range(2):
            is_asked.get(timeout=PATIENCE_S)
            control.close()

    closing = threading.Thread(target=close_twice, daemon=True)
    closing.start()

    def question(connection: Any) -> str:
        if connection is control.made[0]:
            raise LOST
        if len(control.made) <= 3:
            is_asked.put(None)
            connection.wait_for_answer()
        return "answer"

    assert control.ask("asking", question) == "answer"
    closing.join()
    assert len(control.made) == 4


def test_a_question_that_breaks_each_connection_is_asked_twice() -> None:
    control = Control()
    control.ask("asking", lambda connection: None)

    def question(connection: Any) -> None:
        raise LOST

    with pytest.raises(SourceUnreachable):
        control.ask("asking", question)
    assert len(control.made) == 2
