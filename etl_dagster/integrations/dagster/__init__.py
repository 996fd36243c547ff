"""A pipeline in Dagster: assets, a sensor that streams, resources.

    from etl_dagster.integrations.dagster import build_etl_definitions

    defs = build_etl_definitions("etl.yaml")

The whole integration uses only what `dagster` itself exports.
"""

from etl_dagster.integrations.dagster.build import build_etl_definitions
from etl_dagster.integrations.dagster.decorator import etl_assets
from etl_dagster.integrations.dagster.lake import ducklake_maintenance_job
from etl_dagster.integrations.dagster.parts import (
    build_etl_assets,
    build_etl_checks,
    build_etl_sensor,
)
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
from etl_dagster.integrations.dagster.specs import build_etl_source_specs, load_etl_asset_specs
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
    "build_etl_assets",
    "build_etl_checks",
    "build_etl_definitions",
    "build_etl_sensor",
    "build_etl_source_specs",
    "destination_resource",
    "ducklake_maintenance_job",
    "etl_assets",
    "load_etl_asset_specs",
    "state_store_resource",
]
