"""One destination or shard of a pipeline that has several."""

from __future__ import annotations

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError


def one_of(config: PipelineConfig, name: str | None, origin: str) -> PipelineConfig:
    """The configuration of one destination or shard; of the whole pipeline where none is named.

    Raises:
        ConfigError: there is none of this name.
    """
    if name is None:
        return config
    members = config.members()
    if name not in members:
        section = "shards" if config.shards else "destinations"
        known = ", ".join(members) or "none"
        raise ConfigError([f"{section}: there is no {name!r}; there are: {known}"], origin=origin)
    return members[name]
