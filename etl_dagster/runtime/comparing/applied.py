"""Waits until the destination has everything that a witness shows."""

from __future__ import annotations

import threading
from typing import Final

from etl_dagster.errors import InvalidState
from etl_dagster.lsn import Lsn
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.runtime.clock import SYSTEM_CLOCK, Clock
from etl_dagster.runtime.durable import Stopped

_POLL_S: Final = 0.1
#: How long the stream may take to get to where a comparison is.
TIMEOUT_S: Final = 300.0


def wait_until_applied(
    store: CoordinatingStore,
    lsn: Lsn,
    *,
    stop: threading.Event,
    clock: Clock = SYSTEM_CLOCK,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Everything that was committed before is durable at the destination, when this returns.

    Raises:
        InvalidState: nothing streams, or it takes too long.
        Stopped: told to stop.
    """
    deadline = clock.now_s() + timeout_s
    while True:
        reached = store.get_replication_progress(ApplyWorker())
        if reached is not None and reached >= lsn:
            return
        if not store.is_leased("apply"):
            raise InvalidState(
                f"the destination has not reached {lsn}, and no process streams to it",
                solution="Start the pipeline: tables are compared while it runs.",
            )
        if clock.now_s() > deadline:
            raise InvalidState(
                f"the destination did not reach {lsn} within {timeout_s:.0f} s",
                solution="Wait until its lag is small, see `etl-dagster status`; then compare.",
            )
        if clock.wait(stop, _POLL_S):
            raise Stopped
