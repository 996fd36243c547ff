"""A pipeline in Dagster: assets, a sensor that streams, resources.

    from etl_dagster.integrations.dagster import build_etl_definitions

    defs = build_etl_definitions("etl.yaml")

The whole integration uses only what `dagster` itself exports.
"""

from etl_dagster.integrations.dagster.build import build_etl_definitions
from etl_dagster.integrations.dagster.resources import (
    DuckDBDestinationResource,
    EtlConfigFile,
    EtlPipeline,
    EtlPipelineResource,
    PostgresSourceResource,
    PostgresStateStoreResource,
)
from etl_dagster.integrations.dagster.translator import EtlDagsterTranslator, PublishedTableProps

__all__ = [
    "DuckDBDestinationResource",
    "EtlConfigFile",
    "EtlDagsterTranslator",
    "EtlPipeline",
    "EtlPipelineResource",
    "PostgresSourceResource",
    "PostgresStateStoreResource",
    "PublishedTableProps",
    "build_etl_definitions",
]
