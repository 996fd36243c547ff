"""Several destinations in Dagster: assets and a sensor for each, one replicator for all."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner
from dagster import AssetKey, AssetsDefinition, ExecuteInProcessResult

from etl_dagster.cli.app import cli
from etl_dagster.config import load_config
from etl_dagster.destinations.duckdb import query
from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster import (
    DuckDBDestinationResource,
    EtlConfigFileResource,
    EtlPipelineResource,
    PostgresSourceResource,
    PostgresStateStoreResource,
    build_etl_definitions,
    build_sync_job,
)
from etl_dagster.integrations.dagster.sensor.supervisor import supervisor_of
from tests.support.dagster_in_process import (
    Dagster,
    dagster,
    key_of,
    searched_instance,
    write_config,
)
from tests.support.database import Database

NAMES = ("left", "right")


def test_each_destination_has_assets_and_a_sensor_and_one_process_runs_them_all(
    newest_database: Database, tmp_path: Path
) -> None:
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text)",
        "INSERT INTO orders SELECT i, 'n' FROM generate_series(1, 500) i",
        "CREATE PUBLICATION etl_pub FOR TABLE orders",
    )
    several = {name: {"type": "duckdb", "path": f"{name}.duckdb"} for name in NAMES}
    resources = EtlPipelineResource(
        pipeline="shop",
        source=PostgresSourceResource(dsn=newest_database.dsn, publication="etl_pub"),
        state_store=PostgresStateStoreResource(),
        destinations={
            name: DuckDBDestinationResource(path=str(tmp_path / f"{name}.duckdb")) for name in NAMES
        },
        settings={"batch": {"max_fill_ms": 50}},
    )
    file = write_config(newest_database.dsn, tmp_path, destination=None, destinations=several)
    members = load_config(file).members()

    def counts() -> list[int]:
        found = []
        for name in members:
            table = query(tmp_path / f"{name}.duckdb", "select count(*) as n from public.orders")
            found.append(table.to_pylist()[0]["n"])
        return found

    with dagster(resources, report_every_s=0.5, clicks_in_process=True) as ui:
        left, right = (Dagster(ui.instance, ui.defs, f"shop__{name}") for name in NAMES)
        copied = {key_of("orders", f"shop__{name}") for name in NAMES}
        # Both come from one table of the source.
        pipelines = {AssetKey(["etl_dagster", f"shop__{name}"]) for name in NAMES}
        (source,) = set(ui.defs.resolve_all_asset_keys()) - copied - pipelines
        graph = ui.defs.resolve_asset_graph()
        assert graph.get(source).child_keys == copied
        for each in (left, right):
            each.copy_all(1)
        assert counts() == [500, 500]
        pid = supervisor_of("shop").pid
        assert pid is not None
        newest_database.execute("INSERT INTO orders SELECT i FROM generate_series(501, 520) i")
        for each in (left, right):
            each.tick_until(
                lambda _, each=each: (
                    sum(  # type: ignore[misc]
                        int(event.metadata["rows_inserted"].value)
                        for event in each.materializations
                        if "rows_inserted" in event.metadata
                    )
                    == 20
                )
            )
        assert counts() == [520, 520]
        assert supervisor_of("shop").pid == pid
        assert {check.passed for each in (left, right) for check in each.checks} == {True}

        # While the sensors are on, the process that they keep alive does it.
        reset = [line for line in _reset(file) if line.startswith("Dropped")]
        assert reset == ["Dropped etl_dagster_apply_shop."]
        for each in (left, right):
            each.copy_all(1)
        assert counts() == [520, 520]
        requested = len(right.requested)
        assert "Done. The sensor requests a run for each table." in _reset(file, "left")
        left.copy_all(1)
        right.tick()
        assert len(right.requested) == requested
        assert counts() == [520, 520]
        assert supervisor_of("shop").pid == pid

        os.kill(pid, signal.SIGKILL)
        newest_database.execute("INSERT INTO orders VALUES (521)")
        # Either sensor starts the process again, for both.
        left.tick_until(lambda _: counts() == [521, 521])
    assert newest_database.slots() == ["etl_dagster_apply_shop"]


def _reset(file: Path, *destination: str) -> list[str]:
    """Have everything copied again, at one destination or at all; what the command prints."""
    chosen = ["--destination", *destination] if destination else []
    done = CliRunner().invoke(cli, ["reset", "--all", "--yes", "--config", str(file), *chosen])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_a_job_brings_all_destinations_up_to_date_and_reports_the_tables_of_each(
    newest_database: Database, tmp_path: Path
) -> None:
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY)",
        "INSERT INTO orders SELECT generate_series(1, 500)",
        "CREATE PUBLICATION etl_pub FOR TABLE orders",
    )
    several = {name: {"type": "duckdb", "path": f"{name}.duckdb"} for name in NAMES}
    file = write_config(newest_database.dsn, tmp_path, destination=None, destinations=several)
    defs = build_etl_definitions(file)
    assets = [asset for asset in defs.assets or () if isinstance(asset, AssetsDefinition)]
    sync = build_sync_job(file, assets)
    with pytest.raises(ConfigError, match="can't be synced alone"):
        build_sync_job(EtlConfigFileResource(path=str(file), destination="left"), assets)

    def told(result: ExecuteInProcessResult) -> dict[str, tuple[object, object]]:
        """By destination, how many rows its table has, and whether it was copied."""
        assert result.success
        events = [
            event.step_materialization_data.materialization
            for event in result.all_events
            if event.is_step_materialization
        ]
        return {
            event.asset_key.path[0]: (
                event.metadata["dagster/row_count"].value,
                event.metadata["copied"].value,
            )
            for event in events
        }

    with searched_instance() as instance:
        copied = told(sync.execute_in_process(instance=instance))
        assert copied == {f"shop__{name}": (500, True) for name in NAMES}
        newest_database.execute("INSERT INTO orders VALUES (501)")
        streamed = told(sync.execute_in_process(instance=instance))
        assert streamed == {f"shop__{name}": (501, False) for name in NAMES}
        assert told(sync.execute_in_process(instance=instance)) == {}
    assert newest_database.slots() == ["etl_dagster_apply_shop"]
