"""A pipeline and its copies in processes that a test kills, and what became of the rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import query
from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.destinations.postgres.config import PostgresDestinationConfig
from etl_dagster.model.states import Ready, TableState
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.runtime.retry import is_sync_due
from etl_dagster.source.catalog import emit_marker
from tests.support.random_shop import check_state, is_caught_up
from tests.support.worker_process import WorkerProcess


class Workers:
    """The pipeline and a process for each table that needs one, started again when they end.

    A test that fails, or takes too long, prints what became of the tables and of each process.

    Args:
        stores: of each destination.
        copies: where the copies are made; one with several destinations makes its own.
        check: fails the test if a table has a state that it must not have.
    """

    def __init__(
        self,
        task: dict[str, Any],
        stores: Sequence[CoordinatingStore],
        folder: Path,
        *,
        copies: Literal["own", "elsewhere"] = "elsewhere",
        check: Callable[[TableState], None] = check_state,
    ) -> None:
        self._task, self._stores, self._folder = {**task, "copies": copies}, stores, folder
        self._check = check
        self._processes: dict[int | None, WorkerProcess] = {}
        self.kills = {"pipeline": 0, "copy": 0}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
        if kind is not None:
            for process in self._processes.values():
                process.print_log_end()
            print(f"killed: {self.kills}")
            for store in self._stores:
                print(f"streamed to: {store.get_replication_progress(ApplyWorker())}")
                for table_id, state in store.get_table_replication_states().items():
                    print(f"table {table_id}: {state}")

    def keep_alive(self) -> None:
        self._start(None)
        for store in self._stores:
            for table_id, state in store.get_table_replication_states().items():
                self._check(state)
                if self._task["copies"] == "elsewhere" and is_sync_due(state):
                    self._start(table_id)

    def _start(self, table_id: int | None) -> None:
        if table_id not in self._processes:
            task = self._task if table_id is None else {**self._task, "table_id": table_id}
            name = "pipeline" if table_id is None else f"table {table_id}"
            self._processes[table_id] = WorkerProcess(
                "tests.support.worker", task, self._folder, name
            )
        self._processes[table_id].start()

    @property
    def living(self) -> list[WorkerProcess]:
        return [process for process in self._processes.values() if process.is_alive]

    def kill_one(self, rng: random.Random) -> str | None:
        """Its name; None where none was killed."""
        living = {table_id: it for table_id, it in self._processes.items() if it.is_alive}
        copying = [table_id for table_id in living if table_id is not None]
        # The copies end soon, so they come first.
        victim = rng.choice(copying if copying and rng.random() < 0.7 else [None])
        is_early = victim is None and not self._stores[0].get_table_replication_states()
        if is_early and self.kills["pipeline"] >= 2:
            # On a busy machine a start takes longer than the pauses here. One that is killed each
            # time before it has found the tables would never get any further.
            return None
        if victim not in living or not living[victim].kill():
            return None
        kind = "pipeline" if victim is None else "copy"
        self.kills[kind] += 1
        return kind

    def have_something_copied(self, rng: random.Random) -> None:
        """Ask for another copy, where every table is streamed and no copy is left to be killed."""
        store = rng.choice(self._stores)
        states = store.get_table_replication_states()
        if states and all(isinstance(state, Ready) for state in states.values()):
            store.request_copy(rng.choice([*states]))

    def run_until_caught_up(self, dsn: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            goal = emit_marker(connection)
        while not all(is_caught_up(store, goal) for store in self._stores):
            self.keep_alive()
            self._stores[0].wait_for_change(0.5)


# -- comparing -----------------------------------------------------------------------------------

#: Both databases print these the same.
_AS_TEXT = {
    "orders": "id::text, amount::text, note, extract(epoch from made)::bigint::text",
    "documents": "id::text, title, body",
    "prices": "sku, region::text, (price * 1e9)::bigint::text",
    "visits": "page, n::text, extract(epoch from made)::bigint::text",
    "events": "kind, replace(payload::text, ' ', ''), extract(epoch from made)::bigint::text",
}


def source_rows(dsn: str, table: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return sorted(connection.execute(f"select {_AS_TEXT[table]} from {table}").fetchall())


def destination_rows(config: PipelineConfig, table: str) -> list[tuple[Any, ...]]:
    return sorted(query_destination(config, f"select {_AS_TEXT[table]} from public.{table}"))


def query_destination(config: PipelineConfig, statement: str) -> list[tuple[Any, ...]]:
    destination = config.destination
    if isinstance(destination, PostgresDestinationConfig):
        with psycopg.connect(destination.dsn.get_secret_value()) as connection:
            return connection.execute(statement.encode()).fetchall()
    if isinstance(destination, DuckLakeDestinationConfig):
        from etl_dagster.destinations.ducklake.reading import query as query_lake

        return [tuple(row.values()) for row in query_lake(destination, statement).to_pylist()]
    assert isinstance(destination, DuckDBDestinationConfig)
    return [tuple(row.values()) for row in query(destination.path, statement).to_pylist()]


def task_of(dsn: str, destination: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": {
            "pipeline": "shop",
            "source": {"dsn": dsn, "publication": "etl_pub"},
            "destination": destination,
            "batch": {"max_fill_ms": 50},
            "copy": {"chunk_rows": 500, "max_connections_per_table": 2},
            "retry": {"initial_delay_ms": 100, "max_delay_ms": 1000, "max_attempts": 100},
        }
    }
