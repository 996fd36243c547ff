"""Ends the copy of a run that is terminated: soon, even if a server doesn't answer."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

from etl_dagster.integrations.dagster.outcome import Outcome
from etl_dagster.integrations.dagster.timing import DagsterTiming

_log = logging.getLogger(__name__)

_TURN_S = 0.1


class Endable(Protocol):
    """A `TableSync` that was told to stop."""

    @property
    def is_writing(self) -> bool:
        """Whether the destination is writing something."""
        ...

    def give_up(self) -> None:
        """Stop waiting for answers of the source."""
        ...


class _Helping:
    """Helps with another worker's copy: a write under way ends by itself, or is interrupted."""

    is_writing = True

    def give_up(self) -> None:
        """Nothing to give up: all that it asks the source for is rows."""


HELPING: Endable = _Helping()


def end_copy(
    name: str, worker: Endable, outcome: Outcome[Any], timing: DagsterTiming, *, is_orphan: bool
) -> bool:
    """Wait for a copy that was told to stop; returns False if its thread was left running.

    A copy that has not ended after `timing.cancelled_s`, and writes nothing, waits for a server
    that does not answer. Its thread is left where it is, as by a crash: what is durable stays, and
    the copy loses its lease together with the store's session.

    Args:
        name: of the table.
        is_orphan: whether Dagster itself may be shutting down, and waits for its runs to end.
    """
    if outcome.wait(timing.cancelled_s):
        return True
    most_s = timing.writing_of_orphan_s if is_orphan else timing.writing_s
    deadline = time.monotonic() + most_s
    while worker.is_writing and time.monotonic() < deadline:
        if outcome.wait(_TURN_S):
            return True
    worker.give_up()
    if outcome.wait(timing.given_up_s):
        return True
    _log.warning(
        "the copy of %s ends without waiting for a server that does not answer; the next run "
        "repeats what was under way",
        name,
    )
    return False
