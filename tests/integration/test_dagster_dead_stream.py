"""What Dagster shows once a stream is dead, and after copies that people repeat or interrupt."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    AssetSelection,
    DagsterEventType,
    EventRecordsFilter,
    FreshnessPolicy,
    materialize,
)
from dagster._core.loader import LoadingContextForTest

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.checks.check_names import (
    BOOKMARK_CHECK,
    LAG_CHECK,
    ODD_CHECK,
    PIPELINE_CHECKS,
)
from etl_dagster.integrations.dagster.checks.pipeline_asset import pipeline_key
from etl_dagster.integrations.dagster.sensor.supervisor import supervisor_of
from etl_dagster.model.states import SyncWait
from tests.support.dagster_in_process import (
    DEADLINE_S,
    Dagster,
    dagster,
    key_of,
    rows,
    timed,
    until,
)
from tests.support.database import Database

pytestmark = pytest.mark.slow

ALL_CHECKS = {LAG_CHECK, BOOKMARK_CHECK, ODD_CHECK}


def stored_checks(ui: Dagster, key: AssetKey | None = None) -> dict[str, Any]:
    """The last evaluation of each check of orders, or another asset, as the UI would find it."""
    found: dict[str, Any] = {}
    for record in ui.instance.event_log_storage.get_event_records(
        EventRecordsFilter(DagsterEventType.ASSET_CHECK_EVALUATION), ascending=True
    ):
        assert record.event_log_entry.dagster_event is not None
        evaluation: Any = record.event_log_entry.dagster_event.event_specific_data
        if evaluation.asset_key == (key or key_of("orders")):
            found[evaluation.check_name] = evaluation
    return found


def blank_checks(ui: Dagster) -> set[str]:
    """Checks of orders that Dagster's pages show as not evaluated.

    They show what belongs to the latest materialization: to its run, or after it.
    """
    keys = [AssetCheckKey(key_of("orders"), name) for name in ALL_CHECKS]
    latest = ui.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)

    async def is_shown(key: AssetCheckKey) -> bool:
        found = latest.get(key)
        return found is not None and await found.targets_latest_materialization(
            LoadingContextForTest(ui.instance)
        )

    return {key.name for key in keys if not asyncio.run(is_shown(key))}


def require_red(ui: Dagster) -> None:
    """The checks of the pipeline as a whole have failed, every one of them."""
    whole = stored_checks(ui, pipeline_key("shop"))
    outcomes = {name: (each.passed, each.severity) for name, each in whole.items()}
    assert outcomes == dict.fromkeys(PIPELINE_CHECKS, (False, AssetCheckSeverity.ERROR))


def run_checks(ui: Dagster, *names: str) -> list[Any]:
    """Execute checks alone, as the button of the UI does; the table is not copied."""
    result = materialize(
        [*(ui.defs.assets or ()), *(ui.defs.asset_checks or ())],  # type: ignore[list-item]
        selection=AssetSelection.checks(*(AssetCheckKey(key_of("orders"), n) for n in names)),
        resources=dict(ui.defs.resources or {}),
        instance=ui.instance,
    )
    assert result.success
    assert not result.get_asset_materialization_events()
    return list(result.get_asset_check_evaluations())


def test_once_the_slot_is_gone_both_checks_fail_and_say_what_to_do(
    small_shop: Database, shop_file: Path
) -> None:
    with dagster(shop_file) as ui:
        ui.copy_all(1)
        until(lambda: ui.tick() and {c.check_name for c in ui.checks} >= ALL_CHECKS)
        for evaluation in stored_checks(ui).values():
            assert evaluation.passed
        small_shop.drop_slots()
        small_shop.execute("INSERT INTO orders SELECT i FROM generate_series(11, 1009) i")
        with pytest.raises(EtlError) as failed:
            ui.tick_until(lambda result: False)
        shown = stored_checks(ui)
        require_red(ui)
        # What columns hold is not known any more, which is not a failure of its own.
        values = shown.pop(ODD_CHECK)
        assert (values.passed, values.severity) == (False, AssetCheckSeverity.WARN)
        assert getattr(failed.value, "reason", "?") in values.description
        assert set(shown) == {LAG_CHECK, BOOKMARK_CHECK}
        for evaluation in shown.values():
            assert not evaluation.passed
            assert evaluation.severity is AssetCheckSeverity.ERROR
            assert "What to do: " in evaluation.description
            assert getattr(failed.value, "reason", "?") in evaluation.description
        # The next tick waits for its next try, or fails as the one before did.
        with contextlib.suppress(EtlError):
            ui.tick()
        shown = stored_checks(ui)
        require_red(ui)
        assert not shown[LAG_CHECK].passed
        assert not shown[BOOKMARK_CHECK].passed
        evaluation = run_checks(ui, LAG_CHECK)[0]
        assert not evaluation.passed
        assert evaluation.severity is AssetCheckSeverity.ERROR


def failure_of(result: Any) -> str:
    """The message with which the only failed step of a run failed."""
    [failure] = [
        event.step_failure_data.user_failure_data
        for event in result.all_events
        if event.event_type is DagsterEventType.STEP_FAILURE
    ]
    assert failure is not None
    return str(failure.description)


def test_the_check_can_be_run_alone_and_fails_while_the_sensor_is_off(
    small_shop: Database, shop_file: Path
) -> None:
    with dagster(shop_file) as ui:
        before = run_checks(ui, LAG_CHECK)[0]
        assert not before.passed
        assert "the pipeline has never run" in before.description
        ui.copy_all(1)
        evaluation = run_checks(ui, LAG_CHECK)[0]
        assert evaluation.passed
        assert "as of 20" in evaluation.description
        supervisor_of("shop").stop()
        small_shop.execute("INSERT INTO orders SELECT i FROM generate_series(11, 1009) i")
        assert run_checks(ui, ODD_CHECK)[0].passed is False
        evaluation = run_checks(ui, LAG_CHECK)[0]
        assert not evaluation.passed
        assert evaluation.severity is AssetCheckSeverity.ERROR
        assert "Nothing streams: no replicator runs" in evaluation.description
        assert "Turn on the sensor shop_replication" in evaluation.description


def test_a_copy_is_one_materialization_and_a_second_copy_leaves_every_check_evaluated(
    small_shop: Database, shop_file: Path
) -> None:
    with dagster(shop_file, report_every_s=0.1) as ui:
        ui.copy_all(1)
        first_request = ui.requested[0]

        until(lambda: ui.tick() and {c.check_name for c in ui.checks} >= ALL_CHECKS)
        for _ in range(5):
            ui.tick()
        assert ui.materializations == []
        # Copied again by a click, by a run that is executed again, and by a canceled one.
        small_shop.execute("TRUNCATE orders")
        ui.tick_until(lambda r: not rows(shop_file, "select 1 from public.orders"))
        materialized = ui.tick_until(lambda r: ui.materializations)
        assert materialized
        reports = len(ui.materializations)
        small_shop.execute("INSERT INTO orders VALUES (1)")
        assert ui.run(first_request).success
        again = ui.materialization_of("orders").metadata
        assert "copied_by" not in again
        assert again["table_copy_rows"].value == 1
        until(lambda: ui.tick() and not blank_checks(ui))
        small_shop.execute("INSERT INTO orders VALUES (2)")
        ui.tick_until(lambda r: len(ui.materializations) > reports)
        until(lambda: ui.tick() and not blank_checks(ui))


def test_without_a_replicator_a_copy_is_refused_before_it_begins(
    small_shop: Database, shop_file: Path
) -> None:
    with dagster(timed(shop_file, {"replicator_at_start_s": 1.0})) as ui:
        job = ui.defs.resolve_job_def("shop_copy")
        result = job.execute_in_process(
            instance=ui.instance, asset_selection=[key_of("orders")], raise_on_error=False
        )
        assert not result.success
        why = failure_of(result)
        assert "no replicator streams the pipeline 'shop'" in why
        assert "Turn on the sensor shop_replication" in why
        assert small_shop.slots() == []
        assert not (shop_file.parent / "shop.duckdb").exists()


def test_a_copy_ends_when_its_replicator_is_gone_and_is_resumed(
    small_shop: Database, shop_file: Path
) -> None:
    # However long the next replicator takes to start, the pause is not over by then.
    waits = {"replicator_away_s": DEADLINE_S, "first_pause_s": DEADLINE_S}
    resource = timed(shop_file, waits)

    def lose_patience() -> None:
        until(lambda: isinstance(resource.table_states().get("public.orders"), SyncWait))
        waits["replicator_away_s"] = 1.0

    with dagster(resource) as ui:
        request = ui.tick_until(lambda result: result.run_requests).run_requests[0]
        supervisor_of("shop").stop()
        impatient = threading.Thread(target=lose_patience)
        impatient.start()
        assert not ui.run(request, raise_on_error=False).success
        impatient.join()
        waits["replicator_away_s"] = DEADLINE_S
        held = ui.tick_until(lambda result: "The copy failed at" in (result.skip_message or ""))
        assert "public.orders: The copy failed at" in held.skip_message
        waits["first_pause_s"] = 0.0
        again = ui.tick_until(lambda result: result.run_requests).run_requests[0]
        assert ui.run(again).success
        assert ui.materialization_of("orders").metadata["table_copy_resumed_chunks"].value == 1


def test_each_tick_reports_its_time_and_logs_what_is_new(
    small_shop: Database, shop_file: Path
) -> None:
    with dagster(shop_file) as ui:
        ui.copy_all(1)
        tick = ui.tick_until(lambda result: "1 of 1 tables in step" in (result.skip_message or ""))
        today = time.strftime("%Y-%m-%d", time.gmtime())
        assert f"streaming as of {today}" in tick.skip_message
        assert ui.cursor is not None
        assert ui.cursor.startswith("streaming 1/1")
        assert re.search(r"; lag \d+\.\d s$", ui.cursor)


def test_assets_have_a_freshness_policy(shop_file: Path) -> None:
    with dagster(shop_file, stale_after_s=3600) as ui:
        [asset, _source, _pipeline] = ui.defs.assets or ()
        [spec] = asset.specs  # type: ignore[union-attr]
        policy = spec.freshness_policy
    assert isinstance(policy, FreshnessPolicy)
    assert policy == FreshnessPolicy.time_window(
        fail_window=timedelta(hours=2), warn_window=timedelta(hours=1)
    )


def test_a_run_with_a_different_destination_than_the_replicators_is_refused(
    small_shop: Database, shop_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where runs have machines of their own: the same configuration, but another disk."""
    with dagster(shop_file) as ui:
        ui.copy_all(1)
        monkeypatch.setenv("ETL_DAGSTER__DESTINATION__PATH", str(tmp_path / "pod.duckdb"))
        job = ui.defs.resolve_job_def("shop_copy")
        result = job.execute_in_process(
            instance=ui.instance, asset_selection=[key_of("orders")], raise_on_error=False
        )
        assert not result.success
        assert "pod.duckdb holds nothing of the pipeline 'shop'" in failure_of(result)
        assert "What to do: Put the right destination back" in failure_of(result)
        monkeypatch.delenv("ETL_DAGSTER__DESTINATION__PATH")
        small_shop.execute("INSERT INTO orders SELECT i FROM generate_series(11, 20) i")
        ui.tick_until(lambda _: rows(shop_file, "select 1 from public.orders where id = 20"))
        assert rows(shop_file, "select count(*) as n from public.orders") == [{"n": 20}]
