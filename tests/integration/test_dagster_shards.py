"""Shards in Dagster: assets, a sensor and a replicator for each."""

from __future__ import annotations

from pathlib import Path

from etl_dagster.config import load_config
from etl_dagster.destinations.duckdb import query
from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.integrations.dagster.sensor.supervisor import supervisor_of
from tests.support.dagster_in_process import Dagster, dagster, write_config
from tests.support.database import Database


def test_each_shard_has_assets_a_sensor_and_a_process_of_its_own(
    newest_database: Database, tmp_path: Path
) -> None:
    tables = {"orders": "shop", "events": "shop__events"}
    for table in tables:
        newest_database.execute(
            f"CREATE TABLE {table} (id bigint PRIMARY KEY, note text)",
            f"INSERT INTO {table} SELECT i, 'n' FROM generate_series(1, 50) i",
            f"CREATE PUBLICATION {table}_pub FOR TABLE {table}",
        )
    file = write_config(
        newest_database.dsn,
        tmp_path,
        source={"dsn": newest_database.dsn, "publication": "orders_pub"},
        shards={"events": {"publication": "events_pub"}},
    )

    def count(table: str) -> int:
        destination = load_config(file).destination
        assert isinstance(destination, DuckDBDestinationConfig)
        counted = query(destination.path, f"select count(*) as n from public.{table}")
        return int(counted.to_pylist()[0]["n"])

    with dagster(file, report_every_s=0.5, clicks_in_process=True) as ui:
        shards = {table: Dagster(ui.instance, ui.defs, name) for table, name in tables.items()}
        for table, each in shards.items():
            each.copy_all(1)
            assert count(table) == 50
        pids = {supervisor_of(name).pid for name in tables.values()}
        assert None not in pids
        assert len(pids) == 2
        for table, each in shards.items():
            newest_database.execute(f"INSERT INTO {table} VALUES (51)")
            each.tick_until(lambda _, table=table: count(table) == 51)  # type: ignore[misc]
    assert newest_database.slots() == ["etl_dagster_apply_shop", "etl_dagster_apply_shop__events"]
