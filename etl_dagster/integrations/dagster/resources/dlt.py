"""A destination of dlt as a resource."""

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

    class _DltFields(SectionResource, EtlDestinationResource):
        destination: str
        destination_name: str | None = None
        dataset: str = "{schema}"
        credentials: str | None = None
        options: dict[str, Any] = Field({})
        table_format: str | None = None
        naming: str = "sql_ci_v1"
        work_folder: str | None = None

else:
    _DltFields = destination_resource("dlt")


class DltDestinationResource(_DltFields):
    """Any destination of dlt; needs the extra ``dlt``."""
