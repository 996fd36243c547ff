"""Another Postgres, which takes the rows, as a resource."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
from typing import TYPE_CHECKING

from etl_dagster.integrations.dagster.resources.sections import (
    EtlDestinationResource,
    SectionResource,
    destination_resource,
)

if TYPE_CHECKING:
    # What type checkers and editors see of the fields that are made from the model; a test
    # compares both.

    class _PostgresFields(SectionResource, EtlDestinationResource):
        dsn: str
        user_types: str = "text"
        changelog: bool = False

else:
    _PostgresFields = destination_resource("postgres")


class PostgresDestinationResource(_PostgresFields):
    """A database of another Postgres, or another database of the source's server."""
