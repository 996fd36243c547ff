"""The shards of a pipeline in one process: a pipeline each, started and ended together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import InvalidState
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.showing.status import PipelineStatus

_LOOK_S = 0.1


class Together:
    """Runs a pipeline for each shard, as one `Pipeline`.

    They share nothing but the process: each has a lease, an epoch, a slot, a position and a
    destination object of its own. What one fails with ends all, so that what keeps the process
    alive starts it again.

    Args:
        configs: of each shard, by name.
        stores: of each shard; they stay the caller's.
        make: makes a shard's pipeline.
    """

    def __init__(
        self,
        configs: Mapping[str, PipelineConfig],
        stores: Mapping[str, CoordinatingStore],
        make: Callable[[PipelineConfig, CoordinatingStore], Pipeline],
    ) -> None:
        self.configs, self.stores = configs, stores
        self.pipelines = {name: make(config, stores[name]) for name, config in configs.items()}
        self._stop = threading.Event()
        self._started: list[Pipeline] = []

    def start(self) -> None:
        """Check and start one after the other; returns once all run.

        Raises:
            EtlError: one can't be started; those that were are ended.
            InvalidState: it was told to stop before.
        """
        try:
            for pipeline in self.pipelines.values():
                if self._stop.is_set():
                    raise InvalidState("the pipeline was stopped before it started")
                pipeline.start()
                self._started.append(pipeline)
        except BaseException:
            self.shutdown()
            for pipeline in self._started:
                _ended(pipeline)
            raise

    def shutdown(self) -> None:
        """Ask all to stop; `wait` tells when they have. Safe in a signal handler."""
        self._stop.set()
        for pipeline in self.pipelines.values():
            pipeline.shutdown()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of all; whether it came in time. Raises what the first failed with."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            running = [each for each in self._started if not _has_ended(each)]
            if not running:
                for pipeline in self._started:
                    pipeline.wait(0)
                return True
            if len(running) < len(self._started):
                self.shutdown()
            left_s = _LOOK_S if deadline is None else min(deadline - time.monotonic(), _LOOK_S)
            if left_s <= 0:
                return False
            try:
                running[0].wait(left_s)
            except Exception:
                self.shutdown()

    def wait_until_caught_up(self, timeout_s: float | None = None) -> bool:
        """As `Pipeline.wait_until_caught_up`, for all."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for pipeline in self.pipelines.values():
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not pipeline.wait_until_caught_up(left_s):
                return False
        return True

    def statuses(self) -> dict[str, PipelineStatus]:
        """The status of each shard, by its name."""
        return {name: pipeline.status() for name, pipeline in self.pipelines.items()}


def _has_ended(pipeline: Pipeline) -> bool:
    try:
        return pipeline.wait(0)
    except Exception:
        return True


def _ended(pipeline: Pipeline) -> None:
    try:
        pipeline.wait()
    except Exception:
        pass  # what is raised is why the others are ended
