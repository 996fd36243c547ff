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

import etl_dagster
from etl_dagster.config import load_config
from etl_dagster.integrations.dagster import (
    EtlConfigFileResource,
    build_etl_content_checks,
    build_etl_count_checks,
    build_etl_definitions,
    build_etl_schema_checks,
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
    write_config,
)
from tests.support.database import Database

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
            asset_checks=[
                *build_etl_content_checks(path, assets),
                *build_etl_count_checks(path, assets),
                *build_etl_schema_checks(path, assets),
            ],
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


SENSORS = {"in_step_with_source", "values_held", "meltano_bookmark_in_step"}
WHOLE = {"replication_lag", "wal_retained", "slot_health", "state_matches_slot"}
COMPARED = ("content_match", "row_count_match", "schema_drift")


def test_a_schedule_evaluates_every_check_and_a_job_replaces_the_rows_that_differ(
    newest_database: Database, config_file: Path
) -> None:
    defs = with_jobs(config_file)
    with searched_instance() as instance:

        def evaluated() -> dict[tuple[str, str], Any]:
            """By table and check; of the pipeline as a whole under its name."""
            found = run(defs, instance, "shop_reconciliation_job").get_asset_check_evaluations()
            return {(each.asset_key.path[-1], each.check_name): each for each in found}

        def outcomes(found: dict[tuple[str, str], Any], table: str) -> list[str]:
            told = [found[table, name] for name in COMPARED]
            return ["passes" if each.passed else each.severity.value for each in told]

        with etl_dagster.running(config_file) as pipeline:
            assert pipeline.wait_until_caught_up(60)
        file = str(load_config(config_file).destination.path)  # type: ignore[union-attr]
        with duckdb.connect(file) as connection:
            connection.execute("delete from public.orders where id in (7, 8)")
            connection.execute("update public.orders set note = 'other' where id = 9")
        # A sensor that is off shows red; what can't be compared while nothing streams fails.
        found = evaluated()
        red = {name for (_, name), each in found.items() if each.severity.value == "ERROR"}
        assert red == WHOLE | {"in_step_with_source", "meltano_bookmark_in_step"}
        passed = {name for (_, name), each in found.items() if each.passed}
        assert passed == {"schema_drift"}
        with etl_dagster.running(config_file) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            found = evaluated()
            assert outcomes(found, "orders") == ["ERROR", "ERROR", "passes"]
            counts = found["orders", "row_count_match"].metadata
            assert (counts["source_rows"].value, counts["rows_off"].value) == (500, -2)
            metadata: Any = found["orders", "content_match"].metadata
            ranges = [record.data for record in metadata["ranges"].records]
            assert sum(each["missing"] for each in ranges) == 2
            assert sum(each["changed"] for each in ranges) == 1
            assert metadata["ranges_differing"].value == len(ranges)

            dry = {"ops": {"shop_repair_op": {"config": {"dry_run": True}}}}
            found_dry = run(defs, instance, "shop_repair", run_config=dry, raise_on_error=False)
            assert not found_dry.success
            assert len(rows(config_file, "select 1 from public.orders")) == 498
            done = run(defs, instance, "shop_repairs_job")
            [output] = [e for e in done.all_events if e.event_type_value == "STEP_OUTPUT"]
            [repaired] = output.step_output_data.metadata["repairs"].records  # type: ignore[attr-defined]
            assert (repaired.data["repaired by"], repaired.data["rows missing"]) == ("ranges", 2)

            assert pipeline.wait_until_caught_up(60)
            found = evaluated()
            assert set(found) == {
                *((table, name) for table in ("orders", "people") for name in SENSORS),
                *((table, name) for table in ("orders", "people") for name in COMPARED),
                *(("shop", name) for name in WHOLE),
            }
            assert [where for where, each in found.items() if not each.passed] == []
    assert rows(config_file, "select note from public.orders where id = 9") == [{"note": "n"}]
    assert defs.resolve_job_def("shop_recopy_job").asset_layer.selected_asset_keys == {
        key_of("orders"),
        key_of("people"),
    }
