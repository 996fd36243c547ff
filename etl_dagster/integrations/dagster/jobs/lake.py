"""Maintenance of a DuckLake as a Dagster job."""

from datetime import timedelta
from pathlib import Path

from dagster import (
    Failure,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    in_process_executor,
    job,
    op,
)

from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.errors import ConfigError, EtlError
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.config_file import EtlConfigFileResource
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource


def ducklake_maintenance_job(
    pipeline: str | Path | EtlResource = "etl.yaml",
    *,
    name: str = "ducklake_maintenance",
    older_than_days: float = 7.0,
) -> JobDefinition:
    """A job that does what ``etl-dagster lake maintain`` does; its op's metadata has the results.

        maintenance = ducklake_maintenance_job("etl.yaml")
        defs = Definitions.merge(
            build_etl_definitions("etl.yaml"),
            Definitions(
                jobs=[maintenance],
                schedules=[ScheduleDefinition(job=maintenance, cron_schedule="0 3 * * *")],
            ),
        )

    It may run while the pipeline does.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        name: of the job.
        older_than_days: snapshots that are older are expired; the newest one stays.
    """
    resource = (
        pipeline
        if isinstance(pipeline, EtlResource)
        else EtlConfigFileResource(path=str(Path(pipeline).absolute()))
    )

    @op(name=f"{name}_op")
    def maintain_lake(context: OpExecutionContext) -> None:
        from etl_dagster.destinations.ducklake.maintenance import maintain

        try:
            destination = resource.load_config().destination
            if not isinstance(destination, DuckLakeDestinationConfig):
                raise ConfigError([f"destination.type: {destination.type} is not a DuckLake"])
            done = maintain(destination, older_than=timedelta(days=older_than_days))
        except EtlError as error:
            raise Failure(with_solution(error.reason, error.solution)) from error
        context.add_output_metadata(
            {
                "rows flushed": sum(done.flushed_rows.values()),
                "snapshots expired": done.expired_snapshots,
                "files deleted": done.deleted_files,
                "snapshots": done.snapshots,
                "files": done.files,
                "bytes": done.bytes,
                "steps": MetadataValue.json(done.as_json()),
            }
        )

    @job(name=name, executor_def=in_process_executor, description="Maintains the DuckLake.")
    def maintenance() -> None:
        maintain_lake()

    return maintenance
