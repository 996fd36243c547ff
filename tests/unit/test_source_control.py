"""The control connection is made again when it broke, however libpq tells."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from etl_dagster.errors import SourceError
from etl_dagster.source.control import SourceControl
from tests.support.scripted import config


class Stub:
    """A connection over which libpq could not send: it still counts as open."""

    def __init__(self) -> None:
        self.closed = self.broken = False

    def close(self) -> None:
        self.closed = True


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
    lost = psycopg.OperationalError(
        "consuming input failed: server closed the connection unexpectedly"
    )

    assert control.ask("asking", failing_over(first, lost)) == "answer"
    assert first.closed
    assert len(control.made) == 2


def test_what_the_server_refuses_is_not_asked_again() -> None:
    control = Control()
    control.ask("asking", lambda connection: None)
    [first] = control.made

    with pytest.raises(SourceError):
        control.ask("asking", failing_over(first, psycopg.errors.UndefinedTable("no")))
    assert control.made == [first]
