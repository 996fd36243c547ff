"""Rows and changes as JSON over HTTP POST."""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

if TYPE_CHECKING:
    from etl_dagster.destinations.http.config import HttpDestinationConfig
    from etl_dagster.destinations.http.destination import HttpDestination
    from etl_dagster.destinations.http.formats import load_json_schema, row_json_schema
    from etl_dagster.destinations.http.signature import verify_signature
else:
    __getattr__ = gathered(
        __name__,
        {
            "HttpDestination": "destination",
            "HttpDestinationConfig": "config",
            "load_json_schema": "formats",
            "row_json_schema": "formats",
            "verify_signature": "signature",
        },
    )

__all__ = [
    "HttpDestination",
    "HttpDestinationConfig",
    "load_json_schema",
    "row_json_schema",
    "verify_signature",
]
