"""Jobs of a pipeline: to repair it, to keep its destination small, to run it in batches."""

# Dagster reads the annotations of an op's function, so they must not be strings.
from pathlib import Path

from dagster import (
    Config,
    Failure,
    JobDefinition,
    OpExecutionContext,
    in_process_executor,
    job,
    op,
)
from pydantic import Field

from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.errors import ConfigError, EtlError
from etl_dagster.integrations.dagster.jobs.lake import ducklake_maintenance_job
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate
from etl_dagster.integrations.dagster.tables.translator import PIPELINE_TAG


class RepairRunConfig(Config):
    """What a run of a repair job does."""

    tables: list[str] = Field([], description="Each as schema.table; empty for all tables.")
    dry_run: bool = Field(False, description="Compare, and change nothing.")
    wait_s: float = Field(
        3600.0,
        ge=0,
        description="How long to wait for the repairs, in seconds; 0 to only request them. Set 0 "
        "if Dagster runs one run at a time: the repairs then wait for this run to end.",
    )


def build_repair_job(
    pipeline: str | Path | EtlResource = "etl.yaml", *, name: str | None = None
) -> JobDefinition:
    """A job that compares tables with the source, and has the rows that differ replaced.

    It does what ``etl-dagster repair`` does, while the pipeline streams: each table is compared at
    one position; the pipeline replaces the rows that differ, or copies the table as a whole where
    it can't, and says why. The run waits for that, and shows for each table what was found and
    done, with the ranges of keys. Its configuration is `RepairRunConfig`.

    The run fails with `TablesLeft` where a table could not be compared, settled or repaired, once
    the others are done, and where a dry run finds that rows differ. Tables that can't be compared
    because of their settings fail it only if they are named; its log names them in any case.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        name: of the job; by default ``PIPELINE_repair``.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    resource, config = locate(pipeline)
    resource_key = config.pipeline
    name = name or f"{config.pipeline}_repair"

    @op(name=f"{name}_op", required_resource_keys={resource_key})
    def repair_tables(context: OpExecutionContext, config: RepairRunConfig) -> None:
        from etl_dagster.integrations.dagster.jobs.repairs import repair

        parts: EtlResource = getattr(context.resources, resource_key)
        try:
            done = repair(
                parts,
                config.tables or None,
                dry_run=config.dry_run,
                wait_s=config.wait_s,
                tell=context.log.info,
            )
        except EtlError as error:
            raise Failure(with_solution(error.reason, error.solution)) from error
        context.add_output_metadata(done.facts)
        failure = done.failure
        if failure is not None:
            raise Failure(
                with_solution(f"{type(failure).__name__}: {failure.reason}", failure.solution),
                metadata=done.facts,
                allow_retries=False,
            ) from failure

    @job(
        name=name,
        executor_def=in_process_executor,
        resource_defs={resource_key: resource},
        tags={PIPELINE_TAG: config.pipeline},
        description=f"Compares tables of {config.pipeline} with the source; replaces the rows that "
        "differ.",
    )
    def repair() -> None:
        repair_tables()

    return repair


def build_maintenance_job(
    pipeline: str | Path | EtlResource = "etl.yaml",
    *,
    name: str | None = None,
    older_than_days: float = 7.0,
) -> JobDefinition:
    """A job that keeps a DuckLake small and fast, as the destination of a pipeline.

    Other destinations need no such job: the pipeline maintains a DuckDB file or a Postgres itself.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        name: of the job; by default ``PIPELINE_maintenance``.
        older_than_days: snapshots that are older are expired; the newest one stays.

    Raises:
        ConfigError: the configuration holds mistakes, or the destination is not a DuckLake.
    """
    resource, config = locate(pipeline)
    if not isinstance(config.destination, DuckLakeDestinationConfig):
        raise ConfigError(
            [f"destination.type: {config.destination.type} needs no maintenance; a DuckLake does"],
            origin=f"pipeline {config.pipeline}",
        )
    return ducklake_maintenance_job(
        resource, name=name or f"{config.pipeline}_maintenance", older_than_days=older_than_days
    )
