"""A pipeline in this process, with one destination or several, and what runs alongside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from etl_dagster.assembly import build_destination, opened_members, opened_shards, opened_store
from etl_dagster.config import PipelineConfig
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.fan_out.fan_out import FanOut
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.showing.exporting import exporting
from etl_dagster.runtime.showing.status import PipelineStatus

#: Given the pipeline to one destination, its store and its status: what runs as long as it does.
Companion: TypeAlias = Callable[
    [PipelineConfig, CoordinatingStore, Callable[[], PipelineStatus]],
    AbstractContextManager[object],
]


class RunningPipeline(Protocol):
    """What can be asked of a pipeline while it runs, with one destination or several."""

    def statuses(self) -> dict[str, PipelineStatus]:
        """The status of each destination, by its name in `destinations`, or by its type; of
        several shards, that of each, by its name."""

    def wait_until_caught_up(self, timeout_s: float | None = None) -> bool:
        """Wait until all tables are copied and everything committed before is durable.

        Returns:
            False if the time was over first, or the pipeline was asked to stop.

        Raises:
            EtlError: the pipeline failed.
        """

    def shutdown(self) -> None:
        """Ask it to stop, and return at once. Safe in a signal handler."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it has stopped; False if the time was over first.

        Raises:
            EtlError: the pipeline failed.
        """


@contextlib.contextmanager
def running_with(config: PipelineConfig, companion: Companion) -> Iterator[RunningPipeline]:
    """Run a pipeline for the duration of the block; leaving it stops the pipeline and waits.

    Args:
        companion: entered for each destination once its pipeline has started, and left after it
            has stopped.

    Raises:
        ConfigError: the configuration can't be used.
        EtlError: the pipeline can't start, or failed while it ran.
    """
    several = _shards if config.shards else _several if config.destinations else _one
    with several(config, companion) as pipeline:
        yield pipeline


@contextlib.contextmanager
def _one(config: PipelineConfig, companion: Companion) -> Iterator[RunningPipeline]:
    with opened_store(config) as store, exporting(config) as observer:
        pipeline = Pipeline(config, store, build_destination(config), observer=observer)
        pipeline.start()
        # A companion outlives the pipeline, for its last positions.
        with (
            contextlib.ExitStack() as companions,
            _ended(_Single(config.destination.type, pipeline)) as running,
        ):
            companions.enter_context(companion(config, store, pipeline.status))
            yield running


@contextlib.contextmanager
def _several(config: PipelineConfig, companion: Companion) -> Iterator[RunningPipeline]:
    with (
        opened_store(config) as store,
        opened_members(config) as parts,
        exporting(config) as observer,
    ):
        fan_out = FanOut(config, store, parts, observer=observer)
        fan_out.start()
        with contextlib.ExitStack() as companions, _ended(fan_out):
            for name, member in fan_out.members.items():
                companions.enter_context(companion(parts[name].config, member.store, member.status))
            yield fan_out


@contextlib.contextmanager
def _shards(config: PipelineConfig, companion: Companion) -> Iterator[RunningPipeline]:
    with exporting(config) as observer, opened_shards(config, observer=observer) as together:
        together.start()
        with contextlib.ExitStack() as companions, _ended(together):
            for name, pipeline in together.pipelines.items():
                store = together.stores[name]
                companions.enter_context(companion(together.configs[name], store, pipeline.status))
            yield together


@contextlib.contextmanager
def _ended(pipeline: RunningPipeline) -> Iterator[RunningPipeline]:
    """Stop the pipeline at the end of the block, and wait for it.

    Raises what the pipeline failed with, unless the block itself fails: then that is raised.
    """
    try:
        yield pipeline
    except BaseException:
        pipeline.shutdown()
        with contextlib.suppress(Exception):
            pipeline.wait()
        raise
    pipeline.shutdown()
    pipeline.wait()


class _Single:
    """A pipeline to one destination, with the questions that can be asked of several."""

    def __init__(self, name: str, pipeline: Pipeline) -> None:
        self._name, self._pipeline = name, pipeline
        self.wait_until_caught_up = pipeline.wait_until_caught_up
        self.shutdown = pipeline.shutdown
        self.wait = pipeline.wait

    def statuses(self) -> dict[str, PipelineStatus]:
        return {self._name: self._pipeline.status()}
