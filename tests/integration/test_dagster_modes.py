"""The sensor where no child process streams: in its own ticks, or next to a service."""

from __future__ import annotations

import threading
from pathlib import Path

from etl_dagster.assembly import build_destination, opened_store
from etl_dagster.config import load_config
from etl_dagster.integrations.dagster import EtlConfigFileResource
from etl_dagster.integrations.dagster.between_ticks import keep_status
from etl_dagster.integrations.dagster.checks.check_names import LAG_CHECK
from etl_dagster.integrations.dagster.checks.lag import published
from etl_dagster.integrations.dagster.sensor.supervisor import supervisor_of
from etl_dagster.runtime.pipeline import Pipeline
from tests.support.dagster_in_process import Dagster, dagster, rows, until
from tests.support.database import Database

_COUNT = "select count(*) as n from public.orders"


def reported(ui: Dagster) -> int:
    """Inserted rows in all reports; each tick's pipeline counts from zero."""
    counts = [event.metadata["rows_inserted"].value for event in ui.materializations]
    return sum(int(str(count)) for count in counts)


def test_in_tick_mode_a_table_is_copied_and_streamed_by_ticks_alone(
    small_shop: Database, shop_file: Path
) -> None:
    resource = EtlConfigFileResource(path=str(shop_file))
    options = {"sensor_mode": "tick", "tick_s": 1.0, "report_every_s": 0.0}
    with dagster(shop_file, **options) as ui:
        assert ui.tick(preview=True).skip_message == "a preview does not stream"
        ui.tick_until(lambda result: result.run_requests)
        [request] = ui.requested
        copying = threading.Thread(target=ui.run, args=[request])
        copying.start()
        while copying.is_alive():
            ui.tick()
        small_shop.execute("INSERT INTO orders VALUES (11)", "INSERT INTO orders VALUES (12)")
        ui.tick_until(lambda result: reported(ui) == 2)
        assert rows(shop_file, _COUNT) == [{"n": 12}]

        assert supervisor_of("shop").pid is None
        assert small_shop.query("SELECT active FROM pg_replication_slots") == [(False,)]
        between = published(resource)
        assert between.verdict("shop", "public.orders").passed
        assert between.status is not None
        with resource.get_store() as store:
            keep_status(store, between.status, next_within_s=-1.0)
        assert published(resource).verdict("shop", "public.orders").is_dead


def test_in_observe_mode_a_service_copies_and_streams(
    small_shop: Database, shop_file: Path
) -> None:
    config = load_config(shop_file)
    with dagster(shop_file, sensor_mode="observe") as ui, opened_store(config) as store:
        never = str(ui.tick().skip_message)
        assert "no process streams" in never
        assert "What to do: Start the service, 'etl-dagster run'" in never
        service = Pipeline(config, store, build_destination(config))
        service.start()
        try:
            ui.tick_until(lambda result: "1 of 1 tables in step" in str(result.skip_message))
            assert ui.requested == []
            assert supervisor_of("shop").pid is None
            assert rows(shop_file, _COUNT) == [{"n": 10}]
            until(lambda: ui.tick() and any(check.passed for check in ui.checks))
        finally:
            service.shutdown()
            service.wait()
        gone = ui.tick()
        assert "no process streams" in str(gone.skip_message)
        assert "What to do: " in str(gone.skip_message)
        last = [check for check in ui.checks if check.check_name == LAG_CHECK][-1]
        assert not last.passed
        assert "What to do: Start the service, 'etl-dagster run'" in str(last.description)
