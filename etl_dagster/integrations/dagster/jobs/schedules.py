"""Schedules of a pipeline: to copy tables again, and to check them against the source."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from dagster import (
    AssetChecksDefinition,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    DefaultScheduleStatus,
    ExecutorDefinition,
    ScheduleDefinition,
    define_asset_job,
    in_process_executor,
)

from etl_dagster.errors import InvalidState
from etl_dagster.integrations.dagster.assets.specs import keys_by_table
from etl_dagster.integrations.dagster.checks.pipeline_asset import pipeline_key
from etl_dagster.integrations.dagster.jobs.pipeline_jobs import build_repair_job
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate
from etl_dagster.integrations.dagster.tables.translator import PIPELINE_TAG
from etl_dagster.words import names


def build_recopy_schedule(
    pipeline: str | Path | EtlResource,
    assets: Iterable[AssetsDefinition | AssetSpec],
    *,
    cron_schedule: str,
    tables: Collection[str] | None = None,
    name: str | None = None,
    execution_timezone: str | None = None,
    executor: ExecutorDefinition = in_process_executor,
    default_status: DefaultScheduleStatus = DefaultScheduleStatus.STOPPED,
) -> ScheduleDefinition:
    """A schedule that copies tables again from the beginning, in whatever state they are.

    Readers see the old rows until a copy is whole. The pipeline must run: a copy is handed over
    to its stream.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        assets: those of the pipeline's tables; others are ignored.
        cron_schedule: when, as ``0 3 * * 0``.
        tables: only these, by ``schema.table``; by default all.
        name: of the schedule and its job; by default ``PIPELINE_recopy``.
        execution_timezone: of the times; by default UTC.
        executor: of the runs, each of which copies all of the tables.
        default_status: until it is switched in the UI. Off by default.

    Raises:
        ConfigError: the configuration holds mistakes.
        InvalidState: a table has no asset among them.
    """
    _, config = locate(pipeline)
    keys = keys_by_table(assets, config.pipeline)
    if missing := sorted(set(tables or ()) - keys.keys()):
        raise InvalidState(
            f"pipeline {config.pipeline}: no asset of {', '.join(missing)}",
            solution="Write each as schema.table, and give the schedule their assets.",
        )
    chosen = keys.values() if tables is None else [keys[table] for table in tables]
    name = name or f"{config.pipeline}_recopy"
    copied = "every table" if tables is None else names(sorted(tables))
    return ScheduleDefinition(
        name=name,
        description=f"Copies {copied} of {config.pipeline} again from the beginning; readers see "
        "the old rows until a copy is whole.",
        job=define_asset_job(
            f"{name}_job",
            selection=AssetSelection.assets(*chosen).without_checks(),
            executor_def=executor,
            tags={PIPELINE_TAG: config.pipeline},
            description=f"Copies tables of {config.pipeline} again.",
        ),
        cron_schedule=cron_schedule,
        execution_timezone=execution_timezone,
        default_status=default_status,
    )


def build_reconciliation_schedule(
    pipeline: str | Path | EtlResource,
    assets: Iterable[AssetsDefinition | AssetSpec],
    *,
    cron_schedule: str = "0 3 * * *",
    repair: bool = False,
    checks: Iterable[AssetChecksDefinition] | None = None,
    name: str | None = None,
    execution_timezone: str | None = None,
    default_status: DefaultScheduleStatus = DefaultScheduleStatus.STOPPED,
) -> ScheduleDefinition:
    """A schedule that evaluates the pipeline's checks, or has the rows that differ replaced.

    By default it evaluates every check that the code location has of these assets and of
    `build_etl_pipeline_spec`: ``content_match``, ``row_count_match`` and ``schema_drift`` where
    they are defined, and also those that the sensor evaluates: they fail while it is off. With
    `repair` it runs the job of `build_repair_job` instead, which needs no checks.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        assets: those of the pipeline's tables; others are ignored.
        cron_schedule: when; at 3 o'clock each night by default.
        repair: whether the rows that differ are replaced.
        checks: evaluate these, and no others.
        name: of the schedule; by default ``PIPELINE_reconciliation``.
        execution_timezone: of the times; by default UTC.
        default_status: until it is switched in the UI. Off by default.

    Raises:
        ConfigError: the configuration holds mistakes.
        InvalidState: there is no asset of the pipeline among them, and no check.
    """
    resource, config = locate(pipeline)
    name = name or f"{config.pipeline}_reconciliation"
    keys = keys_by_table(assets, config.pipeline)
    target: Any
    if repair:
        target = build_repair_job(resource, name=f"{name}_job")
        does = f"Compares {config.pipeline} with its source; replaces the rows that differ."
    else:
        chosen = None if checks is None else list(checks)
        if not (keys if chosen is None else chosen):
            raise InvalidState(
                f"pipeline {config.pipeline}: there is nothing to check",
                solution="Give the schedule the assets of the pipeline's tables, or checks.",
            )
        selection: AssetSelection = (
            AssetSelection.checks_for_assets(*keys.values(), pipeline_key(config.pipeline))
            if chosen is None
            else AssetSelection.checks(*chosen)
        )
        target = define_asset_job(
            f"{name}_job",
            selection=selection,
            executor_def=in_process_executor,
            tags={PIPELINE_TAG: config.pipeline},
            description=f"Evaluates the checks of {config.pipeline}.",
        )
        does = f"Evaluates the checks of {config.pipeline}, as a click on Execute does."
    return ScheduleDefinition(
        name=name,
        description=does,
        job=target,
        cron_schedule=cron_schedule,
        execution_timezone=execution_timezone,
        default_status=default_status,
    )
