"""A Singer target as a resource."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
from typing import TYPE_CHECKING, Any

from pydantic import Field

from etl_dagster.integrations.dagster.resources.sections import (
    EtlDestinationResource,
    SectionResource,
    destination_resource,
)

if TYPE_CHECKING:
    # What type checkers and editors see of the fields that are made from the model; a test
    # compares both.

    class _SingerFields(SectionResource, EtlDestinationResource):
        target: str
        config: dict[str, Any] = Field({})
        config_file: str | None = None
        project: str | None = None
        environment: str | None = None
        env: dict[str, Any] = Field({})
        stream: str = "{schema}-{table}"
        activate_version: bool | None = None
        unchanged: str = "refuse"
        json_values: str = "text"
        decimals: str = "string"
        flush_after_seconds: float = 0
        stalled_after_seconds: float = 600
        stderr_file: str | None = None

else:
    _SingerFields = destination_resource("singer")


class SingerDestinationResource(_SingerFields):
    """A Singer target, run as a process: a program of its own, or a loader of a Meltano project."""
