"""Maintenance of a DuckLake as a Dagster job."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import (
    Failure,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    TableColumn,
    TableRecord,
    TableSchema,
    in_process_executor,
    job,
    op,
)

from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.errors import ConfigError, EtlError
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.config_file import EtlConfigFileResource
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.words import names

if TYPE_CHECKING:
    from etl_dagster.destinations.ducklake.maintenance import Maintenance

#: Dagster keeps every event for good; the sums count all tables.
_TABLES_SHOWN = 100
_COLUMN_NAMES = ("table", "rows flushed", "files before", "files after")
_COLUMNS = TableSchema(
    [TableColumn(name, "string" if name == "table" else "int") for name in _COLUMN_NAMES]
)


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
        context.add_output_metadata(_facts(done))

    @job(name=name, executor_def=in_process_executor, description="Maintains the DuckLake.")
    def maintenance() -> None:
        maintain_lake()

    return maintenance


def _facts(done: "Maintenance") -> dict[str, Any]:
    """What was done, for the step's metadata: numbers, and a table of the tables that changed."""
    facts: dict[str, Any] = {
        "rows flushed": sum(done.flushed_rows.values()),
        "snapshots expired": done.expired_snapshots,
        "files deleted": done.deleted_files,
        "snapshots": done.snapshots,
        "files": done.files,
        "bytes": done.bytes,
    }
    rows = []
    for table in sorted(done.flushed_rows.keys() | done.merged_files.keys()):
        before, after = done.merged_files.get(table, (None, None))
        flushed = done.flushed_rows.get(table, 0)
        row = dict(zip(_COLUMN_NAMES, (table, flushed, before, after), strict=True))
        rows.append(TableRecord(row))
    if rows:
        facts["tables"] = MetadataValue.table(rows[:_TABLES_SHOWN], schema=_COLUMNS)
    if done.postponed:
        facts["postponed"] = names(done.postponed)
    return facts
