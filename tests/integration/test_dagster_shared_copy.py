"""Several steps of one run copy a table together; what a killed one leaves, the others copy."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from dagster import AssetKey, DagsterInstance, DagsterRunStatus, execute_job, reconstructable

from etl_dagster.config import PipelineConfig, load_config
from etl_dagster.integrations.dagster import celery_steps
from tests.support import shared_copy_job
from tests.support.celery_workers import celery_workers, needs_redis, redis
from tests.support.dagster_in_process import searched_instance
from tests.support.dagster_in_process import write_config as write_duckdb_config
from tests.support.database import Database
from tests.support.pipelines import running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ROWS = 60_000
HASH = "select count(*), md5(string_agg(o::text, ',' order by id)) from {} o"


@pytest.fixture
def source(newest_database: Database) -> Database:
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text, n int)",
        f"INSERT INTO orders SELECT i, repeat('n', 100), 0 FROM generate_series(1, {ROWS}) i",
        "ANALYZE orders",
        "CREATE PUBLICATION etl_pub FOR TABLE orders",
    )
    return newest_database


@pytest.fixture
def target(newest_server: Any) -> Iterator[Database]:
    with Database.create(newest_server) as database:
        yield database


def write_config(source: Database, target: Database, folder: Path) -> PipelineConfig:
    values = {
        "pipeline": "shop",
        "source": {"dsn": source.dsn, "publication": "etl_pub"},
        "destination": {"type": "postgres", "dsn": target.dsn},
        "batch": {"max_fill_ms": 50},
        "copy_tables": {"chunk_rows": 2000, "max_connections_per_table": 1},
    }
    path = folder / "etl.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_config(path)


@contextmanager
def changing(source: Database) -> Iterator[None]:
    """Rows are inserted, moved to the end of the table and deleted for as long as it lasts."""
    stop = threading.Event()

    def change() -> None:
        with source.connect() as connection:
            for i in range(1_000_000):
                connection.execute(
                    "UPDATE orders SET n = n + 1, note = %s WHERE id %% 997 = %s",
                    [f"u{i}", i % 997],
                )
                connection.execute("DELETE FROM orders WHERE id = %s", [1 + 37 * i])
                connection.execute("INSERT INTO orders VALUES (%s, 'new', 0)", [ROWS + 1 + i])
                if stop.wait(0.02):
                    return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def environment(monkeypatch: pytest.MonkeyPatch, folder: Path, workers: int) -> None:
    monkeypatch.setenv(shared_copy_job.CONFIG, str(folder / "etl.yaml"))
    monkeypatch.setenv(shared_copy_job.WORKERS, str(workers))


def materialized(instance: DagsterInstance) -> dict[str, Any]:
    event = instance.get_latest_materialization_event(AssetKey(["shop", "public", "orders"]))
    assert event is not None
    assert event.asset_materialization is not None
    return {key: value.value for key, value in event.asset_materialization.metadata.items()}


class Gate:
    """Holds chunks back at the destination, unfinished, until it is opened."""

    def __init__(self, target: Database, *, from_chunk: int = 0) -> None:
        self._target = target
        self._session = target.connect()
        target.execute(
            "CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN new; END'",
            "CREATE TRIGGER gate BEFORE INSERT ON _etl.chunks"
            f" FOR EACH ROW WHEN (new.chunk_index >= {from_chunk})"
            " EXECUTE FUNCTION wait_at_gate()",
        )
        self._session.execute("SELECT pg_advisory_lock(7)")

    def waiting(self) -> int:
        """How many chunks wait."""
        [(count,)] = self._target.query(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7"
            " AND NOT granted AND database = (SELECT oid FROM pg_database"
            " WHERE datname = current_database())"
        )
        return int(count)

    def open(self) -> None:
        self._session.close()


def test_a_killed_step_of_several_is_made_up_for_by_the_others(
    source: Database, target: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two steps is in the middle of a chunk, and one of them leads: it is either."""
    config = write_config(source, target, tmp_path)
    environment(monkeypatch, tmp_path, 2)

    with running(config, copies="elsewhere") as pipeline, searched_instance() as instance:
        gate = Gate(target)

        def kill_one() -> None:
            wait_until(lambda: gate.waiting() == 2)
            steps = [
                child
                for child in psutil.Process().children()
                if "spawn_main" in " ".join(child.cmdline())
            ]
            assert len(steps) == 2
            random.choice(steps).kill()
            gate.open()

        with changing(source), ThreadPoolExecutor(1) as pool:
            killing = pool.submit(kill_one)
            run = execute_job(
                reconstructable(shared_copy_job.copy_orders_in_processes), instance=instance
            )
            killing.result()
        assert run.success
        assert pipeline.wait_until_caught_up(60)
        done = materialized(instance)
    assert source.query(HASH.format("orders")) == target.query(HASH.format("public.orders"))
    assert done["table_copy_chunks"] == sum(
        each["chunks"] for each in done["table_copy_by_worker"].values()
    )


@needs_redis
# Dagster registers its task once for each that it submits.
@pytest.mark.filterwarnings("ignore:.*execute_plan")
def test_a_killed_celery_worker_is_made_up_for_by_the_other(
    source: Database, target: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery tells no one that a worker is gone: the run ends all the same."""
    config = write_config(source, target, tmp_path)
    environment(monkeypatch, tmp_path, 2)
    monkeypatch.setattr(celery_steps, "_ASK_EVERY_S", 0.5)
    monkeypatch.setattr(celery_steps, "_ANSWER_S", 0.5)
    with redis(tmp_path) as broker:
        monkeypatch.setenv(shared_copy_job.BROKER, broker)
        with (
            running(config, copies="elsewhere") as pipeline,
            searched_instance() as instance,
            celery_workers(broker, tmp_path, 2) as workers,
        ):
            gate = Gate(target)

            def kill_one() -> None:
                wait_until(lambda: gate.waiting() == 2)
                random.choice(workers).kill()
                gate.open()

            with changing(source), ThreadPoolExecutor(1) as pool:
                killing = pool.submit(kill_one)
                run = execute_job(
                    reconstructable(shared_copy_job.copy_orders_on_celery), instance=instance
                )
                killing.result()
            assert run.success
            assert pipeline.wait_until_caught_up(60)
            done = materialized(instance)
            said = [record.user_message for record in instance.all_logs(run.run_id)]
    assert source.query(HASH.format("orders")) == target.query(HASH.format("public.orders"))
    assert done["table_copy_chunks"] == 30
    assert any("is submitted to Celery again" in each for each in said)


def test_a_canceled_run_stops_at_once_and_the_next_one_resumes_at_the_chunk(
    source: Database, target: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on executors that don't interrupt their steps."""
    config = write_config(source, target, tmp_path)
    environment(monkeypatch, tmp_path, 3)
    job = shared_copy_job.copy_orders()

    with running(config, copies="elsewhere") as pipeline, searched_instance() as instance:
        gate = Gate(target, from_chunk=5)

        def cancel() -> None:
            wait_until(lambda: gate.waiting() == 1)
            [run] = instance.get_runs()
            instance.report_run_canceling(run)

        with ThreadPoolExecutor(1) as pool:
            canceling = pool.submit(cancel)
            canceled = job.execute_in_process(instance=instance, raise_on_error=False)
            canceling.result()
        assert not canceled.success
        [run] = instance.get_runs()
        assert run.status == DagsterRunStatus.CANCELED
        [(slot,)] = source.query("SELECT slot_name FROM pg_replication_slots WHERE NOT active")
        gate.open()

        assert job.execute_in_process(instance=instance).success
        assert pipeline.wait_until_caught_up(60)
        done = materialized(instance)
    assert source.query(HASH.format("orders")) == target.query(HASH.format("public.orders"))
    assert (done["table_copy_resumed_chunks"], done["table_copy_chunks"]) == (5, 30)
    assert source.query("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [slot]) == []


def test_a_destination_of_one_writer_is_copied_to_by_one_step(
    source: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_duckdb_config(source.dsn, tmp_path)
    environment(monkeypatch, tmp_path, 3)
    with running(load_config(path), copies="elsewhere"), searched_instance() as instance:
        run = shared_copy_job.copy_orders().execute_in_process(instance=instance)
        assert run.success
        assert materialized(instance)["table_copy_rows"] == ROWS
        said = [record.user_message for record in instance.all_logs(run.run_id)]
    assert any("duckdb can't be written by several processes" in each for each in said)
    assert [event.step_key for event in run.all_events if event.is_step_success] == [
        "copy_orders_plan",
        "copy_orders_copy[worker_1]",
        "copy_orders_finish",
    ]
