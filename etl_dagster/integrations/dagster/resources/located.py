"""The pipeline that a function of this package was given: a file, or a resource."""

from __future__ import annotations

from pathlib import Path

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster.resources.anyway import load_anyway
from etl_dagster.integrations.dagster.resources.config_file import EtlConfigFileResource
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource


def resource_of(pipeline: str | Path | EtlResource) -> EtlResource:
    """The pipeline as a resource."""
    if isinstance(pipeline, EtlResource):
        return pipeline
    return EtlConfigFileResource(path=str(Path(pipeline).absolute()))


def members_of(resource: EtlResource, config: PipelineConfig) -> dict[str, EtlResource]:
    """The resource of each destination or shard, by name; none where there is only one.

    Args:
        config: as the resource loads it.
    """
    choose = resource.of_shard if config.shards else resource.of_destination
    return {name: choose(name) for name in config.members()}


def locate(
    pipeline: str | Path | EtlResource,
) -> tuple[EtlResource, PipelineConfig]:
    """The pipeline's resource and its configuration, with one destination.

    Raises:
        ConfigError: the configuration holds mistakes, has several destinations, or a store or
            destination that several processes can't share.
    """
    from etl_dagster.assembly import require_processes

    resource = resource_of(pipeline)
    config = load_anyway(resource)
    if config.destinations:
        known = ", ".join(config.destinations)
        raise ConfigError(
            [
                f"destinations: there are several ({known}); give this function one of them, by "
                "EtlConfigFileResource(path=..., destination=NAME)"
            ],
            origin=f"pipeline {config.pipeline}",
        )
    if config.shards:
        known = ", ".join(config.members())
        raise ConfigError(
            [
                f"shards: there are several ({known}); give this function one of them, by "
                "EtlConfigFileResource(path=..., shard=NAME)"
            ],
            origin=f"pipeline {config.pipeline}",
        )
    require_processes(config)
    return resource, config
