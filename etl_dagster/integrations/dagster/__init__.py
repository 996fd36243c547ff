"""A pipeline in Dagster: assets, a sensor that streams, resources.

    from etl_dagster.integrations.dagster import build_etl_definitions

    defs = build_etl_definitions("etl.yaml")

The whole integration uses only what `dagster` and `dagster.components` export. Each name is
imported when it is first used.
"""

from typing import TYPE_CHECKING

from etl_dagster.lazy import gathered

if TYPE_CHECKING:
    from etl_dagster.integrations.dagster.assets.copy_job import build_copy_job
    from etl_dagster.integrations.dagster.assets.decorator import etl_assets
    from etl_dagster.integrations.dagster.assets.specs import (
        build_etl_source_specs,
        load_etl_asset_specs,
    )
    from etl_dagster.integrations.dagster.build import build_etl_definitions
    from etl_dagster.integrations.dagster.checks.content_check import build_etl_content_checks
    from etl_dagster.integrations.dagster.checks.count_check import build_etl_count_checks
    from etl_dagster.integrations.dagster.checks.drift_check import build_etl_schema_checks
    from etl_dagster.integrations.dagster.checks.whole_pipeline import (
        build_etl_pipeline_checks,
        build_etl_pipeline_spec,
    )
    from etl_dagster.integrations.dagster.component.pipeline import EtlPipelineComponent
    from etl_dagster.integrations.dagster.jobs.batch_mode import build_sync_job
    from etl_dagster.integrations.dagster.jobs.lake import ducklake_maintenance_job
    from etl_dagster.integrations.dagster.jobs.pipeline_jobs import (
        RepairRunConfig,
        build_maintenance_job,
        build_repair_job,
    )
    from etl_dagster.integrations.dagster.jobs.schedules import (
        build_reconciliation_schedule,
        build_recopy_schedule,
    )
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
        EtlConfigFileResource,
        EtlPipelineResource,
        EtlResource,
        HttpDestinationResource,
        PostgresDestinationResource,
        PostgresSourceResource,
        PostgresStateStoreResource,
        SingerDestinationResource,
        StateStoreResource,
    )
    from etl_dagster.integrations.dagster.resources.sections import (
        EtlDestinationResource,
        EtlStateStoreResource,
        destination_resource,
        state_store_resource,
    )
    from etl_dagster.integrations.dagster.tables.translator import (
        EtlDagsterTranslator,
        PublishedTableProps,
    )
    from etl_dagster.integrations.dagster.thresholds import CheckThresholds

__all__ = [
    "CheckThresholds",
    "DestinationResource",
    "DltDestinationResource",
    "DuckDBDestinationResource",
    "DuckLakeDestinationResource",
    "EtlConfigFileResource",
    "EtlDagsterTranslator",
    "EtlDestinationResource",
    "EtlPipelineComponent",
    "EtlPipelineResource",
    "EtlResource",
    "EtlStateStoreResource",
    "HttpDestinationResource",
    "PostgresDestinationResource",
    "PostgresSourceResource",
    "PostgresStateStoreResource",
    "PublishedTableProps",
    "RepairRunConfig",
    "SingerDestinationResource",
    "StateStoreResource",
    "build_copy_job",
    "build_etl_assets",
    "build_etl_checks",
    "build_etl_content_checks",
    "build_etl_count_checks",
    "build_etl_definitions",
    "build_etl_pipeline_checks",
    "build_etl_pipeline_spec",
    "build_etl_schema_checks",
    "build_etl_sensor",
    "build_etl_source_specs",
    "build_maintenance_job",
    "build_reconciliation_schedule",
    "build_recopy_schedule",
    "build_repair_job",
    "build_sync_job",
    "destination_resource",
    "ducklake_maintenance_job",
    "etl_assets",
    "load_etl_asset_specs",
    "state_store_resource",
]

#: By module, the names that it defines.
_DEFINED_IN = {
    "jobs.batch_mode": ("build_sync_job",),
    "build": ("build_etl_definitions",),
    "component.pipeline": ("EtlPipelineComponent",),
    "checks.content_check": ("build_etl_content_checks",),
    "checks.count_check": ("build_etl_count_checks",),
    "assets.copy_job": ("build_copy_job",),
    "assets.decorator": ("etl_assets",),
    "checks.drift_check": ("build_etl_schema_checks",),
    "jobs.pipeline_jobs": (
        "RepairRunConfig",
        "build_maintenance_job",
        "build_repair_job",
    ),
    "jobs.lake": ("ducklake_maintenance_job",),
    "parts": (
        "build_etl_assets",
        "build_etl_checks",
        "build_etl_sensor",
    ),
    "resources": (
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
    ),
    "jobs.schedules": (
        "build_reconciliation_schedule",
        "build_recopy_schedule",
    ),
    "resources.sections": (
        "EtlDestinationResource",
        "EtlStateStoreResource",
        "destination_resource",
        "state_store_resource",
    ),
    "assets.specs": (
        "build_etl_source_specs",
        "load_etl_asset_specs",
    ),
    "thresholds": ("CheckThresholds",),
    "tables.translator": (
        "EtlDagsterTranslator",
        "PublishedTableProps",
    ),
    "checks.whole_pipeline": (
        "build_etl_pipeline_checks",
        "build_etl_pipeline_spec",
    ),
}
_MODULE_OF = {name: module for module, names in _DEFINED_IN.items() for name in names}

if not TYPE_CHECKING:
    __getattr__ = gathered(__name__, _MODULE_OF)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
