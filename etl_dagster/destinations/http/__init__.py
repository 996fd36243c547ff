"""Rows and changes as JSON over HTTP POST."""

from etl_dagster.destinations.http.config import HttpDestinationConfig as HttpDestinationConfig
from etl_dagster.destinations.http.destination import HttpDestination as HttpDestination
from etl_dagster.destinations.http.payload import load_json_schema as load_json_schema
from etl_dagster.destinations.http.signature import verify_signature as verify_signature
