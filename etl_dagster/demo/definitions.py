"""The code location of the demo: a pipeline, and all that may stand around one.

Read it as an example; `build_etl_definitions` alone is enough for the pipeline. What begins by
itself here (the sensor and the schedules are on, the first runs need no click) is off by default.
"""

# Dagster reads the annotations of an asset's function, so they must not be strings.
import os
from pathlib import Path
from typing import Any

import duckdb
from dagster import (
    AssetCheckResult,
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    AutomationCondition,
    AutomationConditionSensorDefinition,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    Definitions,
    EnvVar,
    MaterializeResult,
    MetadataValue,
    asset,
    asset_check,
    in_process_executor,
)

from etl_dagster.demo.flights import TABLES
from etl_dagster.demo.meltano.project import (
    ENVIRONMENT,
    EXTRACTOR,
    LOADER,
    STATE_URI_VARIABLE,
)
from etl_dagster.demo.meltano.tap import catalog
from etl_dagster.integrations.dagster import (
    EtlConfigFileResource,
    build_etl_content_checks,
    build_etl_definitions,
    build_reconciliation_schedule,
    build_recopy_schedule,
    build_repair_job,
)
from etl_dagster.integrations.dagster_meltano import (
    MeltanoDagsterTranslator,
    MeltanoResource,
    MeltanoStateResource,
    MeltanoStreamProps,
    meltano_assets,
)

PIPELINE = "flights"
_CONFIG = Path(os.environ.get("ETL_DAGSTER_CONFIG", ".demo/etl.yaml")).absolute()
_FOLDER = _CONFIG.parent

#: An asset that has never been materialized and could be, once; and not again after a failure.
_AT_FIRST = (
    AutomationCondition.missing()
    & ~AutomationCondition.any_deps_missing()
    & ~AutomationCondition.in_progress()
    & ~AutomationCondition.execution_failed()
)
_NOW_AND_THEN = _AT_FIRST | (
    AutomationCondition.cron_tick_passed("*/15 * * * *") & ~AutomationCondition.in_progress()
)


# -- the pipeline: Postgres' tables, and their copies in DuckDB ------------------------------------


def _table(name: str) -> AssetKey:
    return AssetKey([PIPELINE, "public", name])


_pipeline = EtlConfigFileResource(path=str(_CONFIG))

# -- a table in SQL that follows flights -----------------------------------------------------------

_DELAYS = """
SELECT a.name AS airline, count(*) AS flights,
       count(*) FILTER (WHERE f.status = 'cancelled') AS cancelled,
       round(avg(f.dep_delay), 1) AS minutes_late
FROM public.flights f JOIN public.airlines a USING (carrier)
GROUP BY a.name ORDER BY minutes_late DESC
"""


@asset(
    deps=[_table("flights"), _table("airlines")],
    group_name="marts",
    kinds={"duckdb", "sql"},
    required_resource_keys={PIPELINE},
    automation_condition=AutomationCondition.eager(),
    description="How late each airline is. Computed again whenever the sensor reports new flights.",
)
def delays_by_airline(context: AssetExecutionContext) -> MaterializeResult[Any]:
    delays = getattr(context.resources, PIPELINE).query(_DELAYS)
    with duckdb.connect(str(_FOLDER / "marts.duckdb")) as marts:
        marts.register("delays", delays)
        marts.execute("CREATE OR REPLACE TABLE delays_by_airline AS SELECT * FROM delays")
    rows = delays.to_pylist()
    return MaterializeResult(
        metadata={
            "dagster/row_count": len(rows),
            "flights": sum(row["flights"] for row in rows),
            "cancelled": sum(row["cancelled"] for row in rows),
            "result": MetadataValue.md(_as_markdown(rows)),
        }
    )


@asset_check(asset=delays_by_airline, blocking=True, description="No airline is missing.")
def every_airline_is_there() -> AssetCheckResult:
    with duckdb.connect(str(_FOLDER / "marts.duckdb"), read_only=True) as marts:
        found = marts.execute("SELECT count(*) FROM delays_by_airline").fetchone()
    count = found[0] if found is not None else 0
    return AssetCheckResult(passed=count == TABLES["airlines"], metadata={"airlines": count})


# -- an ordinary `meltano run`, and the state of everything ----------------------------------------

project = MeltanoResource(
    project_dir=str(_FOLDER / "meltano"),
    environment=ENVIRONMENT,
    env={STATE_URI_VARIABLE: EnvVar(STATE_URI_VARIABLE)},
)
state = MeltanoStateResource(uri=EnvVar(STATE_URI_VARIABLE))


class _Fuel(MeltanoDagsterTranslator):
    def get_asset_spec(self, props: MeltanoStreamProps) -> AssetSpec:
        spec = super().get_asset_spec(props)
        return spec.replace_attributes(group_name="meltano", automation_condition=_NOW_AND_THEN)


fuel = meltano_assets(
    project, EXTRACTOR, LOADER, catalog=catalog(), state=state, translator=_Fuel()
)


@asset(
    deps=[*(_table(name) for name in TABLES), *fuel.keys],
    group_name="meltano",
    kinds={"meltano", "postgres"},
    automation_condition=_NOW_AND_THEN,
    description="Where every table of the pipeline and every stream of Meltano is, as "
    "MeltanoStateResource reads it; the same as `meltano state list` and `get`.",
)
def positions(meltano_state: MeltanoStateResource) -> MaterializeResult[Any]:
    states = {id_: meltano_state.get(id_) for id_ in sorted(meltano_state.list(f"{ENVIRONMENT}:*"))}
    rows = [
        {"state ID": state_id, "position": _in_short(stream, position)}
        for state_id, state in states.items()
        for stream, position in _bookmarks(state).items()
    ]
    return MaterializeResult(
        metadata={
            "states": len(states),
            "positions": MetadataValue.md(_as_markdown(rows)),
            "in full": MetadataValue.json(states),
        }
    )


def _bookmarks(state: Any) -> dict[str, Any]:
    found: dict[str, Any] = ((state or {}).get("singer_state") or {}).get("bookmarks") or {}
    return found


def _in_short(stream: str, position: dict[str, Any]) -> str:
    """The position alone: Dagster shows a table of fewer than 1,000 characters without a click."""
    if "replication_key" in position:
        return f"{stream} up to {position.get('replication_key_value')}"
    return f"{position.get('phase')} at {position.get('commit_lsn')}"


def _as_markdown(rows: list[dict[str, Any]]) -> str:
    columns = list(rows[0]) if rows else []
    lines = [columns, ["---"] * len(columns), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


# -- what runs by the clock, and by a click ------------------------------------------------------


def _everything() -> Definitions:
    streamed = build_etl_definitions(_pipeline)
    copies = [each for each in streamed.assets or () if isinstance(each, AssetsDefinition)]
    schedules = [
        # Next to the rows that are there, which readers see until the copy takes their place.
        build_recopy_schedule(
            _pipeline,
            copies,
            name="copy_airports_every_night",
            tables=["public.airports"],
            cron_schedule="0 3 * * *",
            default_status=DefaultScheduleStatus.RUNNING,
        ),
        # Compares every row, and evaluates the other checks, too: some fail if the sensor is off.
        build_reconciliation_schedule(
            _pipeline,
            copies,
            name="compare_with_source_every_hour",
            cron_schedule="15 * * * *",
            default_status=DefaultScheduleStatus.RUNNING,
        ),
    ]
    return Definitions.merge(
        streamed,
        Definitions(
            assets=[delays_by_airline, fuel, positions],
            asset_checks=[every_airline_is_there, *build_etl_content_checks(_pipeline, copies)],
            jobs=[build_repair_job(_pipeline)],
            resources={"meltano_state": state},
            schedules=schedules,
            sensors=[
                AutomationConditionSensorDefinition(
                    "automation",
                    target=AssetSelection.groups("marts", "meltano"),
                    description="Computes the assets that depend on the pipeline's tables, and "
                    "runs Meltano from time to time.",
                    default_status=DefaultSensorStatus.RUNNING,
                )
            ],
            executor=in_process_executor,
        ),
    )


defs = _everything()
