"""A pipeline in this process, as its configuration describes it: checked, started, and ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from etl_dagster.config import PipelineConfig, load_config
from etl_dagster.in_process import RunningPipeline, running_with
from etl_dagster.integrations.meltano.positions.mirror import mirrored_positions
from etl_dagster.runtime.showing.status import PipelineStatus


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
    with running_with(config, mirrored_positions) as pipeline:
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
        The last status of each destination, by its name in `destinations`, or by its type; of
        several shards, that of each, by its name. A
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
