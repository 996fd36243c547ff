"""Puts a pipeline's definitions together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from dagster import (
    AssetChecksDefinition,
    AssetsDefinition,
    DefaultSensorStatus,
    Definitions,
    ExecutorDefinition,
    in_process_executor,
)

from etl_dagster.integrations.dagster.assets.specs import Looks, build_specs
from etl_dagster.integrations.dagster.checks.whole_pipeline import (
    build_etl_pipeline_checks,
    build_etl_pipeline_spec,
)
from etl_dagster.integrations.dagster.copies.executors import single_copy_in_process
from etl_dagster.integrations.dagster.parts import (
    build_etl_checks,
    build_etl_sensor,
)
from etl_dagster.integrations.dagster.resources.anyway import load_anyway
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import locate, members_of, resource_of
from etl_dagster.integrations.dagster.sensor.settings import (
    BUSY_REPORT_EVERY_S,
    LEASE_S,
    NEW_TABLES,
    REPORT_EVERY_S,
    STALE_AFTER_S,
    TICK_S,
    SensorMode,
)
from etl_dagster.integrations.dagster.tables.discovery import Discovery
from etl_dagster.integrations.dagster.tables.translator import EtlDagsterTranslator
from etl_dagster.integrations.dagster.thresholds import DEFAULT_THRESHOLDS, CheckThresholds


def build_etl_definitions(
    pipeline: str | Path | EtlResource = "etl.yaml",
    *,
    translator: EtlDagsterTranslator | None = None,
    sensor_status: DefaultSensorStatus | None = None,
    sensor_mode: SensorMode = "supervise",
    tick_s: float = TICK_S,
    executor: ExecutorDefinition = in_process_executor,
    lease_s: float = LEASE_S,
    report_every_s: float = REPORT_EVERY_S,
    busy_report_every_s: float = BUSY_REPORT_EVERY_S,
    stale_after_s: float | None = STALE_AFTER_S,
    clicks_in_process: bool = False,
    group_per_schema: bool = False,
    source_assets: bool = True,
    reports: Literal["materialization", "observation"] = "materialization",
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
) -> Definitions:
    """A pipeline as Dagster definitions: an asset for each table, checks, a sensor, a resource.

        defs = build_etl_definitions("etl.yaml")

    With several destinations, each has all of these, under the name ``PIPELINE__DESTINATION``. One
    replicator runs all of them, as long as at least one of their sensors is on.

    Combine them with other definitions by `Definitions.merge`. The resource has the pipeline's
    name, so any asset may require it, to query the destination or to look at table states.

    Args:
        pipeline: a configuration file, or the pipeline put together from resources.
        translator: how tables look as assets.
        sensor_status: whether the sensor is on until a user switches it in the UI; off by default.
        sensor_mode: who streams while the sensor is on. ``supervise``: a child process of the code
            server. ``tick``: the sensor's ticks themselves, where no process may start another;
            between two ticks nothing is streamed. ``observe``: a service of its own,
            `etl-dagster run`, which also copies; the sensor only shows it.
        tick_s: how long a tick streams in the mode ``tick``; well below the 60 seconds after which
            Dagster gives up a tick.
        executor: of the runs that the sensor requests, each for one table.
        lease_s: how long the replicator continues without a tick; raise it if ticks come late.
        report_every_s: a table that changes is reported at most this often.
        busy_report_every_s: what the time between two reports of a table grows to while it changes
            all the time; back to `report_every_s` once the table was quiet. Dagster keeps every
            report for good.
        stale_after_s: the freshness of an asset warns when its last report is this old, and fails
            when it is twice as old. A table that doesn't change is reported again before that, as
            long as it is streamed. With None, assets have no freshness policy, and a table that
            doesn't change isn't reported again.
        clicks_in_process: whether a run that a person starts for one table, as by a click on
            Materialize, stays in one process, which takes half the time. It sets the default
            executor of the code location, so leave it off if definitions that are merged with these
            have an executor of their own.
        group_per_schema: whether each schema of the source has a group of assets of its own,
            ``PIPELINE_SCHEMA``.
        source_assets: whether the tables of the source are external assets, which those of the
            destination depend on.
        reports: the kind of event by which the sensor reports changes. An observation doesn't make
            an asset fresh, so there is no freshness policy then, and `eager()` doesn't follow it.
        thresholds: from which values on checks warn and fail.

    Raises:
        ConfigError: the configuration holds mistakes. It is not raised if the source can't be
            reached or an environment variable is not set: then the tables last seen are the
            assets, and the sensor says what is wrong.
    """
    defs = build_pipeline(
        resource_of(pipeline),
        Looks(translator or EtlDagsterTranslator(), stale_after_s, group_per_schema, source_assets),
        Streaming(
            status=sensor_status,
            mode=sensor_mode,
            tick_s=tick_s,
            executor=executor,
            lease_s=lease_s,
            report_every_s=report_every_s,
            busy_report_every_s=busy_report_every_s,
            reports=reports,
        ),
        thresholds=thresholds,
    )
    return with_clicks_in_process(defs) if clicks_in_process else defs


@dataclass(frozen=True)
class Streaming:
    """How the sensor streams and reports, with the arguments of `build_etl_definitions`."""

    status: DefaultSensorStatus | None = None
    mode: SensorMode = "supervise"
    tick_s: float = TICK_S
    executor: ExecutorDefinition = in_process_executor
    lease_s: float = LEASE_S
    report_every_s: float = REPORT_EVERY_S
    busy_report_every_s: float = BUSY_REPORT_EVERY_S
    reports: Literal["materialization", "observation"] = "materialization"
    #: What gives a table that is new in the publication its asset.
    new_tables: str = NEW_TABLES


#: Further definitions for the assets of one destination.
More: TypeAlias = Callable[[EtlResource, Sequence[AssetsDefinition]], Definitions]


def build_pipeline(
    resource: EtlResource,
    looks: Looks,
    streaming: Streaming,
    *,
    found: Discovery | None = None,
    has_checks: bool = True,
    thresholds: CheckThresholds = DEFAULT_THRESHOLDS,
    more: More | None = None,
) -> Definitions:
    """The definitions of all destinations or shards of a pipeline, for every way to describe it.

    Args:
        found: the published tables, if they are known already.
        has_checks: whether the checks of `build_etl_checks` and `build_etl_pipeline_checks` are
            among them.
        thresholds: of these checks.
        more: further definitions for each destination.

    Raises:
        ConfigError: the configuration holds mistakes.
    """
    if streaming.reports == "observation":
        looks = replace(looks, stale_after_s=None)
    members = [*members_of(resource, load_anyway(resource)).values()] or [resource]
    return Definitions.merge(
        *(
            _build_one(
                each,
                looks,
                streaming,
                found=found,
                has_checks=has_checks,
                thresholds=thresholds,
                more=more,
            )
            for each in members
        )
    )


def _build_one(
    resource: EtlResource,
    looks: Looks,
    streaming: Streaming,
    *,
    found: Discovery | None,
    has_checks: bool,
    thresholds: CheckThresholds,
    more: More | None,
) -> Definitions:
    """The definitions of one destination."""
    resource, config = locate(resource)
    specs = build_specs(resource, config, looks, found=found)
    assets = list(specs.assets.values())
    checks: list[AssetChecksDefinition] = []
    if has_checks:
        checks += build_etl_checks(resource, assets, thresholds=thresholds)
        checks += build_etl_pipeline_checks(resource, thresholds=thresholds)
    whole = [build_etl_pipeline_spec(resource)] if has_checks else []
    defs = Definitions(
        assets=[*assets, *specs.sources, *whole],
        asset_checks=checks,
        # The sensor brings its job along.
        sensors=[
            build_etl_sensor(
                resource,
                assets,
                default_status=streaming.status,
                mode=streaming.mode,
                tick_s=streaming.tick_s,
                executor=streaming.executor,
                lease_s=streaming.lease_s,
                report_every_s=streaming.report_every_s,
                busy_report_every_s=streaming.busy_report_every_s,
                stale_after_s=looks.stale_after_s,
                checks=checks,
                thresholds=thresholds,
                reports=streaming.reports,
                new_tables=streaming.new_tables,
            )
        ],
        resources={config.pipeline: resource},
    )
    return defs if more is None else Definitions.merge(defs, more(resource, assets))


def with_clicks_in_process(defs: Definitions) -> Definitions:
    """The definitions, with an executor that keeps the run of a single copy in one process."""
    assets = [asset for asset in defs.assets or () if isinstance(asset, AssetsDefinition)]
    checks = [
        check for check in defs.asset_checks or () if isinstance(check, AssetChecksDefinition)
    ]
    return Definitions.merge(defs, Definitions(executor=_executor(assets, checks)))


def _executor(
    assets: Iterable[AssetsDefinition], checks: Iterable[AssetChecksDefinition]
) -> ExecutorDefinition:
    return single_copy_in_process(
        {asset.node_def.name for asset in assets}, {check.node_def.name for check in checks}
    )
