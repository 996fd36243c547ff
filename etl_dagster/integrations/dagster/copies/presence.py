"""Whether a replicator runs that can take over what a run copies."""

from __future__ import annotations

import time
from collections.abc import Callable

from dagster import DagsterInstance

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.between_ticks import kept_status
from etl_dagster.integrations.dagster.timing import DAGSTER_TIMING, DagsterTiming
from etl_dagster.model.stores import CoordinatingStore, KnowsPipeline


class ReplicatorAbsent(EtlError):
    """No process streams the pipeline, so the copied table would not be taken over."""

    def __init__(
        self, pipeline: str, *, waited_s: float, is_begun: bool, is_sensor_on: bool = False
    ) -> None:
        stays = "; what is copied stays, and the next run resumes from there" if is_begun else ""
        sensor = f"{pipeline}_replication"
        if is_sensor_on:
            sensor_is, solution = (
                f" though the sensor {sensor} is on",
                f"Look at the last tick of the sensor {sensor}, and check that Dagster's daemon "
                "runs. Then materialize the asset again.",
            )
        else:
            sensor_is, solution = (
                "",
                f"Turn on the sensor {sensor}, or run `etl-dagster run`, and materialize the asset "
                "again.",
            )
        super().__init__(
            f"no replicator streams the pipeline {pipeline!r}{sensor_is} "
            f"(waited {waited_s:.0f} s){stays}",
            solution=solution,
        )


def watch_of_run(
    instance: DagsterInstance,
    store: CoordinatingStore,
    pipeline: str,
    timing: Callable[[], DagsterTiming],
) -> ReplicatorWatch:
    """The watch of a run, which knows whether the pipeline's sensor is on."""
    return ReplicatorWatch(
        store, pipeline, is_sensor_on=lambda: is_sensor_on(instance, pipeline), timing=timing
    )


def is_sensor_on(instance: DagsterInstance, pipeline: str) -> bool:
    """Whether the pipeline's sensor is on, in any code location."""
    return any(
        state.instigator_name == f"{pipeline}_replication"
        and state.status.value in ("RUNNING", "DECLARED_IN_CODE")
        for state in instance.all_instigator_state()
    )


class ReplicatorWatch:
    """Asks the state store from time to time whether a process runs the pipeline.

    Args:
        is_sensor_on: whether a sensor may be about to start such a process.
        timing: how long to wait; called each time.
    """

    def __init__(
        self,
        store: CoordinatingStore,
        pipeline: str,
        *,
        is_sensor_on: Callable[[], bool] = lambda: False,
        timing: Callable[[], DagsterTiming] = lambda: DAGSTER_TIMING,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._is_sensor_on = is_sensor_on
        self._timing = timing
        self._clock = clock
        self._sleep = sleep
        self._seen_at = clock()
        self._ask_at = float("-inf")

    def require(self, on_wait: Callable[[float], None]) -> None:
        """Wait for a replicator before anything is copied.

        Args:
            on_wait: called once if there is none yet, with the longest wait in seconds.

        Raises:
            ReplicatorAbsent: none appeared in time.
        """
        started = self._clock()
        while not self._is_there():
            is_on = self._is_sensor_on()
            timing = self._timing()
            patience_s = timing.replicator_of_sensor_s if is_on else timing.replicator_at_start_s
            waited_s = self._clock() - started
            if waited_s >= patience_s:
                raise ReplicatorAbsent(
                    self._pipeline, waited_s=waited_s, is_begun=False, is_sensor_on=is_on
                )
            on_wait(patience_s)
            on_wait = _nothing
            self._sleep(0.5)
        self._seen_at = self._clock()

    def require_logged(self, log: Callable[[str], None]) -> None:
        """As `require`; if it has to wait, it logs one line."""
        self.require(
            lambda wait_s: log(
                f"no replicator streams {self._pipeline}; waiting for {wait_s:.0f} s"
            )
        )

    def check(self) -> None:
        """Require that a replicator runs, or ran a moment ago; called often.

        Raises:
            ReplicatorAbsent: there has been none for too long.
        """
        now, timing = self._clock(), self._timing()
        if now < self._ask_at:
            return
        self._ask_at = now + timing.ask_for_replicator_s
        if self._is_there():
            self._seen_at = now
            return
        waited_s = now - self._seen_at
        if waited_s < timing.replicator_away_s:
            return
        is_on = self._is_sensor_on()
        if not is_on or waited_s >= timing.replicator_of_sensor_s:
            raise ReplicatorAbsent(
                self._pipeline, waited_s=waited_s, is_begun=True, is_sensor_on=is_on
            )

    def _is_there(self) -> bool:
        # A store that the pipeline never used is left as it is.
        if isinstance(self._store, KnowsPipeline) and not self._store.knows_pipeline():
            return False
        # Where the sensor streams in its ticks, the next one takes the table over.
        return self._store.is_leased("apply") or kept_status(self._store) is not None


def _nothing(waits_s: float) -> None:
    """The wait was reported already."""
