"""The blocks of a component's YAML: ``sensor``, ``schedules`` and ``checks``."""

# Dagster reads the annotations, so they must not be strings.
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from dagster import (
    AssetChecksDefinition,
    AssetsDefinition,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    Definitions,
    Model,
    Resolvable,
    Resolver,
    ScheduleDefinition,
)

from etl_dagster.integrations.dagster.build import Streaming
from etl_dagster.integrations.dagster.checks.content_check import build_etl_content_checks
from etl_dagster.integrations.dagster.checks.count_check import build_etl_count_checks
from etl_dagster.integrations.dagster.checks.drift_check import build_etl_schema_checks
from etl_dagster.integrations.dagster.jobs.batch_mode import build_sync_job
from etl_dagster.integrations.dagster.jobs.schedules import (
    build_reconciliation_schedule,
    build_recopy_schedule,
)
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.sensor.settings import (
    BUSY_REPORT_EVERY_S,
    LEASE_S,
    REPORT_EVERY_S,
    STALE_AFTER_S,
    TICK_S,
    SensorMode,
)
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds

_Status: TypeAlias = Literal["RUNNING", "STOPPED"]


def described(text: str) -> Resolver:
    """A resolver of templates that gives its field this description in the schema of the YAML."""
    made: Resolver = Resolver.default(description=text)
    return made


class SensorBlock(Resolvable, Model):
    """The sensor that keeps the stream running."""

    default_status: Annotated[
        _Status | None,
        described("Whether it is on until a user switches it in the UI. STOPPED by default."),
    ] = None
    mode: Annotated[
        SensorMode,
        described(
            "What streams: a child process of the code server (supervise), the ticks (tick), or a "
            "separate service (observe)."
        ),
    ] = "supervise"
    tick_s: Annotated[float, described("How long a tick streams in the mode tick.")] = TICK_S
    lease_s: Annotated[float, described("The replicator stops this long after the last tick.")] = (
        LEASE_S
    )
    report_every_s: Annotated[
        float, described("A table that changes is reported at most this often.")
    ] = REPORT_EVERY_S
    busy_report_every_s: Annotated[
        float,
        described("What the time between two reports grows to while a table changes all the time."),
    ] = BUSY_REPORT_EVERY_S
    stale_after_s: Annotated[
        float | None,
        described(
            "Freshness warns when the last report is this old, and fails when it is twice as old; "
            "null for none."
        ),
    ] = STALE_AFTER_S
    reports: Annotated[
        Literal["materialization", "observation"],
        described("The kind of event by which changes are reported."),
    ] = "materialization"

    def streaming(self) -> Streaming:
        """The settings as `build_pipeline` takes them."""
        status = self.default_status
        return Streaming(
            status=None if status is None else DefaultSensorStatus(status),
            mode=self.mode,
            tick_s=self.tick_s,
            lease_s=self.lease_s,
            report_every_s=self.report_every_s,
            busy_report_every_s=self.busy_report_every_s,
            reports=self.reports,
        )


class ReconciliationBlock(Resolvable, Model):
    """Compares the tables with the source's."""

    cron_schedule: str = "0 3 * * *"
    repair: Annotated[bool, described("Whether rows that differ are replaced.")] = False
    execution_timezone: str | None = None
    default_status: _Status = "STOPPED"


class RecopyBlock(Resolvable, Model):
    """Copies tables again from the beginning."""

    cron_schedule: str
    tables: Annotated[
        list[str] | None, described("Only these, as schema.table; all by default.")
    ] = None
    execution_timezone: str | None = None
    default_status: _Status = "STOPPED"


class SyncBlock(Resolvable, Model):
    """Brings the tables in step and ends, in place of the sensor."""

    cron_schedule: str
    execution_timezone: str | None = None
    default_status: _Status = "STOPPED"


class SchedulesBlock(Resolvable, Model):
    """Schedules; each is off until it is turned on."""

    reconciliation: Annotated[
        ReconciliationBlock | None,
        described("Evaluates every check of the tables and the pipeline, also content_match."),
    ] = None
    recopy: Annotated[RecopyBlock | None, described("Copies tables again from the beginning.")] = (
        None
    )
    sync: Annotated[
        SyncBlock | None,
        described("Brings the tables in step and ends, in place of the sensor."),
    ] = None


class ChecksBlock(Resolvable, Model):
    """Which checks the tables have."""

    replication: Annotated[
        bool,
        described(
            "Those that the sensor evaluates. Each table: in step, values held, bookmark in step; "
            "the pipeline as a whole: lag, retained WAL, its slot."
        ),
    ] = True
    content_match: Annotated[
        bool,
        described(
            "Whether rows are those of the source; each run that evaluates it reads all of them. "
            "With the schedule reconciliation, tables have it in any case, unless it repairs."
        ),
    ] = False
    row_count_match: Annotated[
        bool,
        described(
            "Whether both sides have as many rows; counted by each run that evaluates it, while "
            "the pipeline streams."
        ),
    ] = False
    schema_drift: Annotated[
        bool,
        described(
            "Whether the columns are those of the source; looked up by each run that evaluates it."
        ),
    ] = False
    thresholds: Annotated[
        CheckThresholds,
        described("From which values on checks warn and fail: the arguments of CheckThresholds."),
    ] = DEFAULT_THRESHOLDS


def build_extras(
    resource: EtlResource,
    assets: Sequence[AssetsDefinition],
    schedules: SchedulesBlock,
    checks: ChecksBlock,
) -> Definitions:
    """The schedules of one destination, and the checks that only runs evaluate.

    The schedule of `build_sync` is not among them, since it is for all destinations.
    """
    if not assets:
        # Nothing is known of the tables yet; the sensor says why.
        return Definitions()
    reconciliation = schedules.reconciliation
    is_compared = reconciliation is not None and not reconciliation.repair
    built: list[AssetChecksDefinition] = []
    if checks.content_match or is_compared:
        built += build_etl_content_checks(resource, assets)
    if checks.row_count_match:
        built += build_etl_count_checks(resource, assets, thresholds=checks.thresholds)
    if checks.schema_drift:
        built += build_etl_schema_checks(resource, assets)
    return Definitions(asset_checks=built, schedules=_build_schedules(resource, assets, schedules))


def _build_schedules(
    resource: EtlResource, assets: Sequence[AssetsDefinition], blocks: SchedulesBlock
) -> list[ScheduleDefinition]:
    built: list[ScheduleDefinition] = []
    if (reconciliation := blocks.reconciliation) is not None:
        built.append(
            build_reconciliation_schedule(
                resource,
                assets,
                cron_schedule=reconciliation.cron_schedule,
                repair=reconciliation.repair,
                execution_timezone=reconciliation.execution_timezone,
                default_status=DefaultScheduleStatus(reconciliation.default_status),
            )
        )
    if (recopy := blocks.recopy) is not None:
        built.append(
            build_recopy_schedule(
                resource,
                assets,
                cron_schedule=recopy.cron_schedule,
                tables=recopy.tables,
                execution_timezone=recopy.execution_timezone,
                default_status=DefaultScheduleStatus(recopy.default_status),
            )
        )
    return built


def build_sync(
    resource: EtlResource, assets: Sequence[AssetsDefinition], sync: SyncBlock | None
) -> Definitions:
    """The schedule that brings the pipeline in step; one run serves all destinations."""
    if sync is None or not assets:
        return Definitions()
    schedule = ScheduleDefinition(
        job=build_sync_job(resource, assets),
        cron_schedule=sync.cron_schedule,
        execution_timezone=sync.execution_timezone,
        default_status=DefaultScheduleStatus(sync.default_status),
    )
    return Definitions(schedules=[schedule])
