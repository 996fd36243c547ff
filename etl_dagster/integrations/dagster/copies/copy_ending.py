"""The end of a copy whose run is over before it: soon, whatever a server does."""

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
        """Whether the destination has something in its hands."""
        ...

    def give_up(self) -> None:
        """Have it wait for no answer of the source any more."""
        ...


class _Helping:
    """Copies chunks of another worker's copy: what it writes ends by itself, or is interrupted."""

    is_writing = True

    def give_up(self) -> None:
        """It asks the source nothing but for rows."""


HELPING: Endable = _Helping()


def end_copy(
    name: str, worker: Endable, outcome: Outcome[Any], timing: DagsterTiming, *, is_orphan: bool
) -> bool:
    """Wait for a copy that was told to stop; False where it was left as by a crash.

    A copy that is not over after a second, and writes nothing, waits for a server that does not
    answer. Its thread is left where it is: what was durable stays, and it loses its lease with the
    store's session.

    Args:
        name: of the table.
        is_orphan: whether Dagster itself may be gone, and waits for its runs to end.
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
        "the copy of %s ends without waiting for a server that does not answer; what was under way "
        "comes again with the next run",
        name,
    )
    return False
