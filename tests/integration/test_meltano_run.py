"""`meltano run` with real taps and targets: its state is in Postgres, and survives what happens."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from etl_dagster.integrations.meltano.states.storage import StateStorage
from tests.support.database import Database
from tests.support.meltano import MeltanoProject, open_storage, role, state_uri
from tests.support.proxy import Proxy
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.slow

pytest.importorskip("meltano")

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def storage(newest_database: Database) -> Iterator[StateStorage]:
    opened = open_storage(newest_database)
    yield opened
    opened.close()


def test_a_tap_and_a_target_from_pypi_resume_where_the_state_says(
    newest_database: Database, storage: StateStorage, tmp_path: Path
) -> None:
    newest_database.execute(
        "CREATE SCHEMA shop; CREATE TABLE shop.orders (id int PRIMARY KEY, updated_at timestamptz)",
        "INSERT INTO shop.orders SELECT n, '2026-01-01'::timestamptz + n * interval '1 h' "
        "FROM generate_series(1, 3) n",
    )
    source = conninfo_to_dict(newest_database.dsn)
    project = MeltanoProject.create(
        tmp_path / "project",
        state_uri(newest_database),
        plugins={
            "extractors": [
                {
                    "name": "tap-postgres",
                    "namespace": "tap_postgres",
                    "pip_url": "meltanolabs-tap-postgres",
                    "executable": "tap-postgres",
                    "capabilities": ["catalog", "state", "discover"],
                    "settings": [
                        {"name": name} for name in ("database", *source, "filter_schemas")
                    ],
                    "config": {
                        "host": source["host"],
                        "port": int(str(source["port"])),
                        "user": source["user"],
                        "password": source["password"],
                        "database": source["dbname"],
                        "filter_schemas": ["shop"],
                    },
                    "metadata": {
                        "shop-orders": {
                            "replication-method": "INCREMENTAL",
                            "replication-key": "updated_at",
                        }
                    },
                }
            ],
            "loaders": [
                {
                    "name": "target-jsonl",
                    "namespace": "target_jsonl",
                    "pip_url": "target-jsonl",
                    "executable": "target-jsonl",
                    "settings": [{"name": "destination_path"}],
                    "config": {"destination_path": str(tmp_path)},
                }
            ],
        },
    )
    project("install")

    run_id = str(uuid.uuid4())
    project("--environment=dev", "run", "--run-id", run_id, "tap-postgres", "target-jsonl")
    assert loaded(tmp_path) == [1, 2, 3]
    [stored] = storage.get_all()
    assert stored.state_id == "dev:tap-postgres-to-target-jsonl"
    assert stored.run_id == run_id
    bookmark = stored.completed_object()["singer_state"]["bookmarks"]["shop-orders"]
    assert bookmark["replication_key_value"].startswith("2026-01-01T03:00")

    newest_database.execute("INSERT INTO shop.orders VALUES (4, '2026-01-02')")
    project("--environment=dev", "run", "tap-postgres", "target-jsonl")
    # At the bookmark itself a row comes again: at least once.
    assert loaded(tmp_path) == [1, 2, 3, 3, 4]
    runs = {version.run_id for version in storage.history(stored.state_id)}
    assert run_id in runs
    assert len(runs) == 2


def loaded(folder: Path) -> list[int]:
    """The IDs, in the order of the runs: each writes a file with its time in the name."""
    files = sorted(folder.glob("*orders*.jsonl"))
    return [json.loads(line)["id"] for file in files for line in file.read_text().splitlines()]


def test_a_run_waits_whenever_its_state_is_unreachable(
    newest_database: Database, storage: StateStorage, tmp_path: Path
) -> None:
    """Meltano makes a backend to read and another to write; the first connection of each waits."""
    project = step_by_step(newest_database, tmp_path)
    first = tmp_path / "begin"
    first.unlink()
    with Proxy(newest_database.dsn) as proxy, ExitStack() as stack:
        uri = state_uri(newest_database, port=conninfo_to_dict(proxy.dsn)["port"])
        behind = project.with_environ(MELTANO_STATE_BACKEND_URI=uri)
        proxy.refuse()
        running = behind.start("--environment=dev", "run", "tap-steps", "target-echo")
        stack.callback(running.kill)
        wait_until(lambda: proxy.refused > 0)
        proxy.flow()

        # The tap begins when the state was read.
        wait_until((tmp_path / "started").exists)
        proxy.refuse()
        refused = proxy.refused
        first.touch()
        wait_until(lambda: proxy.refused > refused)
        proxy.flow()

        wait_for_step(storage, 1)
        newest_database.query(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'meltano state' "
            "AND pid <> pg_backend_pid()"
        )
        (tmp_path / "continue").touch()
        stdout, stderr = running.communicate(timeout=PATIENCE_S)
    said = stdout + stderr
    assert running.returncode == 0, said
    assert step(storage) == 3
    assert said.count("trying again for up to 20 s") == 2, said


def test_a_run_that_is_killed_leaves_its_state_and_blocks_no_one(
    newest_database: Database, storage: StateStorage, tmp_path: Path
) -> None:
    project = step_by_step(newest_database, tmp_path)
    running = project.start("--environment=dev", "run", "tap-steps", "target-echo")
    try:
        wait_for_step(storage, 1)
    finally:
        running.kill()
    running.communicate(timeout=PATIENCE_S)
    with storage.lock(STEPS):
        storage.merge(STEPS, {"singer_state": {"bookmarks": {"steps": {"more": 1}}}})
    stored = storage.get(STEPS)
    assert stored is not None
    assert stored.merged() == {"singer_state": {"bookmarks": {"steps": {"id": 1, "more": 1}}}}
    (tmp_path / "continue").touch()


def test_a_run_whose_state_cannot_be_written_ends_before_it_loads_anything(
    newest_database: Database, storage: StateStorage, tmp_path: Path
) -> None:
    storage.migrate()
    project = step_by_step(newest_database, tmp_path)
    (tmp_path / "continue").touch()
    with role(newest_database, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}") as login:
        uri = state_uri(newest_database, user=login[0], password=login[1])
        reader = project.with_environ(MELTANO_STATE_BACKEND_URI=uri)
        said = reader.fails("--environment=dev", "run", "tap-steps", "target-echo")
    assert "states can't be written" in said
    assert 'no INSERT on "public"."meltano_state"' in said
    assert "Traceback" not in said
    assert storage.list_ids() == []


STEPS = "dev:tap-steps-to-target-echo"


def step_by_step(database: Database, folder: Path) -> MeltanoProject:
    def plugin(name: str, script: str, **more: Any) -> dict[str, Any]:
        # The interpreter of the tests, also where `python3` is another.
        wrapper = folder / name
        wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SUPPORT / script}" "$@"\n')
        wrapper.chmod(0o755)
        namespace = name.replace("-", "_")
        return {"name": name, "namespace": namespace, "executable": str(wrapper), **more}

    tap = plugin(
        "tap-steps",
        "tap_step_by_step.py",
        capabilities=["state"],
        settings=[{"name": "folder"}],
        config={"folder": str(folder)},
    )
    (folder / "begin").touch()
    plugins = {"extractors": [tap], "loaders": [plugin("target-echo", "target_echo.py")]}
    return MeltanoProject.create(folder / "project", state_uri(database), plugins=plugins)


def step(storage: StateStorage) -> int | None:
    stored = storage.get(STEPS)
    return stored.merged()["singer_state"]["bookmarks"]["steps"]["id"] if stored else None


def wait_for_step(storage: StateStorage, wanted: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while step(storage) != wanted:
        assert time.monotonic() < deadline, "no state came"
        time.sleep(0.02)
