"""A table copied by Celery's workers, on machines that share nothing but the network."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, execute_job, instance_for_test, reconstructable
from psycopg.conninfo import conninfo_to_dict

from etl_dagster.config import PipelineConfig
from tests.support import shared_copy_job
from tests.support.celery_workers import celery_workers, needs_celery, redis
from tests.support.database import Database
from tests.support.machines import WHY_PLAIN, Machines, machines
from tests.support.pipelines import running
from tests.support.shared_copies import (
    HASH,
    Gate,
    changing,
    create_orders,
    environment,
    materialized,
    once_held,
    write_config,
)

pytestmark = [
    needs_celery,
    pytest.mark.slow,
    # Dagster registers its task once for each that it submits.
    pytest.mark.filterwarnings("ignore:.*execute_plan"),
]

#: The URL of Dagster's storage.
STORAGE = "SHARED_COPY_STORAGE"


@dataclass(frozen=True)
class Site:
    """What a run needs: databases, a broker, Dagster's storage, and machines for workers."""

    source: Database
    target: Database
    config: PipelineConfig
    #: What only the test's process sees.
    folder: Path
    network: Machines
    broker: str
    instance: DagsterInstance


@pytest.fixture(scope="module")
def site(newest_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    own = folder / "own"
    own.mkdir()
    with (
        pytest.MonkeyPatch.context() as patched,
        Database.create(newest_server) as source,
        Database.create(newest_server) as target,
        Database.create(newest_server) as storage,
        machines(folder, 2, hidden=[own]) as network,
        redis(own, network.host) as broker,
    ):
        create_orders(source)
        config = write_config(source, target, own)
        for machine in network.machines:
            write_config(source, target, machine.folder, network.dsn)
        environment(patched, own, 2)
        patched.setenv(shared_copy_job.BROKER, broker)
        patched.setenv(STORAGE, url(network.dsn(storage.dsn)))
        kept = {"postgres": {"postgres_url": {"env": STORAGE}}}
        with instance_for_test({"storage": kept}, temp_dir=str(own)) as instance:
            yield Site(source, target, config, own, network, broker, instance)


def url(dsn: str) -> str:
    parts = conninfo_to_dict(dsn)
    return "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**parts)


@pytest.mark.skipif(WHY_PLAIN is not None, reason=f"workers are plain processes: {WHY_PLAIN}")
def test_the_machines_of_the_workers_share_nothing_but_the_network(site: Site) -> None:
    """Otherwise a copy on them would prove nothing."""
    port = int(str(conninfo_to_dict(site.source.dsn)["port"]))
    machine, other = site.network.machines
    script = f"""
import os, socket
from urllib.parse import urlsplit
broker = urlsplit({site.broker!r})
socket.create_connection((broker.hostname, broker.port), 10).close()
try:
    socket.create_connection(("127.0.0.1", {port}), 10)
except ConnectionRefusedError:
    print(socket.gethostname(), os.listdir({str(site.folder)!r}), os.listdir({str(other.folder)!r}))
"""
    process = machine.start([sys.executable, "-c", script], {}, subprocess.PIPE)
    said, _ = process.communicate(timeout=60)
    assert said.decode() == f"{machine.name} [] []\n"
    assert (site.folder / "etl.yaml").exists()


def test_a_run_without_a_worker_fails_and_says_what_to_start(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster's own executor would wait forever."""
    monkeypatch.setitem(shared_copy_job.WAITS, "celery_workers_within_s", 0.0)
    monkeypatch.setitem(shared_copy_job.WAITS, "celery_answer_s", 0.2)

    run = execute_job(
        reconstructable(shared_copy_job.copy_orders_on_celery),
        instance=site.instance,
        raise_on_error=False,
    )

    assert not run.success
    said = [record.user_message for record in site.instance.all_logs(run.run_id)]
    assert any("no Celery worker answers" in each for each in said)
    assert any("dagster-celery worker start" in each for each in said)
    assert not [event for event in run.all_events if event.is_step_event]


def test_the_other_worker_makes_up_for_a_killed_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery does not report that a worker is gone; the run ends all the same."""
    monkeypatch.setitem(shared_copy_job.WAITS, "celery_ask_every_s", 0.5)
    monkeypatch.setitem(shared_copy_job.WAITS, "celery_answer_s", 0.5)
    there = {shared_copy_job.CONFIG: "etl.yaml"}
    with (
        running(site.config, copies="elsewhere") as pipeline,
        celery_workers(site.broker, site.network.machines, there) as workers,
    ):
        gate = Gate(site.target)

        def kill_one() -> None:
            random.choice(workers).kill()
            gate.open()

        with changing(site.source), once_held(gate, 2, kill_one):
            run = execute_job(
                reconstructable(shared_copy_job.copy_orders_on_celery), instance=site.instance
            )
        assert run.success
        assert pipeline.wait_until_caught_up(60)
        done = materialized(site.instance)
        said = [record.user_message for record in site.instance.all_logs(run.run_id)]
    expected = site.source.query(HASH.format("orders"))
    assert expected == site.target.query(HASH.format("public.orders"))
    assert done["table_copy_chunks"] == 30
    assert any("] is submitted to Celery again" in each for each in said)
    if WHY_PLAIN is None:
        hosts = {each["host"] for each in done["table_copy_by_worker"].values()}
        assert hosts <= {machine.name for machine in site.network.machines}
