"""A pipeline that a file configures, as a resource."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
from pydantic import Field

from etl_dagster.config import PipelineConfig, load_config
from etl_dagster.integrations.dagster.resources.env import resolved
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.members import one_of


class EtlConfigFileResource(EtlResource):
    """A pipeline configured by a YAML file, which is read at each use.

    So Dagster never sees the secrets in it.
    """

    path: str = Field("etl.yaml", description="The configuration file.")
    destination: str | None = Field(
        default=None, description="With several destinations: the name of the one to use."
    )
    shard: str | None = Field(
        default=None,
        description="With several shards: the name of the one to use. The first has the "
        "pipeline's name.",
    )

    def load_config(self) -> PipelineConfig:
        config = load_config(resolved(self.path, "path"))
        return one_of(config, self.destination or self.shard, str(self.path))

    def of_destination(self, name: str) -> EtlResource:
        return EtlConfigFileResource(path=self.path, destination=name)

    def of_shard(self, name: str) -> EtlResource:
        return EtlConfigFileResource(path=self.path, shard=name)
