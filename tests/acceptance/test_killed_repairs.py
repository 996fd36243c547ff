"""Tables that are resumed, or repaired, by a process that is killed at random meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.model.states import Errored, ManualRetry, Ready
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.repair_requests import repair_outcome, request_repairs
from etl_dagster.runtime.retrying import request_retry, require_retryable
from etl_dagster.runtime.table_ids import find_table_ids
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import apply_slot_name
from tests.support.database import Database
from tests.support.killed_workers import (
    Workers,
    destination_rows,
    query_destination,
    source_rows,
    task_of,
)
from tests.support.random_shop import TABLES, create_tables, workload
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS = 2000
KILLS = 3
TAMPERED = "orders"


def test_a_killed_retry_and_a_killed_repair_end_equal_to_the_source_and_double_nothing(
    newest_database: Database, newest_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    dsn = newest_database.dsn
    create_tables(dsn, ROWS)
    with Database.create(newest_server) as replica:
        task = task_of(dsn, {"type": "postgres", "dsn": replica.dsn, "changelog": True})
        config = parse_config(task["config"], {})
        with (
            closing(build_store(config)) as store,  # type: ignore[type-var]
            workload(dsn, rng.randrange(2**32), ROWS, pause_s=0.1) as changes,
            Workers(
                task | {"is_quick": True}, [store], tmp_path, copies="own", check=lambda _: None
            ) as workers,
        ):
            workers.run_until_caught_up(dsn)
            table_id = find_table_ids(config, store)[f"public.{TAMPERED}"]

            def state() -> object:
                store.load_table_replication_states()
                return store.get_table_replication_state(table_id)

            def kill_until(is_over: Callable[[], bool]) -> None:
                """Kill a worker a few times until the condition holds; then let it work."""
                for _ in range(KILLS):
                    time.sleep(rng.uniform(0.0, 0.6))
                    if is_over():
                        break
                    workers.kill_one(rng)
                    workers.keep_alive()
                wait_until(lambda: _living(workers) and is_over())

            with _refusing(replica, TAMPERED):
                wait_until(lambda: _living(workers) and isinstance(state(), Errored))
                stopped = state()
                assert isinstance(stopped, Errored)
                assert (stopped.retry, stopped.is_kept) == (ManualRetry(), True)
                assert len(newest_database.slots()) == 2
            _retry(config, store, table_id)
            kill_until(lambda: isinstance(state(), Ready))
            assert store.get_copy_plan(table_id) is not None

            _tamper(replica)
            request = request_repairs(store, [table_id])[table_id]
            kill_until(
                lambda: (
                    repair_outcome(store, table_id, request) is not None
                    and isinstance(state(), Ready)
                )
            )
            changes.stop()
            workers.run_until_caught_up(dsn)
            outcome = repair_outcome(store, table_id, request)
            assert outcome is not None
            assert outcome.by == "ranges", outcome.reason
            print(f"killed: {workers.kills}; {outcome.missing=} {outcome.extra=}")
            for table in TABLES:
                assert destination_rows(config, table) == source_rows(dsn, table), table
            doubled = query_destination(
                config,
                "select table_id, commit_lsn, ordinal, count(*) from _etl.changelog"
                " group by table_id, commit_lsn, ordinal having count(*) > 1",
            )
            assert doubled == []
            wait_until(lambda: newest_database.slots() == [apply_slot_name(config.pipeline)])


def _living(workers: Workers) -> bool:
    workers.keep_alive()
    return True


@contextmanager
def _refusing(replica: Database, table: str) -> Iterator[None]:
    """The destination refuses every row of the table."""
    name = f"public.{table}"
    replica.execute(f"alter table {name} add constraint refused check (false) not valid")
    yield
    replica.execute(f"alter table {name} drop constraint refused")


def _retry(config: PipelineConfig, store: CoordinatingStore, table_id: int) -> None:
    with closing(SourceControl(config.source, application_name="test")) as control:
        state = require_retryable(config, store, control, table_id, TAMPERED)
    request_retry(store, table_id, state)


def _tamper(replica: Database) -> None:
    replica.execute(
        f"delete from public.{TAMPERED} where id % 7 = 0",
        f"update public.{TAMPERED} set note = 'other' where id % 7 = 1",
        f"insert into public.{TAMPERED} (id, note) values (-1, 'too many')",
    )
