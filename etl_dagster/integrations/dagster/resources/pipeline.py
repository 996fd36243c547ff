"""A pipeline put together from resources."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
from collections.abc import Mapping
from typing import Any

from dagster import ConfigurableResource, ResourceDependency
from pydantic import Field, PrivateAttr, create_model

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster.resources.env import resolved, with_marked
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.members import one_of
from etl_dagster.integrations.dagster.resources.sections import (
    EtlDestinationResource,
    EtlStateStoreResource,
)
from etl_dagster.integrations.dagster.resources.source import PostgresSourceResource

#: For type checkers, to which a dependency is not its resource.
_NOT_GIVEN: Any = None


class _Destinations(ConfigurableResource[Any]):
    """Several destinations, each a field of its own: Dagster looks for resources in fields only."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "_Destinations":
        fields: dict[str, Any] = dict.fromkeys(
            given, (ResourceDependency[EtlDestinationResource], ...)
        )
        return create_model("EtlDestinations", __base__=cls, **fields)(**given)

    def settings(self) -> dict[str, Any]:
        """The section ``destinations`` of a configuration."""
        return {name: getattr(self, name).settings() for name in type(self).model_fields}


class EtlPipelineResource(EtlResource):
    """A pipeline put together from resources.

    It has one `destination`, or `destinations`: a dictionary of several, each under a name.
    """

    pipeline: str = Field(description="Its name: part of slot names and state IDs.")
    environment: str = "dev"
    source: ResourceDependency[PostgresSourceResource]
    state_store: ResourceDependency[EtlStateStoreResource]
    destination: ResourceDependency[EtlDestinationResource | None] = _NOT_GIVEN
    destinations: ResourceDependency[_Destinations | None] = _NOT_GIVEN
    one_destination: str | None = Field(
        default=None, description="With several destinations: the name of the one to use."
    )
    one_shard: str | None = Field(
        default=None,
        description="With several shards: the name of the one to use. The first has the "
        "pipeline's name.",
    )
    settings: dict[str, Any] = Field(
        {},
        description="Further sections, as in etl.yaml: batch, copy, fan_out, retry, tables, "
        "meltano; secrets as EnvVar, at any depth.",
    )
    _given: dict[str, Any] = PrivateAttr()

    def __init__(self, **values: Any) -> None:
        several = values.get("destinations")
        if isinstance(several, Mapping):
            values["destinations"] = _Destinations.of(several)
        super().__init__(**with_marked(values, "settings"))
        self._given = values

    def of_destination(self, name: str) -> EtlResource:
        return EtlPipelineResource(**self._given | {"one_destination": name})

    def of_shard(self, name: str) -> EtlResource:
        return EtlPipelineResource(**self._given | {"one_shard": name})

    def load_config(self) -> PipelineConfig:
        sections: dict[str, Any] = {
            "pipeline": resolved(self.pipeline, "pipeline"),
            "environment": resolved(self.environment, "environment"),
            "source": self.source.settings(),
            "state_store": self.state_store.settings(),
        }
        if self.destination is None and self.destinations is None:
            raise ConfigError(
                ["destination: is required; or `destinations`, each under a name"],
                origin=sections["pipeline"],
            )
        if self.destination is not None:
            sections["destination"] = self.destination.settings()
        if self.destinations is not None:
            sections["destinations"] = self.destinations.settings()
        # EnvVar has done what ${NAME} does in a file; a password may well hold a dollar sign.
        settings: dict[str, Any] = resolved(self.settings, "settings")
        config = parse_config(_escaped(settings | sections), {}, origin=sections["pipeline"])
        return one_of(config, self.one_destination or self.one_shard, sections["pipeline"])


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("$", "$$") if isinstance(value, str) else value
