"""The parts of a pipeline as Dagster resources; each is imported when it is first used."""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

if TYPE_CHECKING:
    from etl_dagster.integrations.dagster.resources.any_destination import DestinationResource
    from etl_dagster.integrations.dagster.resources.config_file import EtlConfigFileResource
    from etl_dagster.integrations.dagster.resources.dlt import DltDestinationResource
    from etl_dagster.integrations.dagster.resources.duckdb import DuckDBDestinationResource
    from etl_dagster.integrations.dagster.resources.ducklake import DuckLakeDestinationResource
    from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
    from etl_dagster.integrations.dagster.resources.http import HttpDestinationResource
    from etl_dagster.integrations.dagster.resources.pipeline import EtlPipelineResource
    from etl_dagster.integrations.dagster.resources.postgres import PostgresDestinationResource
    from etl_dagster.integrations.dagster.resources.singer import SingerDestinationResource
    from etl_dagster.integrations.dagster.resources.source import PostgresSourceResource
    from etl_dagster.integrations.dagster.resources.stores import (
        PostgresStateStoreResource,
        StateStoreResource,
    )
else:
    __getattr__ = gathered(
        __name__,
        {
            "DestinationResource": "any_destination",
            "DltDestinationResource": "dlt",
            "DuckDBDestinationResource": "duckdb",
            "DuckLakeDestinationResource": "ducklake",
            "EtlConfigFileResource": "config_file",
            "EtlPipelineResource": "pipeline",
            "EtlResource": "etl_resource",
            "HttpDestinationResource": "http",
            "PostgresDestinationResource": "postgres",
            "PostgresSourceResource": "source",
            "PostgresStateStoreResource": "stores",
            "SingerDestinationResource": "singer",
            "StateStoreResource": "stores",
        },
    )

__all__ = [
    "DestinationResource",
    "DltDestinationResource",
    "DuckDBDestinationResource",
    "DuckLakeDestinationResource",
    "EtlConfigFileResource",
    "EtlPipelineResource",
    "EtlResource",
    "HttpDestinationResource",
    "PostgresDestinationResource",
    "PostgresSourceResource",
    "PostgresStateStoreResource",
    "SingerDestinationResource",
    "StateStoreResource",
]
