"""Several steps of one run copy a table together; what a killed one leaves, the others copy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from dagster import DagsterRunStatus, execute_job, reconstructable

from etl_dagster.config import load_config
from tests.support import shared_copy_job
from tests.support.dagster_in_process import searched_instance
from tests.support.dagster_in_process import write_config as write_duckdb_config
from tests.support.database import Database
from tests.support.pipelines import running
from tests.support.shared_copies import (
    HASH,
    ROWS,
    Gate,
    changing,
    create_orders,
    environment,
    materialized,
    once_held,
    write_config,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def source(newest_database: Database) -> Database:
    create_orders(newest_database)
    return newest_database


@pytest.fixture
def target(newest_server: Any) -> Iterator[Database]:
    with Database.create(newest_server) as database:
        yield database


def test_the_other_steps_make_up_for_a_killed_one(
    source: Database, target: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both steps are in the middle of a chunk, and one of them leads; either may be killed."""
    config = write_config(source, target, tmp_path)
    environment(monkeypatch, tmp_path, 2)

    with running(config, copies="elsewhere") as pipeline, searched_instance() as instance:
        gate = Gate(target)

        def kill_one() -> None:
            steps = [
                child
                for child in psutil.Process().children()
                if "spawn_main" in " ".join(child.cmdline())
            ]
            assert len(steps) == 2
            random.choice(steps).kill()
            gate.open()

        with changing(source), once_held(gate, 2, kill_one):
            run = execute_job(
                reconstructable(shared_copy_job.copy_orders_in_processes), instance=instance
            )
        assert run.success
        assert pipeline.wait_until_caught_up(60)
        done = materialized(instance)
    assert source.query(HASH.format("orders")) == target.query(HASH.format("public.orders"))
    assert done["table_copy_chunks"] == sum(
        each["chunks"] for each in done["table_copy_by_worker"].values()
    )


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
            [run] = instance.get_runs()
            instance.report_run_canceling(run)

        with once_held(gate, 1, cancel):
            canceled = job.execute_in_process(instance=instance, raise_on_error=False)
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


def test_a_single_writer_destination_is_copied_to_by_one_step(
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
