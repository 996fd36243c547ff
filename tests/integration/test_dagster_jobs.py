"""What jobs do for a pipeline: compare and repair it while it streams, or run it in batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from dagster import (
    AssetsDefinition,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
)

from etl_dagster.config import load_config
from etl_dagster.integrations.dagster import (
    EtlConfigFileResource,
    build_etl_content_checks,
    build_etl_definitions,
    build_reconciliation_schedule,
    build_recopy_schedule,
    build_repair_job,
    build_sync_job,
)
from tests.support.dagster_in_process import (
    Dagster,
    key_of,
    rows,
    searched_instance,
    until,
    write_config,
)
from tests.support.database import Database
from tests.support.pipelines import running

pytestmark = pytest.mark.slow


@pytest.fixture
def config_file(newest_database: Database, tmp_path: Path) -> Path:
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text)",
        "CREATE TABLE people (id int PRIMARY KEY)",
        "INSERT INTO orders SELECT i, 'n' FROM generate_series(1, 500) i",
        "INSERT INTO people VALUES (1), (2)",
        "CREATE PUBLICATION etl_pub FOR TABLE orders, people",
    )
    return write_config(newest_database.dsn, tmp_path)


def with_jobs(path: Path) -> Definitions:
    defs = build_etl_definitions(path)
    assets = [asset for asset in defs.assets or () if isinstance(asset, AssetsDefinition)]
    return Definitions.merge(
        defs,
        Definitions(
            asset_checks=build_etl_content_checks(path, assets),
            jobs=[build_repair_job(path), build_sync_job(path, assets)],
            schedules=[
                build_recopy_schedule(path, assets, cron_schedule="0 3 * * 0"),
                build_reconciliation_schedule(path, assets),
                build_reconciliation_schedule(path, assets, repair=True, name="shop_repairs"),
            ],
        ),
    )


def run(
    defs: Definitions, instance: DagsterInstance, job: str, **options: Any
) -> ExecuteInProcessResult:
    return defs.resolve_job_def(job).execute_in_process(instance=instance, **options)


def test_a_job_syncs_in_batches_and_reports_each_table_that_changed(
    newest_database: Database, config_file: Path
) -> None:
    defs = with_jobs(config_file)
    with searched_instance() as instance:
        ui = Dagster(instance, defs)
        assert run(defs, instance, "shop_sync").success
        copied = ui.materialization_of("orders")
        assert copied.metadata["dagster/row_count"].value == 500
        assert (copied.description, copied.metadata["copied"].value) == ("copied", True)
        first_of_people = ui.materialization_of("people")

        newest_database.execute("INSERT INTO orders VALUES (501, 'new')")
        assert run(defs, instance, "shop_sync").success
        streamed = ui.materialization_of("orders").metadata
        assert (streamed["rows_inserted"].value, streamed["dagster/row_count"].value) == (1, 501)
        assert json.dumps(streamed["meltano/state"].value)
        assert rows(config_file, "select count(*) as n from public.orders") == [{"n": 501}]
        # Nothing happened to this one.
        assert ui.materialization_of("people") == first_of_people
        assert newest_database.query("select 1 from pg_replication_slots where active") == []

        resource = EtlConfigFileResource(path=str(config_file))
        with resource.get_store() as store:
            lease = store.acquire_lease("apply")
            assert lease is not None
            refused = run(defs, instance, "shop_sync", raise_on_error=False)
            lease.release()
        (failure,) = refused.get_step_failure_events()
        assert "another process runs the pipeline 'shop'" in str(failure.event_specific_data)


def test_rows_that_differ_fail_a_check_and_are_repaired_by_a_job(
    newest_database: Database, config_file: Path
) -> None:
    defs, config = with_jobs(config_file), load_config(config_file)
    with searched_instance() as instance:
        checks = "shop_reconciliation_job"

        def outcomes() -> dict[str, tuple[bool, str]]:
            found = run(defs, instance, checks).get_asset_check_evaluations()
            assert {each.check_name for each in found} == {"content_match"}
            return {
                each.asset_key.path[-1]: (each.passed, each.metadata["result"].value)  # type: ignore[misc]
                for each in found
            }

        with running(config) as pipeline:
            assert pipeline.wait_until_caught_up(60)
        file = str(config.destination.path)  # type: ignore[union-attr]
        with duckdb.connect(file) as connection:
            connection.execute("delete from public.orders where id in (7, 8)")
            connection.execute("update public.orders set note = 'other' where id = 9")
        # Nothing streams, so nothing can be said; that is not a pass.
        assert outcomes() == dict.fromkeys(["orders", "people"], (False, "not compared"))
        with running(config) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            assert outcomes() == {"orders": (False, "different"), "people": (True, "equal")}
            dry = {"ops": {"shop_repair_op": {"config": {"dry_run": True}}}}
            assert run(defs, instance, "shop_repair", run_config=dry).success
            assert len(rows(config_file, "select 1 from public.orders")) == 498
            assert run(defs, instance, "shop_repairs_job").success
            until(lambda: len(rows(config_file, "select 1 from public.orders")) == 500)
            assert pipeline.wait_until_caught_up(60)
            assert set(outcomes().values()) == {(True, "equal")}
    assert rows(config_file, "select note from public.orders where id = 9") == [{"note": "n"}]
    assert defs.resolve_job_def("shop_recopy_job").asset_layer.selected_asset_keys == {
        key_of("orders"),
        key_of("people"),
    }
