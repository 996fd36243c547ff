"""The sensor and the copies it asks for, on a real source, with real child processes."""

# Dagster reads the annotations of an asset's function, so they must not be strings.
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetSelection,
    DagsterExecutionInterruptedError,
    Definitions,
    EnvVar,
    MaterializeResult,
    RunsFilter,
    materialize,
)

from etl_dagster.cli import cli
from etl_dagster.config import load_config
from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster import (
    DuckDBDestinationResource,
    EtlConfigFileResource,
    EtlPipelineResource,
    EtlResource,
    PostgresSourceResource,
    PostgresStateStoreResource,
    build_etl_sensor,
    etl_assets,
)
from etl_dagster.integrations.dagster.checks.check_names import BOOKMARK_CHECK, LAG_CHECK
from etl_dagster.integrations.dagster.checks.checked_now import check_lag
from etl_dagster.integrations.dagster.checks.lag import published
from etl_dagster.integrations.dagster.sensor.supervisor import Supervisor, supervisor_of
from etl_dagster.integrations.meltano.positions.mirrored import state_location
from etl_dagster.integrations.meltano.states.storage import StateStorage
from etl_dagster.model.states import FinishedCopy, Ready, SyncWait
from etl_dagster.runtime.showing.status import TableStatus
from tests.support.dagster_in_process import (
    LEASE_S,
    Tick,
    dagster,
    key_of,
    rows,
    timed,
    until,
    write_config,
)
from tests.support.database import Database
from tests.support.leaks import make_secret
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def shop(newest_database: Database) -> Database:
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric(12,2) NOT NULL, note text)",
        "CREATE TABLE customers (id int PRIMARY KEY, name text)",
        "INSERT INTO orders SELECT i, i * 1.5, 'n' FROM generate_series(1, 500) i",
        "INSERT INTO customers VALUES (1, 'Ada'), (2, 'Bo')",
        "CREATE PUBLICATION etl_pub FOR TABLE orders, customers",
    )
    return newest_database


@pytest.fixture
def config_file(shop: Database, tmp_path: Path) -> Path:
    return write_config(shop.dsn, tmp_path)


def test_the_sensor_has_tables_copied_and_then_reports_their_changes(
    shop: Database, config_file: Path
) -> None:
    with dagster(config_file, report_every_s=0.5) as ui:
        ui.copy_all(2)
        request = next(r for r in ui.requested if r.tags["etl/table"] == "public.orders")
        assert request.tags["meltano/state_id"] == "dev:shop-to-duckdb:public.orders"
        assert request.tags["etl_dagster/pipeline"] == "shop"
        copied = ui.materialization_of("orders").metadata
        assert copied["table_copy_rows"].value == 500
        assert copied["dagster/row_count"].value == 500
        assert copied["meltano/state_id"].value == "dev:shop-to-duckdb:public.orders"
        assert copied["dagster/column_schema"].value.columns[1].type == "numeric(12,2)"
        for name in ("bytes", "seconds", "rows_per_second"):
            assert copied[f"table_copy_{name}"].value
        assert copied["snapshot_lsn"].value
        assert copied["handover_lsn"].value
        [run] = ui.instance.get_runs(RunsFilter(tags={"etl/table": "public.orders"}))
        assert json.loads(run.tags["meltano/state"]) == copied["meltano/state"].value

        shop.execute(
            "INSERT INTO orders SELECT i, 1 FROM generate_series(501, 520) i",
            "UPDATE orders SET note = 'seen' WHERE id <= 3",
            "DELETE FROM orders WHERE id = 500",
        )
        total = {"rows_inserted": 0, "rows_updated": 0, "rows_deleted": 0}
        counted = 0

        def everything_is_reported(result: Tick) -> bool:
            nonlocal counted
            for event in ui.materializations[counted:]:
                for name in total:
                    total[name] += int(event.metadata[name].value)  # type: ignore[arg-type]
            counted = len(ui.materializations)
            return total == {"rows_inserted": 20, "rows_updated": 3, "rows_deleted": 1}

        def rows_are_counted(result: Tick) -> bool:
            """Rows are counted after a change is reported, so only another report has the count."""
            count = ui.materialization_of("orders").metadata.get("dagster/row_count")
            if count is not None and count.value == 519:
                return True
            shop.execute("UPDATE orders SET note = 'again' WHERE id = 1")
            return False

        ui.tick_until(everything_is_reported)
        ui.tick_until(rows_are_counted)
        streamed = ui.materialization_of("orders").metadata
        assert streamed["lag_bytes"].value is not None
        assert streamed["confirmed_lsn_offset"].value > 0  # type: ignore[operator]
        assert ui.cursor is not None
        assert "; confirmed " in ui.cursor
        assert {check.passed for check in ui.checks} == {True}
        assert rows(config_file, "select count(*) as n from public.orders") == [{"n": 519}]


def test_a_killed_replicator_is_replaced_at_the_next_tick(
    shop: Database, config_file: Path
) -> None:
    with dagster(config_file) as ui:
        ui.copy_all(2)
        first = supervisor_of("shop").pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        shop.execute("INSERT INTO orders VALUES (1000, 1)")

        def arrived(result: Tick) -> bool:
            return bool(rows(config_file, "select 1 from public.orders where id = 1000"))

        ui.tick_until(arrived)
        assert supervisor_of("shop").pid != first


def test_a_wrong_password_is_a_failed_tick_that_says_what_to_do(
    shop: Database, tmp_path: Path
) -> None:
    wrong = make_secret("not-the-password")
    source = {"dsn": shop.dsn, "password": wrong, "publication": "etl_pub"}
    with dagster(write_config(shop.dsn, tmp_path, source=source)) as ui:
        with pytest.raises(EtlError) as failed:
            ui.tick_until(lambda result: False)
        text = str(failed.value)
        assert "password authentication failed" in text
        # The source and the store in it refuse alike; either may be asked first.
        advice = "Check (source.user and source.password|user, password, database and .* in source)"
        assert re.search(f"What to do: {advice}", text)
        assert wrong not in text
        waiting = ui.tick()
        assert waiting.skip_message is not None
        assert "next try in" in waiting.skip_message
        assert waiting.skip_message.count("What to do") == 1
    assert not (tmp_path / "shop.duckdb").exists()


def test_a_preview_starts_nothing(config_file: Path) -> None:
    with dagster(config_file) as ui:
        assert ui.tick(preview=True).skip_message == "the replicator is not running"
        assert supervisor_of("shop").pid is None


def test_without_ticks_the_replicator_ends_with_its_lease(config_file: Path) -> None:
    with dagster(config_file, lease_s=2.0) as ui:
        ui.tick_until(lambda result: result.cursor)
        pid = supervisor_of("shop").pid
        assert pid is not None
        child = supervisor_of("shop")
        wait_until(lambda: child.pid is None)


def test_a_click_copies_a_streamed_table_again_and_a_reset_all_of_them(
    shop: Database, config_file: Path
) -> None:
    with dagster(config_file) as ui:
        ui.copy_all(2)
        shop.execute("TRUNCATE customers")
        job = ui.defs.resolve_job_def("shop_copy")
        again = job.execute_in_process(instance=ui.instance, asset_selection=[key_of("customers")])
        assert again.success
        assert ui.materialization_of("customers").metadata["table_copy_rows"].value == 0
        assert rows(config_file, "select * from public.customers") == []

        # The sensor stays on: its replicator does what the command asks for.
        shop.execute("INSERT INTO orders VALUES (501, 1)")
        arguments = ["reset", "--all", "--yes", "--config", str(config_file)]
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        assert "Dropped etl_dagster_apply_shop." in done.output
        ui.copy_all(2)
        assert ui.materialization_of("orders").metadata["table_copy_rows"].value == 501
        shop.execute("INSERT INTO orders VALUES (502, 1)")
        ui.tick_until(lambda _: rows(config_file, "select 1 from public.orders where id = 502"))

        # Other settings are announced before the replicator is started with them.
        changed = {
            "public.orders": {"mode": "scd2"},
            "public.customers": {"columns": {"name": {"mask": "null"}}},
        }
        write_config(shop.dsn, config_file.parent, tables=changed)
        why = "mode changed from mirror to scd2. With the next start, it is copied again"
        pid = supervisor_of("shop").pid
        preview = ui.tick(preview=True).skip_message
        assert f"public.orders: {why}" in preview
        assert "public.customers: shape changed (name (mask))" in preview
        resource = EtlConfigFileResource(path=str(config_file))
        [check] = check_lag(resource, {"public.orders": key_of("orders")})
        assert (check.passed, why in str(check.description)) == (False, True)
        assert supervisor_of("shop").pid == pid

        # A tick that reports changes has no message of its own; the check says it in any case.
        ui.tick_until(lambda _: supervisor_of("shop").pid != pid)
        announced = [c for c in ui.checks if not c.passed and why in str(c.description)]
        assert [c.asset_key for c in announced] == [key_of("orders")]
        ui.copy_all(2)
        current = "select count(*) as n from public.orders where _etl_is_current"
        assert rows(config_file, current) == [{"n": 502}]
        assert all(c.passed for c in check_lag(resource, {"public.orders": key_of("orders")}))


def test_a_terminated_copy_is_requested_again_and_resumes_where_it_was(
    shop: Database, config_file: Path
) -> None:
    resource = timed(config_file, {"first_pause_s": 3.0})
    with dagster(resource) as ui:
        request = ui.tick_until(lambda result: result.run_requests).run_requests[0]
        table = request.tags["etl/table"]
        # Without a replicator the copy ends before its hand-over, and waits there.
        supervisor_of("shop").stop()

        def terminate() -> None:
            at_its_end = SyncWait | FinishedCopy
            wait_until(lambda: isinstance(resource.table_states().get(table), at_its_end))
            # As Dagster does it when a run is terminated.
            os.kill(os.getpid(), signal.SIGINT)

        terminator = threading.Thread(target=terminate)
        terminator.start()
        with pytest.raises(DagsterExecutionInterruptedError):
            ui.run(request)
        terminator.join()

        def is_asked_for_again(result: Tick) -> bool:
            return any(r.tags["etl/table"] == table for r in result.run_requests or ())

        again = ui.tick_until(is_asked_for_again)
        (request,) = [r for r in again.run_requests if r.tags["etl/table"] == table]
        assert ui.run(request).success
        resumed = ui.materialization_of(table.partition(".")[2]).metadata
        assert resumed["table_copy_resumed_chunks"].value == 1


def test_a_custom_asset_body_copies_a_pipeline_built_from_resources(
    shop: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_DSN", shop.dsn)
    resource = EtlPipelineResource(
        pipeline="shop",
        source=PostgresSourceResource(dsn=EnvVar("SHOP_DSN"), publication="etl_pub"),
        state_store=PostgresStateStoreResource(),
        destination=DuckDBDestinationResource(path=str(tmp_path / "shop.duckdb")),
    )

    @etl_assets(pipeline=resource)
    def shop_tables(
        context: AssetExecutionContext, shop: EtlResource
    ) -> Iterator[MaterializeResult[Any]]:
        for result in shop.copy_selected(context):
            yield result._replace(metadata={**(result.metadata or {}), "seen": True})

    defs = Definitions(
        assets=[shop_tables],
        sensors=[build_etl_sensor(resource, [shop_tables], lease_s=LEASE_S)],
        resources={"shop": resource},
    )
    with dagster(defs) as ui:
        ui.copy_all(2)
        copied = ui.materialization_of("orders").metadata
        assert (copied["seen"].value, copied["table_copy_rows"].value) == (True, 500)
        with resource.process_config_and_initialize_cm() as pipeline:
            states = pipeline.table_states()
            assert set(states) == {"public.orders", "public.customers"}
            assert all(isinstance(state, Ready) for state in states.values())
            found = pipeline.query("select count(*) as n from public.orders").to_pylist()
            assert found == [{"n": 500}]
            assert pipeline.reset_table("public.customers") == "ready"
        (request,) = ui.tick_until(lambda result: result.run_requests).run_requests
        assert request.tags["etl/table"] == "public.customers"
        assert ui.run(request).success


def test_a_second_replicator_stands_by_until_the_first_has_ended(
    shop: Database, config_file: Path
) -> None:
    config = load_config(config_file)
    first, second = Supervisor(), Supervisor()
    try:
        until(lambda: (s := first.keep(config, 30.0).status) and s.phase == "streaming")
        until(lambda: (s := second.keep(config, 30.0).status) and s.error)
        status = second.keep(config, 30.0).status
        assert status is not None
        assert status.error == "another process runs this pipeline; waiting for its end"
        first.stop()
        until(lambda: (s := second.keep(config, 30.0).status) and s.phase == "streaming")
    finally:
        first.stop()
        second.stop()


def _published_tables(resource: EtlConfigFileResource) -> list[TableStatus]:
    status = published(resource).status
    return [] if status is None else list(status.tables.values())


def test_a_cleared_meltano_state_is_copied_again_and_the_sensor_says_so(
    shop: Database, config_file: Path
) -> None:
    state_id = "dev:shop-to-duckdb:public.orders"
    with dagster(timed(config_file, {"notices_s": 0.0})) as ui:
        ui.copy_all(2)
        # A copy that is done must not fail because this check can't look.
        assert {key.name for r in ui.requested for key in r.asset_check_keys or ()} == {LAG_CHECK}
        shown = ui.materialization_of("orders").metadata["meltano/state"].value
        assert isinstance(shown, dict)
        assert shown["singer_state"]["bookmarks"]["public-orders"]["rows_copied"] == 500
        ui.tick_until(lambda _: [c for c in ui.checks if c.check_name == BOOKMARK_CHECK])
        assert all(check.passed for check in ui.checks)

        checks = list(ui.defs.asset_checks or ())
        # Values are counted, and the count published, a moment after the hand-over.
        resource = EtlConfigFileResource(path=str(config_file))
        until(lambda: [t.odd_values for t in _published_tables(resource)] == [{}, {}])
        checked = materialize(
            [*(ui.defs.assets or ()), *checks],
            selection=AssetSelection.checks(*checks),
            resources=dict(ui.defs.resources or {}),
            instance=ui.instance,
        )
        evaluations = checked.get_asset_check_evaluations()
        assert {(e.asset_key, e.passed) for e in evaluations} == {
            (key_of("orders"), True),
            (key_of("customers"), True),
            (AssetKey(["etl_dagster", "shop"]), True),
        }

        location = state_location(load_config(config_file))
        assert location is not None
        with closing(StateStorage(location)) as states:
            states.delete(state_id)
        (request,) = ui.tick_until(lambda result: result.run_requests).run_requests
        assert request.tags["meltano/state_id"] == state_id
        assert ui.run(request).success
        line = ui.tick_until(lambda result: "cleared" in (result.skip_message or "")).skip_message
        assert (
            "Meltano state of public.orders: its state was cleared, so the table is copied" in line
        )
