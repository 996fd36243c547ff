"""A pipeline of the package in `examples/etl_files`, put together from Dagster resources.

Run by an environment that has the package: ``python dagster_by_resources.py DSN FOLDER``. Does what
the daemon does until all tables are copied and a change has come; prints what is known of the
copy of ``public.orders``, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from dagster import AssetKey, EnvVar, build_sensor_context, instance_for_test

from etl_dagster.integrations.dagster import (
    EtlPipelineResource,
    PostgresSourceResource,
    StateStoreResource,
    build_etl_definitions,
    destination_resource,
)
from etl_dagster.integrations.dagster.sensor.supervisor import stop_all

DEADLINE_S = 180.0


def main(dsn: str, folder: Path) -> None:
    from etl_files import read_table

    os.environ["SHOP_DSN"] = dsn
    tables = folder / "tables"
    defs = build_etl_definitions(
        EtlPipelineResource(
            pipeline="shop",
            source=PostgresSourceResource(dsn=EnvVar("SHOP_DSN"), publication="etl_pub"),
            state_store=StateStoreResource(type="sqlite", config={"path": str(folder / "s.db")}),
            destination=destination_resource("jsonl")(folder=str(tables)),
            settings={"batch": {"max_fill_ms": 50}},
        ),
        # Nothing ticks while a run is under way in this process.
        lease_s=600.0,
    )
    [sensor] = defs.sensors or []
    cursor, copied = None, 0

    # Searched for secrets when the tests are over.
    home = folder / "dagster"
    home.mkdir()
    with instance_for_test(temp_dir=str(home)) as instance:

        def tick() -> list[Any]:
            nonlocal cursor
            resources = dict(defs.resources or {})
            with build_sensor_context(
                instance=instance, cursor=cursor, resources=resources, last_sensor_start_time=1.0
            ) as context:
                result = sensor.evaluate_tick(context)
            cursor = result.cursor
            return list(result.run_requests or [])

        def tick_until(done: Callable[[list[Any]], object]) -> list[Any]:
            deadline = time.monotonic() + DEADLINE_S
            while not done(requests := tick()):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            return requests

        try:
            while copied < 3:
                for request in tick_until(bool):
                    job = defs.resolve_job_def("shop_copy")
                    assert job.execute_in_process(
                        instance=instance,
                        asset_selection=list(request.asset_selection or []),
                        tags=dict(request.tags) | {"dagster/sensor_name": "shop_replication"},
                    ).success
                    copied += 1
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("DELETE FROM visits WHERE at = 1")
                connection.execute("UPDATE orders SET note = 'streamed' WHERE id = 1")
            path = tables / "public.orders.jsonl"
            tick_until(lambda _: any(row["note"] == "streamed" for row in read_table(path)))
            event = instance.get_latest_materialization_event(
                AssetKey(["shop", "public", "orders"])
            )
        finally:
            stop_all()
    assert event is not None
    assert event.asset_materialization is not None
    known = event.asset_materialization.metadata
    names = ("table_copy_rows", "meltano/state_id")
    print(json.dumps({name: known[name].value for name in names}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
