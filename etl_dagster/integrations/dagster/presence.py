"""Whether a replicator lives that can take over what a run copies."""

from __future__ import annotations

import time
from collections.abc import Callable

from etl_dagster.errors import EtlError
from etl_dagster.model.stores import CoordinatingStore, KnowsPipeline

#: A replicator that is just being started, or replaced, is there within this time.
_WAIT_AT_START_S = 15.0
#: A copy that is under way goes on without a replicator for so long: code locations are reloaded
#: and pods replaced meanwhile. Its finished chunks stay, so it can be resumed.
_WAIT_DURING_S = 30.0
#: Asking costs the state store a query.
_ASK_EVERY_S = 2.0


class ReplicatorAbsent(EtlError):
    """No process streams the pipeline, so nobody would take the copied table over."""

    def __init__(self, pipeline: str, *, waited_s: float, is_begun: bool) -> None:
        stays = "; what is copied stays, and the next run goes on from there" if is_begun else ""
        super().__init__(
            f"no replicator streams the pipeline {pipeline!r} (waited {waited_s:.0f} s){stays}",
            solution=f"Turn on the sensor {pipeline}_replication, or run `etl-dagster run`, and "
            "materialize the asset again.",
        )


class ReplicatorWatch:
    """Asks the state store now and then whether a process runs the pipeline."""

    def __init__(
        self,
        store: CoordinatingStore,
        pipeline: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._clock = clock
        self._sleep = sleep
        self._seen_at = clock()
        self._ask_at = float("-inf")

    def require(self, on_wait: Callable[[float], None]) -> None:
        """Wait for a replicator before anything is copied.

        Args:
            on_wait: called once with the seconds, if there is none yet.

        Raises:
            ReplicatorAbsent: none appeared.
        """
        started = self._clock()
        while not self._is_there():
            if self._clock() - started >= _WAIT_AT_START_S:
                raise ReplicatorAbsent(self._pipeline, waited_s=_WAIT_AT_START_S, is_begun=False)
            on_wait(_WAIT_AT_START_S)
            on_wait = _nothing
            self._sleep(0.5)
        self._seen_at = self._clock()

    def check(self) -> None:
        """See that a replicator lives, or did a moment ago; called often.

        Raises:
            ReplicatorAbsent: for too long there was none.
        """
        now = self._clock()
        if now < self._ask_at:
            return
        self._ask_at = now + _ASK_EVERY_S
        if self._is_there():
            self._seen_at = now
        elif now - self._seen_at >= _WAIT_DURING_S:
            raise ReplicatorAbsent(self._pipeline, waited_s=now - self._seen_at, is_begun=True)

    def _is_there(self) -> bool:
        # A store that the pipeline never used is left as it is.
        if isinstance(self._store, KnowsPipeline) and not self._store.knows_pipeline():
            return False
        return self._store.is_leased("apply")


def _nothing(waits_s: float) -> None:
    """It was said once."""
