"""A pipeline in this process, with one destination or several, and what runs alongside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from etl_dagster.assembly import build_destination, opened_members, opened_shards, opened_store
from etl_dagster.config import PipelineConfig
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.fan_out.fan_out import FanOut
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.showing.exporting import exporting
from etl_dagster.runtime.showing.status import PipelineStatus

#: The configuration, the store and the status of a pipeline to one destination.
Parts: TypeAlias = tuple[PipelineConfig, CoordinatingStore, Callable[[], PipelineStatus]]
#: Given those: what runs as long as the pipeline does.
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


class OpenedPipeline(RunningPipeline, Protocol):
    """One that is still to be started."""

    def start(self) -> None:
        """Check everything, and start.

        Raises:
            EtlError: it can't start.
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
    with opened(config) as (pipeline, find_parts):
        pipeline.start()
        # A companion outlives the pipeline, for its last positions.
        with contextlib.ExitStack() as companions, _ended(pipeline):
            for parts in find_parts():
                companions.enter_context(companion(*parts))
            yield pipeline


#: And a function that tells the parts of each destination or shard, once it is started.
Opened: TypeAlias = tuple[OpenedPipeline, Callable[[], Sequence[Parts]]]


@contextlib.contextmanager
def opened(config: PipelineConfig) -> Iterator[Opened]:
    """A pipeline with all that it works with, for this block; it is not started.

    Raises:
        ConfigError: the configuration can't be used.
    """
    several = _shards if config.shards else _several if config.destinations else _one
    with several(config) as found:
        yield found


@contextlib.contextmanager
def opened_one(config: PipelineConfig) -> Iterator[tuple[Pipeline, CoordinatingStore]]:
    """A pipeline to one destination, and its store, for this block; it is not started.

    Raises:
        ConfigError: the configuration can't be used.
    """
    with opened_store(config) as store, exporting(config) as observer:
        yield Pipeline(config, store, build_destination(config), observer=observer), store


@contextlib.contextmanager
def _one(config: PipelineConfig) -> Iterator[Opened]:
    with opened_one(config) as (pipeline, store):
        single = _Single(config.destination.type, pipeline)
        yield single, lambda: [(config, store, pipeline.status)]


@contextlib.contextmanager
def _several(config: PipelineConfig) -> Iterator[Opened]:
    with (
        opened_store(config) as store,
        opened_members(config) as parts,
        exporting(config) as observer,
    ):
        fan_out = FanOut(config, store, parts, observer=observer)
        yield (
            fan_out,
            lambda: [
                (parts[name].config, member.store, member.status)
                for name, member in fan_out.members.items()
            ],
        )


@contextlib.contextmanager
def _shards(config: PipelineConfig) -> Iterator[Opened]:
    with exporting(config) as observer, opened_shards(config, observer=observer) as together:
        yield (
            together,
            lambda: [
                (together.configs[name], together.stores[name], pipeline.status)
                for name, pipeline in together.pipelines.items()
            ],
        )


@contextlib.contextmanager
def _ended(pipeline: RunningPipeline) -> Iterator[None]:
    """Stop the pipeline at the end of the block, and wait for it.

    Raises what the pipeline failed with, unless the block itself fails: then that is raised.
    """
    try:
        yield
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
        self.start = pipeline.start
        self.wait_until_caught_up = pipeline.wait_until_caught_up
        self.shutdown = pipeline.shutdown
        self.wait = pipeline.wait

    def statuses(self) -> dict[str, PipelineStatus]:
        return {self._name: self._pipeline.status()}
