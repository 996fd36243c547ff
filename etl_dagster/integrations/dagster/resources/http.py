"""A server that takes JSON, as a resource."""

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

    class _HttpFields(SectionResource, EtlDestinationResource):
        url: str
        token: str | None = None
        headers: dict[str, Any] = Field({})
        hmac_secret: str | None = None
        format: int = 2
        gzip: bool = False
        timeout_s: float = 30.0
        max_attempts: int = 4
        max_connections: int = 8
        max_body_bytes: int = 4194304
        verify: bool = True
        ca_file: str | None = None

else:
    _HttpFields = destination_resource("http")


class HttpDestinationResource(_HttpFields):
    """A server that takes rows and changes as JSON, or several behind one address."""
