"""The sensor where no child process streams: in its own ticks, or next to a service."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from etl_dagster.assembly import build_destination, opened_store
from etl_dagster.config import load_config
from etl_dagster.integrations.dagster import EtlConfigFileResource
from etl_dagster.integrations.dagster.between_ticks import keep_status
from etl_dagster.integrations.dagster.lag import LAG_CHECK, published
from etl_dagster.integrations.dagster.supervisor import supervisor_of
from etl_dagster.runtime.pipeline import Pipeline
from tests.support.dagster_in_process import Dagster, dagster, rows, until, write_config
from tests.support.database import Database

_COUNT = "select count(*) as n from public.orders"


@pytest.fixture
def shop(newest_database: Database) -> Database:
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY)",
        "INSERT INTO orders SELECT i FROM generate_series(1, 10) i",
        "CREATE PUBLICATION etl_pub FOR TABLE orders",
    )
    return newest_database


@pytest.fixture
def config_file(shop: Database, tmp_path: Path) -> Path:
    return write_config(shop.dsn, tmp_path)


def reported(ui: Dagster) -> int:
    """Inserted rows in all reports; each tick's pipeline counts from zero."""
    counts = [event.metadata["rows_inserted"].value for event in ui.materializations]
    return sum(int(str(count)) for count in counts)


def test_in_the_mode_tick_a_table_is_copied_and_streamed_by_ticks_alone(
    shop: Database, config_file: Path
) -> None:
    resource = EtlConfigFileResource(path=str(config_file))
    options = {"sensor_mode": "tick", "tick_s": 1.0, "report_every_s": 0.0}
    with dagster(config_file, **options) as ui:
        assert ui.tick(preview=True).skip_message == "a preview does not stream"
        ui.tick_until(lambda result: result.run_requests)
        [request] = ui.requested
        copying = threading.Thread(target=ui.run, args=[request])
        copying.start()
        while copying.is_alive():
            ui.tick()
        shop.execute("INSERT INTO orders VALUES (11)", "INSERT INTO orders VALUES (12)")
        ui.tick_until(lambda result: reported(ui) == 2)
        assert rows(config_file, _COUNT) == [{"n": 12}]

        assert supervisor_of("shop").pid is None
        assert shop.query("SELECT active FROM pg_replication_slots") == [(False,)]
        between = published(resource)
        assert between.verdict("shop", "public.orders").passed
        assert between.status is not None
        with resource.get_store() as store:
            keep_status(store, between.status, next_within_s=-1.0)
        assert published(resource).verdict("shop", "public.orders").is_dead


def test_in_the_mode_observe_a_service_copies_and_streams(
    shop: Database, config_file: Path
) -> None:
    config = load_config(config_file)
    with dagster(config_file, sensor_mode="observe") as ui, opened_store(config) as store:
        assert "no process streams" in str(ui.tick().skip_message)
        service = Pipeline(config, store, build_destination(config))
        service.start()
        try:
            ui.tick_until(lambda result: "1 of 1 tables in step" in str(result.skip_message))
            assert ui.requested == []
            assert supervisor_of("shop").pid is None
            assert rows(config_file, _COUNT) == [{"n": 10}]
            until(lambda: ui.tick() and any(check.passed for check in ui.checks))
        finally:
            service.shutdown()
            service.wait()
        gone = ui.tick()
        assert "no process streams" in str(gone.skip_message)
        last = [check for check in ui.checks if check.check_name == LAG_CHECK][-1]
        assert not last.passed
        assert "etl-dagster run" in str(last.description)
