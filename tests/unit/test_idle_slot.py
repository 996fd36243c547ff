"""Where a stream may start is known once its slot is not read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from etl_dagster.lsn import Lsn
from etl_dagster.runtime.durable import Stopped
from etl_dagster.runtime.slot import fetch_idle_slot
from etl_dagster.source.slots import Slot

READ = Slot("etl", "pgoutput", "shop", True, 7, "reserved", Lsn(90), Lsn(100), 0)
FREE = replace(READ, active=False, active_pid=None, confirmed_flush_lsn=Lsn(200))


class Source:
    """Answers each look at the slot with the next of these."""

    def __init__(self, looks: Iterator[Slot | None]) -> None:
        self._looks = looks

    def ask(self, doing: str, question: Callable[..., Any], *args: Any) -> Slot | None:
        return next(self._looks)


def test_the_last_confirmation_of_an_ended_connection_is_waited_for() -> None:
    source: Any = Source(iter([READ, READ, FREE]))
    assert fetch_idle_slot(source, "etl", threading.Event()) == FREE


def test_an_unread_slot_is_not_waited_for() -> None:
    for slot in (FREE, None, replace(READ, confirmed_flush_lsn=None)):
        assert fetch_idle_slot(Source(iter([slot])), "etl", threading.Event()) == slot  # type: ignore[arg-type]


def test_a_stop_ends_the_wait() -> None:
    stop = threading.Event()

    def looks() -> Iterator[Slot]:
        yield READ
        stop.set()
        while True:
            yield READ

    source: Any = Source(looks())
    with pytest.raises(Stopped):
        fetch_idle_slot(source, "etl", stop)
