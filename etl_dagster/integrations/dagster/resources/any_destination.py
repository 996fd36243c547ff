"""A destination of any type as a resource."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
from typing import Any

from pydantic import Field

from etl_dagster.integrations.dagster.resources.env import resolved, with_marked
from etl_dagster.integrations.dagster.resources.sections import EtlDestinationResource


class DestinationResource(EtlDestinationResource):
    """A destination of any type that is installed; see `etl_dagster.kinds`.

    `destination_resource` makes one with the type's own fields.
    """

    type: str = Field(description="As in etl.yaml.")
    config: dict[str, Any] = Field(
        {}, description="The rest of the section; secrets as EnvVar, at any depth."
    )

    def __init__(self, **values: Any) -> None:
        super().__init__(**with_marked(values, "config"))

    def settings(self) -> dict[str, Any]:
        config: dict[str, Any] = resolved(self.config, "destination")
        return config | {"type": resolved(self.type, "destination.type")}
