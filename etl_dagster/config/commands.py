"""Commands that messages advise, as a shell takes them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etl_dagster.config.pipeline import PipelineConfig


def command(config: PipelineConfig | None, name: str, *arguments: str) -> str:
    """Such as ``etl-dagster retry 'public.a b' --shard events``.

    Args:
        config: of the pipeline that the command is for; of one of several destinations or shards,
            the command names it.
    """
    words = ["etl-dagster", name, *map(shlex.quote, arguments)]
    if config is not None and config.sharding is not None:
        words += ["--shard", config.sharding.name]
    elif config is not None and config.membership is not None and name != "run":
        words += ["--destination", config.membership.name]  # `run` runs all of them
    return " ".join(words)
