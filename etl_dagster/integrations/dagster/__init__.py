"""A pipeline in Dagster: assets, a sensor that streams, resources.

    from etl_dagster.integrations.dagster import build_etl_definitions

    defs = build_etl_definitions("etl.yaml")

The whole integration uses only what `dagster` itself exports.
"""

from etl_dagster.integrations.dagster.build import build_etl_definitions
from etl_dagster.integrations.dagster.lake import ducklake_maintenance_job
from etl_dagster.integrations.dagster.resources import (
    DestinationResource,
    DltDestinationResource,
    DuckDBDestinationResource,
    DuckLakeDestinationResource,
    EtlConfigFile,
    EtlPipeline,
    EtlPipelineResource,
    HttpDestinationResource,
    PostgresDestinationResource,
    PostgresSourceResource,
    PostgresStateStoreResource,
    SingerDestinationResource,
    StateStoreResource,
)
from etl_dagster.integrations.dagster.sections import (
    EtlDestinationResource,
    EtlStateStoreResource,
    destination_resource,
    state_store_resource,
)
from etl_dagster.integrations.dagster.translator import EtlDagsterTranslator, PublishedTableProps

__all__ = [
    "DestinationResource",
    "DltDestinationResource",
    "DuckDBDestinationResource",
    "DuckLakeDestinationResource",
    "EtlConfigFile",
    "EtlDagsterTranslator",
    "EtlDestinationResource",
    "EtlPipeline",
    "EtlPipelineResource",
    "EtlStateStoreResource",
    "HttpDestinationResource",
    "PostgresDestinationResource",
    "PostgresSourceResource",
    "PostgresStateStoreResource",
    "PublishedTableProps",
    "SingerDestinationResource",
    "StateStoreResource",
    "build_etl_definitions",
    "destination_resource",
    "ducklake_maintenance_job",
    "state_store_resource",
]
