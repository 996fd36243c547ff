"""Everything in one place: the pipeline, a `meltano run`, and the state of both."""

from pathlib import Path

from dagster import AssetExecutionContext, Definitions, EnvVar, ScheduleDefinition, asset

from etl_dagster.dagster import build_etl_definitions
from etl_dagster.meltano import (
    MeltanoResource,
    MeltanoStateResource,
    meltano_assets,
)

HERE = Path(__file__).parent

project = MeltanoResource(
    project_dir=str(HERE),
    environment="dev",
    env={
        "SHOP_STATE_URI": EnvVar("SHOP_STATE_URI"),
        "SHOP_SQLALCHEMY_URL": EnvVar("SHOP_SQLALCHEMY_URL"),
    },
)
state = MeltanoStateResource.of_project(project)

nightly = meltano_assets(project, "tap-postgres", "target-jsonl", state=state)


@asset
def positions(context: AssetExecutionContext, meltano_state: MeltanoStateResource) -> None:
    """Where every table of the pipeline is."""
    for state_id, halves in meltano_state.export("dev:shop-to-duckdb:*").items():
        half = "completed" if halves["completed"] else "partial"
        context.log.info(f"{state_id} is {half}: {halves[half]['singer_state']}")


defs = Definitions.merge(
    build_etl_definitions(HERE / "etl.yaml"),
    Definitions(
        assets=[nightly, positions],
        resources={"meltano_state": state},
        schedules=[ScheduleDefinition("nightly", target=nightly, cron_schedule="0 3 * * *")],
    ),
)
