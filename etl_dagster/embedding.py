"""A pipeline in this process, as its configuration describes it: checked, started, and ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from etl_dagster.assembly import build_destination, opened_members, opened_store
from etl_dagster.config import PipelineConfig, load_config
from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions
from etl_dagster.runtime.fan_out.fan_out import FanOut
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.showing.exporting import exporting
from etl_dagster.runtime.showing.status import PipelineStatus


class RunningPipeline(Protocol):
    """What can be asked of a pipeline while it runs, with one destination or several."""

    def statuses(self) -> dict[str, PipelineStatus]:
        """The status of each destination, by its name in `destinations`, or by its type."""

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
def running(config: PipelineConfig | str | os.PathLike[str]) -> Iterator[RunningPipeline]:
    """Run a pipeline for the duration of the block; leaving it stops the pipeline and waits.

        with running("etl.yaml") as pipeline:
            pipeline.wait_until_caught_up()

    The positions of its tables are mirrored as Meltano state, and its metrics are exported, as
    the configuration says. What another process holds is refused: one process at a time runs a
    pipeline.

    Args:
        config: the configuration, or the path of its file.

    Raises:
        ConfigError: the configuration can't be used.
        EtlError: the pipeline can't start, or failed while it ran. Nothing was changed anywhere
            if a check of the source failed before the start.
    """
    if not isinstance(config, PipelineConfig):
        config = load_config(Path(config))
    with (_several if config.destinations else _one)(config) as pipeline:
        yield pipeline


def run(
    config: PipelineConfig | str | os.PathLike[str], *, until_caught_up: bool = False
) -> dict[str, PipelineStatus]:
    """Copy the published tables and stream their changes, until an interrupt or a failure.

    Args:
        config: the configuration, or the path of its file.
        until_caught_up: end when every table is copied and everything committed before the call is
            durable at the destination.

    Returns:
        The last status of each destination, by its name in `destinations`, or by its type. A
        table that has stopped doesn't end the run: see `TableStatus.error`.

    Raises:
        ConfigError: the configuration can't be used.
        EtlError: the pipeline can't start, or failed while it ran.
    """
    with running(config) as pipeline:
        if until_caught_up:
            pipeline.wait_until_caught_up()
        else:
            pipeline.wait()
    return pipeline.statuses()


@contextlib.contextmanager
def _one(config: PipelineConfig) -> Iterator[RunningPipeline]:
    with opened_store(config) as store, exporting(config) as observer:
        pipeline = Pipeline(config, store, build_destination(config), observer=observer)
        pipeline.start()
        # The mirrors outlive the pipeline, for its last positions.
        with (
            contextlib.ExitStack() as mirrors,
            _ended(_Single(config.destination.type, pipeline)) as running,
        ):
            mirrors.enter_context(mirrored_positions(config, store, pipeline.status))
            yield running


@contextlib.contextmanager
def _several(config: PipelineConfig) -> Iterator[RunningPipeline]:
    with (
        opened_store(config) as store,
        opened_members(config) as parts,
        exporting(config) as observer,
    ):
        fan_out = FanOut(config, store, parts, observer=observer)
        fan_out.start()
        with contextlib.ExitStack() as mirrors, _ended(fan_out):
            for name, member in fan_out.members.items():
                mirrors.enter_context(
                    mirrored_positions(parts[name].config, member.store, member.status)
                )
            yield fan_out


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
