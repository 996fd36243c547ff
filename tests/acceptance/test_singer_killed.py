"""Pipeline and target are killed at random moments while rows change at random; what the target's
tables then hold is what the source holds, by key."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from etl_dagster.assembly import build_store
from etl_dagster.config import parse_config
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.source.catalog import emit_marker
from tests.support.database import Database
from tests.support.random_shop import create_tables, is_caught_up, workload
from tests.support.real_targets import real_target
from tests.support.worker_process import WorkerProcess

ROWS, KILLS = 600, 4
#: Both databases print these the same. Tables without a key are only appended to.
_AS_TEXT = {
    "orders": "id::text, amount::text, note, extract(epoch from made)::bigint::text",
    "documents": "id::text, title, body",
    "prices": "sku, region::text, (price * 1e9)::bigint::text",
}


@pytest.fixture
def replica(newest_server: EmbeddedPostgres) -> Iterator[Database]:
    with Database.create(newest_server) as made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_target_postgres_holds_what_the_source_holds_though_both_are_killed(
    newest_database: Database, replica: Database, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    create_tables(newest_database.dsn, ROWS)
    newest_database.execute(
        "alter table documents replica identity full",
        "drop publication etl_pub",
        "create publication etl_pub for table orders, documents, prices",
    )
    config = _config(newest_database, replica)
    task = {"config": config, "kind": "configured"}
    store = build_store(parse_config(config, {}))
    with (
        closing(store),  # type: ignore[type-var]
        WorkerProcess("tests.support.http_worker", task, tmp_path) as sender,
        workload(newest_database.dsn, rng.randrange(2**32), ROWS) as changes,
    ):
        # Copies take a while, so that some of this happens to them.
        while sender.kills + sender.child_kills < KILLS or not sender.child_kills:
            sender.start()
            # Something happened, or all is idle: the moment after is what is random.
            store.wait_for_change(2)
            time.sleep(rng.uniform(0, 1.5))
            rng.choice([sender.kill, sender.kill_children])()
        changes.stop()
        with psycopg.connect(newest_database.dsn, autocommit=True) as connection:
            goal = emit_marker(connection)
        while not is_caught_up(store, goal, len(_AS_TEXT)):
            sender.start()
            store.wait_for_change(0.5)
    for table, columns in _AS_TEXT.items():
        statement = f"select {columns} from {table}"
        there = f"{statement} where _sdc_deleted_at is null"
        assert sorted(replica.query(there)) == sorted(newest_database.query(statement)), table


def _config(source: Database, replica: Database) -> dict[str, Any]:
    parts = conninfo_to_dict(replica.dsn)
    return {
        "pipeline": "shop",
        "source": {"dsn": source.dsn, "publication": "etl_pub"},
        "destination": {
            "type": "singer",
            "target": str(real_target("target-postgres")),
            "config": {
                "host": parts["host"],
                "port": int(str(parts["port"])),
                "user": parts["user"],
                "password": parts["password"],
                "database": parts["dbname"],
                "default_target_schema": "public",
                "hard_delete": True,
            },
        },
        "batch": {"max_fill_ms": 200},
        "copy": {"chunk_rows": 200, "max_connections_per_table": 2},
        "retry": {"initial_delay_ms": 100, "max_delay_ms": 1000, "max_attempts": 100},
    }
