"""Several writes at a time to a destination that answers later, from a real Postgres."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.model.events import EventBatch
from etl_dagster.model.stores import ApplyWorker
from tests.support.database import Database
from tests.support.pipelines import running
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

TABLES = ("customers", "orders", "visits")
SHOP = """
    create table customers (id int primary key);
    create table orders (id int primary key);
    create table visits (id int primary key);
    create publication etl_pub for table customers, orders, visits;
"""


class Later(MemoryDestination):
    """Writes in threads of its own, once the table's gate is open; counts what is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = {table: threading.Event() for table in TABLES}
        for gate in self.gates.values():
            gate.set()
        self.counting = threading.Lock()
        self.under_way: Counter[str] = Counter()
        #: At any one time.
        self.most_writes = self.most_of_a_table = 0
        self._pool = ThreadPoolExecutor(8)

    def write_events(self, events: EventBatch) -> Any:
        names = [steps[0].schema.table_name for steps in events.tables.values() if steps]
        with self.counting:
            self.under_way.update(names)
            self.most_writes = max(self.most_writes, self.under_way.total())
            self.most_of_a_table = max([self.most_of_a_table, *self.under_way.values()])
        return self._pool.submit(self._write, events, names)

    def _write(self, events: EventBatch, names: list[str]) -> None:
        for name in names:
            assert self.gates[name].wait(PATIENCE_S)
        super().write_events(events)
        with self.counting:
            self.under_way.subtract(names)

    def shutdown(self) -> None:
        self._pool.shutdown()


def test_writes_overlap_and_progress_waits_for_the_first_of_them(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SHOP)
    # A batch for each change, so that each of three transactions is a write of its own.
    config = make_config(database, batch={"max_rows": 1, "max_in_flight": 3})
    destination = Later()
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        running(config, store=store, destination=destination) as pipeline,
    ):
        assert pipeline.wait_until_caught_up(60)
        for gate in destination.gates.values():
            gate.clear()
        before = store.get_replication_progress(ApplyWorker())
        for table in TABLES:
            database.execute(f"insert into {table} values (1)")
        wait_until(lambda: destination.under_way.total() == len(TABLES))

        for table in ("visits", "orders"):
            destination.gates[table].set()
            wait_until(lambda table=table: destination.under_way[table] == 0)
        assert store.get_replication_progress(ApplyWorker()) == before
        assert destination.rows("public.visits") == [{"id": 1}]
        assert destination.rows("public.customers") == []

        destination.gates["customers"].set()
        assert pipeline.wait_until_caught_up(60)
        for number in range(2, 20):
            for table in TABLES:
                database.execute(f"insert into {table} values ({number})")
            database.execute(f"update orders set id = -id where id = {number}")
        assert pipeline.wait_until_caught_up(60)

        assert store.get_replication_progress(ApplyWorker()) > before
        for table in TABLES:
            found = sorted(row["id"] for row in destination.rows(f"public.{table}"))
            expected = database.query(f"select id from {table} order by id")
            assert found == [id_ for (id_,) in expected]
    assert destination.most_writes == 3
    assert destination.most_of_a_table == 1


def test_a_stop_does_not_wait_for_writes_in_flight_and_the_next_start_repeats_them(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(SHOP)
    config = make_config(database, batch={"max_rows": 1, "max_in_flight": 3})
    destination = Later()
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        with running(config, store=store, destination=destination) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            destination.gates["customers"].clear()
            for table in TABLES:
                database.execute(f"insert into {table} values (1)")
            wait_until(lambda: destination.rows("public.visits") == [{"id": 1}])
            pipeline.shutdown()
            # The engine has stopped; only the destination's own shutdown waits for its thread.
            wait_until(lambda: pipeline.status().phase in ("stopping", "stopped"))
            destination.gates["customers"].set()

        destination._pool = ThreadPoolExecutor(8)
        with running(config, store=store, destination=destination) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            for table in TABLES:
                assert destination.rows(f"public.{table}") == [{"id": 1}]
