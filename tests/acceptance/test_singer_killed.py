"""Pipeline and target are killed at random moments while rows change at random; what the target's
tables then hold is what the source holds, by key."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from etl_dagster.assembly import build_store
from etl_dagster.config import parse_config
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.model.states import Errored, Ready, TimedRetry
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.source.catalog import emit_marker
from tests.support.database import Database
from tests.support.random_shop import create_tables, workload
from tests.support.real_targets import real_target

ROWS, KILLS = 600, 6
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
    store = build_store(parse_config(config, {}))
    with (
        closing(store),  # type: ignore[type-var]
        Sender({"config": config, "kind": "configured"}, tmp_path) as sender,
        workload(newest_database.dsn, rng.randrange(2**32), ROWS) as changes,
    ):
        # Copies take a while, so that some of this happens to them.
        while sender.kills + sender.target_kills < KILLS or not sender.target_kills:
            sender.start()
            # Something happened, or all is idle: the moment after is what is random.
            store.wait_for_change(2)
            time.sleep(rng.uniform(0, 1.5))
            rng.choice([sender.kill, sender.kill_target])()
        changes.stop()
        with psycopg.connect(newest_database.dsn, autocommit=True) as connection:
            goal = emit_marker(connection)
        while not _is_caught_up(store, goal):
            sender.start()
            store.wait_for_change(0.5)
    for table, columns in _AS_TEXT.items():
        statement = f"select {columns} from {table}"
        there = f"{statement} where _sdc_deleted_at is null"
        assert sorted(replica.query(there)) == sorted(newest_database.query(statement)), table


class Sender:
    """A pipeline in a process of its own, and the target that it runs."""

    def __init__(self, task: dict[str, Any], folder: Path) -> None:
        self._task = task
        self._log = (folder / "sender.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = self.target_kills = 0

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def start(self) -> None:
        """Start it unless it lives."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.http_worker"],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._task).encode() + b"\n")
        self._process.stdin.close()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self.kills += self._process.wait() == -signal.SIGKILL

    def kill_target(self) -> None:
        """Kill the target that runs now, if one does."""
        if self._process is None or self._process.poll() is not None:
            return
        for child in psutil.Process(self._process.pid).children():
            child.kill()
            self.target_kills += 1


def _is_caught_up(store: CoordinatingStore, goal: Any) -> bool:
    states = store.get_table_replication_states()
    for state in states.values():
        if isinstance(state, Errored):
            assert isinstance(state.retry, TimedRetry), state.reason
    progress = store.get_replication_progress(ApplyWorker())
    are_ready = len(states) == len(_AS_TEXT) and all(
        isinstance(state, Ready) for state in states.values()
    )
    return are_ready and progress is not None and progress >= goal


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
