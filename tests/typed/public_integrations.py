"""Code as a user would write it, with every public name for Dagster and Meltano.

`make lint` checks its types. It is never run. A test holds that no public name is missing here.
"""

from __future__ import annotations

from typing import Any

from dagster import AssetExecutionContext, AssetSpec, Definitions

from etl_dagster.dagster import (
    CheckThresholds,
    DestinationResource,
    DltDestinationResource,
    DuckDBDestinationResource,
    DuckLakeDestinationResource,
    EtlConfigFileResource,
    EtlDagsterTranslator,
    EtlDestinationResource,
    EtlPipelineComponent,
    EtlPipelineResource,
    EtlResource,
    EtlStateStoreResource,
    HttpDestinationResource,
    PostgresDestinationResource,
    PostgresSourceResource,
    PostgresStateStoreResource,
    PublishedTableProps,
    RepairRunConfig,
    SingerDestinationResource,
    StateStoreResource,
    build_copy_job,
    build_etl_assets,
    build_etl_checks,
    build_etl_content_checks,
    build_etl_count_checks,
    build_etl_definitions,
    build_etl_pipeline_checks,
    build_etl_pipeline_spec,
    build_etl_schema_checks,
    build_etl_sensor,
    build_etl_source_specs,
    build_maintenance_job,
    build_reconciliation_schedule,
    build_recopy_schedule,
    build_repair_job,
    build_sync_job,
    destination_resource,
    ducklake_maintenance_job,
    etl_assets,
    load_etl_asset_specs,
    state_store_resource,
)
from etl_dagster.meltano import (
    CatalogUnknown,
    MeltanoDagsterTranslator,
    MeltanoError,
    MeltanoNotFound,
    MeltanoResource,
    MeltanoRun,
    MeltanoRunConfig,
    MeltanoRunFailed,
    MeltanoStateResource,
    MeltanoStreamProps,
    StateNotWritten,
    Stream,
    meltano_assets,
)


class Owned(EtlDagsterTranslator):
    def get_asset_spec(self, props: PublishedTableProps) -> AssetSpec:
        return super().get_asset_spec(props).replace_attributes(owners=["team:shop"])


class Raw(MeltanoDagsterTranslator):
    def get_asset_spec(self, props: MeltanoStreamProps) -> AssetSpec:
        return super().get_asset_spec(props).replace_attributes(group_name="raw")


def whole() -> Definitions:
    return build_etl_definitions("etl.yaml", translator=Owned(), thresholds=CheckThresholds())


def by_parts(pipeline: EtlResource) -> Definitions:
    specs = load_etl_asset_specs(pipeline)
    assets = build_etl_assets(pipeline, specs)
    return Definitions(
        assets=[*assets, build_etl_pipeline_spec(pipeline), *build_etl_source_specs(pipeline)],
        asset_checks=[
            *build_etl_checks(pipeline, assets),
            *build_etl_pipeline_checks(pipeline),
            *build_etl_count_checks(pipeline, assets),
            *build_etl_schema_checks(pipeline, assets),
            *build_etl_content_checks(pipeline, assets),
        ],
        jobs=[
            build_copy_job(pipeline, "public.orders"),
            build_sync_job(pipeline, assets),
            build_repair_job(pipeline),
            build_maintenance_job(pipeline),
            ducklake_maintenance_job(pipeline),
        ],
        schedules=[
            build_reconciliation_schedule(pipeline, assets),
            build_recopy_schedule(pipeline, assets, cron_schedule="0 4 * * 0"),
        ],
        sensors=[build_etl_sensor(pipeline, assets)],
    )


@etl_assets(pipeline="etl.yaml")
def shop(context: AssetExecutionContext, etl: EtlPipelineResource) -> Any:
    context.log.info("the tables of the shop")


def component() -> EtlPipelineComponent:
    return EtlPipelineComponent(pipeline="etl.yaml")


def kinds() -> tuple[type[EtlDestinationResource], type[EtlStateStoreResource]]:
    return destination_resource("mine"), state_store_resource("mine")


#: As annotations name them.
Resources = (
    EtlConfigFileResource
    | PostgresSourceResource
    | PostgresStateStoreResource
    | StateStoreResource
    | DestinationResource
    | DltDestinationResource
    | DuckDBDestinationResource
    | DuckLakeDestinationResource
    | HttpDestinationResource
    | PostgresDestinationResource
    | SingerDestinationResource
)
RunConfigs = RepairRunConfig | MeltanoRunConfig


def meltano_too(project: MeltanoResource) -> Definitions:
    state = MeltanoStateResource.of_project(project)
    streams = [Stream("public-orders")]
    return Definitions(
        assets=[
            meltano_assets(
                project,
                "tap-postgres",
                "target-duckdb",
                streams=streams,
                state=state,
                translator=Raw(),
            )
        ]
    )


def run_once(project: MeltanoResource) -> MeltanoRun | str:
    try:
        return project.run("tap-postgres", "target-duckdb")
    except StateNotWritten as error:
        return error.solution
    except MeltanoRunFailed as error:
        return f"exit code {error.exit_code}"
    except (CatalogUnknown, MeltanoNotFound) as error:
        return error.reason
    except MeltanoError as error:
        return error.solution
