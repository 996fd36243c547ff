"""`meltano run` as assets: the real console script, a real tap, a real target, a real Postgres."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from dagster import (
    AssetKey,
    AssetsDefinition,
    EnvVar,
    ExecuteInProcessResult,
    materialize,
)

from etl_dagster.errors import InvalidState
from etl_dagster.integrations.dagster_meltano import (
    CatalogUnknown,
    MeltanoError,
    MeltanoResource,
    MeltanoStateResource,
    meltano_assets,
)
from etl_dagster.integrations.dagster_meltano.process import follow
from etl_dagster.integrations.meltano.states.errors import StateLocked, StateLockLost
from etl_dagster.integrations.meltano.states.storage import StateStorage
from etl_dagster.integrations.meltano.states.uri import locate
from tests.support.dagster_in_process import searched_instance
from tests.support.database import Database
from tests.support.forked import PIPE, Forked
from tests.support.leaks import make_secret
from tests.support.singer import write_program, write_project
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.slow

STEP = "tap_fruit_to_target_basket"
STATE_ID = "dev:tap-fruit-to-target-basket"
APPLES, PEARS = AssetKey(["tap_fruit", "apples"]), AssetKey(["tap_fruit", "pears"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRUIT_LOG", str(tmp_path / "fruit.log"))
    return write_project(tmp_path)


@pytest.fixture
def state_uri(newest_database: Database, monkeypatch: pytest.MonkeyPatch) -> str:
    server = newest_database.server
    uri = (
        f"postgresql://postgres:{server.password}@{server.host}:{server.port}/"
        f"{newest_database.name}/public"
    )
    monkeypatch.setenv("ORCHARD_STATE", uri)
    return uri


def orchard(folder: Path, **more: Any) -> MeltanoResource:
    return MeltanoResource(
        project_dir=str(folder), state_backend_uri=EnvVar("ORCHARD_STATE"), **more
    )


def fruit(folder: Path, env: dict[str, str] | None = None, **more: Any) -> AssetsDefinition:
    return meltano_assets(
        orchard(folder, env=env or {}),
        "tap-fruit",
        "target-basket",
        # The tap is not asked where it doesn't matter: a second less.
        **({"streams": ["apples", "pears"]} | more),
    )


def storage_of(uri: str) -> StateStorage:
    return StateStorage(locate(uri))


def metadata(result: ExecuteInProcessResult, key: AssetKey) -> dict[str, Any]:
    (event,) = (
        event.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key == key
    )
    return {name: value.value for name, value in event.metadata.items()}


def until(what: str, look: Callable[[], Any]) -> Any:
    """Poll: the work is done by another process, which sends no signal."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"waiting for {what}"
        time.sleep(0.05)
    return found


def runs(folder: Path) -> list[tuple[str, str]]:
    """State and run ID of Meltano's own runs, in its system database."""
    with sqlite3.connect(folder / ".meltano" / "meltano.db") as database:
        return [
            (state, run_id.replace("-", ""))
            for state, run_id in database.execute("select state, run_id from runs order by id")
        ]


def test_a_run_shows_its_records_and_the_bookmark_before_and_after(
    folder: Path, state_uri: str
) -> None:
    assets = fruit(folder, {"FRUIT_ROWS": "2"})
    with searched_instance() as instance:
        first = materialize([assets], instance=instance)
        run = instance.get_run_by_id(first.run_id)
        assert run is not None
        assert run.tags["meltano/state_id"] == STATE_ID
        after = {"singer_state": {"bookmarks": {"apples": {"id": 2}, "pears": {"id": 2}}}}
        assert json.loads(run.tags["meltano/state"]) == after
        logged = [
            entry.user_message
            for entry in instance.all_logs(first.run_id)
            if entry.level == 20 and entry.user_message
        ]
    assert any("Run completed" in line for line in logged)
    assert not any("METRIC" in line for line in logged)
    shown = metadata(first, APPLES)
    assert shown["meltano/state_id"] == STATE_ID
    assert shown["meltano/run_id"] == first.run_id
    assert shown["records_extracted"] == 2
    assert shown["meltano/state"] == {"singer_state": {"bookmarks": {"apples": {"id": 2}}}}
    assert "meltano/state_before" not in shown
    assert shown["warnings"] == 1  # Meltano's: no state was found
    assert runs(folder) == [("SUCCESS", first.run_id.replace("-", ""))]

    # Only one stream: the other keeps its bookmark.
    second = materialize(
        [fruit(folder, {"FRUIT_ROWS": "5"})], selection=[PEARS], raise_on_error=False
    )
    shown = metadata(second, PEARS)
    assert shown["records_extracted"] == 3
    assert shown["meltano/state_before"]["singer_state"]["bookmarks"] == {"pears": {"id": 2}}
    assert shown["meltano/state"]["singer_state"]["bookmarks"] == {"pears": {"id": 5}}
    stored = storage_of(state_uri).get(STATE_ID)
    assert stored is not None
    assert stored.run_id == second.run_id
    bookmarks = stored.merged()["singer_state"]["bookmarks"]
    assert bookmarks == {"apples": {"id": 2}, "pears": {"id": 5}}

    # The launchpad's choice: everything again.
    third = materialize(
        [fruit(folder, {"FRUIT_ROWS": "5"})],
        run_config={"ops": {STEP: {"config": {"full_refresh": True}}}},
    )
    shown = metadata(third, PEARS)
    assert (shown["full_refresh"], shown["records_extracted"]) == (True, 5)


def test_a_run_that_fails_says_why_and_keeps_what_was_written(folder: Path, state_uri: str) -> None:
    failed = materialize([fruit(folder, {"FRUIT_FAILS": "1"})], raise_on_error=False)
    assert not failed.success
    (failure,) = failed.get_step_failure_events()
    described = failure.step_failure_data.user_failure_data
    assert described is not None
    assert "ended with exit code 1" in (described.description or "")
    assert "What to do:" in (described.description or "")
    assert storage_of(state_uri).get(STATE_ID) is not None


def test_a_run_whose_state_was_not_written_fails_whatever_meltanos_exit_code(
    newest_database: Database, folder: Path, state_uri: str
) -> None:
    """When the write fails while the plugins end, Meltano logs it and ends with 0."""
    storage_of(state_uri).migrate()
    newest_database.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no states today'; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON meltano_state FOR EACH ROW EXECUTE "
        "FUNCTION refuse()",
    )
    # Whether Meltano does is a race; this program always does.
    program = folder / "meltano-that-ends-well"
    program.write_text(f'#!/bin/sh\n"{Path(sys.executable).parent}/meltano" "$@"\nexit 0\n')
    program.chmod(0o755)
    failed = materialize(
        [
            meltano_assets(
                orchard(folder, executable=str(program)),
                "tap-fruit",
                "target-basket",
                streams=["apples", "pears"],
            )
        ],
        raise_on_error=False,
    )
    assert not failed.success
    (failure,) = failed.get_step_failure_events()
    described = failure.step_failure_data.user_failure_data
    assert described is not None
    assert "exit code 0, but not every state was written" in (described.description or "")
    assert "no states today" in (described.description or "")
    assert failed.get_asset_materialization_events() == []


class Waiting:
    """A run in a process of its own, whose tap waits behind its gate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = folder / "gate"
        self.process = Forked(
            f"{__name__}:run_fruit",
            (__name__,),
            ["run_fruit", str(folder)],
            cwd=Path.cwd(),
            environ=os.environ | {"FRUIT_GATE": str(self.gate)},
            stdout=PIPE,
        )
        until("the tap", Path(f"{self.gate}.reached").exists)

    def open(self) -> None:
        self.gate.touch()

    def meltano(self) -> list[psutil.Process]:
        """The processes of Meltano and its plugins."""
        run = psutil.Process(self.process.pid)

        def all_of_them() -> list[psutil.Process]:
            found = run.children(recursive=True)
            return found if len(found) >= 4 else []

        return until("Meltano and its plugins", all_of_them)


def run_fruit() -> bool:
    """What the process of `Waiting` runs; its exit code."""
    return not materialize([fruit(Path(sys.argv[1]))], raise_on_error=False).success


@pytest.fixture
def waiting(folder: Path, state_uri: str) -> Iterator[Waiting]:
    run = Waiting(folder)
    try:
        yield run
    finally:
        run.open()
        run.process.kill()
        run.process.communicate(timeout=PATIENCE_S)


def test_a_terminated_run_leaves_neither_a_lock_nor_a_running_run(
    waiting: Waiting, state_uri: str, folder: Path
) -> None:
    children = waiting.meltano()
    # As Dagster does it when a run is terminated.
    waiting.process.send_signal(signal.SIGINT)
    output, _ = waiting.process.communicate(timeout=PATIENCE_S)
    assert not [child for child in children if child.is_running()], output
    assert [state for state, _ in runs(folder)] == ["FAIL"]
    assert storage_of(state_uri).locks() == []
    # The next one begins at once.
    assert materialize([fruit(folder)]).success


def test_a_killed_step_takes_meltano_with_it(
    waiting: Waiting, state_uri: str, folder: Path
) -> None:
    children = waiting.meltano()
    waiting.process.kill()
    waiting.process.wait(PATIENCE_S)
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert not alive
    assert [state for state, _ in runs(folder)] == ["FAIL"]


def test_a_second_run_of_a_state_is_refused_and_names_the_first(
    waiting: Waiting, folder: Path, state_uri: str
) -> None:
    refused = materialize([fruit(folder, lease_wait_s=0.0)], raise_on_error=False)
    assert not refused.success
    (failure,) = refused.get_step_failure_events()
    described = failure.step_failure_data.user_failure_data
    assert described is not None
    assert str(waiting.process.pid) in (described.description or "")
    # It was refused before Meltano was called at all.
    assert len(runs(folder)) == 1


def test_a_second_run_of_a_state_waits_for_the_first(
    waiting: Waiting, folder: Path, newest_database: Database
) -> None:
    """Also where they don't share Meltano's system database, which would refuse it."""
    elsewhere = folder.parent / "another machine"
    elsewhere.mkdir()
    other = write_project(elsewhere)
    results: list[ExecuteInProcessResult] = []

    def run() -> None:
        results.append(materialize([fruit(other, {"FRUIT_ROWS": "5"})], raise_on_error=False))

    second = threading.Thread(target=run)
    second.start()
    until(
        "the second to wait",
        lambda: newest_database.query("select from meltano_state_locks where awaited"),
    )
    waiting.open()
    second.join(PATIENCE_S)
    (result,) = results
    # It began where the first had ended.
    assert metadata(result, APPLES)["meltano/state_before"] == {
        "singer_state": {"bookmarks": {"apples": {"id": 3}}}
    }
    assert metadata(result, APPLES)["records_extracted"] == 2


def test_a_state_that_others_changed_meanwhile_is_named(folder: Path, state_uri: str) -> None:
    """The run overwrites it; a person who cleared a state must not learn that only by chance."""
    gate = folder / "gate"

    def change() -> None:
        until("the tap", Path(f"{gate}.reached").exists)
        storage_of(state_uri).set(STATE_ID, completed={"singer_state": {}})
        gate.touch()

    person = threading.Thread(target=change)
    person.start()
    with searched_instance() as instance:
        run = materialize([fruit(folder, {"FRUIT_GATE": str(gate)})], instance=instance)
        said = [entry.user_message for entry in instance.all_logs(run.run_id)]
    person.join()
    (warning,) = (text for text in said if "changed the state" in text)
    assert f":{os.getpid()} changed the state of {STATE_ID} (set, version 1 of" in warning


def test_a_lease_that_is_lost_ends_the_run(tmp_path: Path) -> None:
    """A lease is renewed every 20 s; here the check for it runs without that wait."""
    told: list[str] = []

    def require() -> None:
        if told:
            raise StateLockLost("the run lease is no longer held by this process")

    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(StateLockLost):
        follow(
            [sys.executable, "-c", program],
            folder=tmp_path,
            environ=os.environ,
            on_line=told.append,
            require=require,
        )
    assert not psutil.pid_exists(int(told[0]))


def test_the_tap_is_asked_for_its_streams_once(folder: Path, state_uri: str) -> None:
    log = folder.parent / "fruit.log"
    first = fruit(folder, streams=None)
    assert first.keys == {APPLES, PEARS}
    spec = first.specs_by_key[APPLES]
    assert spec.metadata["meltano/replication_key"] == "id"
    columns = spec.metadata["dagster/column_schema"].columns
    assert [(c.name, c.type, c.constraints.nullable) for c in columns] == [
        ("id", "integer", False),
        ("picked_at", "string (date-time)", True),
    ]
    assert log.read_text().count("discovered") == 1
    assert fruit(folder, streams=None).keys == first.keys
    assert log.read_text().count("discovered") == 1
    asked_again = {"ops": {STEP: {"config": {"refresh_catalog": True}}}}
    assert materialize([first], run_config=asked_again).success
    # For the run, and for the definitions' next load.
    assert log.read_text().count("discovered") == 3

    # A changed meltano.yml asks again; a tap that can't answer leaves the last answer.
    (folder / "tap-fruit").unlink()
    with (folder / "meltano.yml").open("a") as file:
        file.write("# a comment\n")
    assert fruit(folder, streams=None).keys == first.keys


def test_a_tap_that_never_answered_is_an_error_that_says_what_to_do(
    folder: Path, state_uri: str
) -> None:
    (folder / "tap-fruit").unlink()
    with pytest.raises(CatalogUnknown) as caught:
        fruit(folder, streams=None)
    assert "`streams`" in caught.value.solution


# -- the state ----------------------------------------------------------------------------------


def test_state_is_the_same_through_the_project_and_through_its_uri(
    folder: Path, state_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = MeltanoStateResource.of_project(orchard(folder))
    alone = MeltanoStateResource(uri=EnvVar("ORCHARD_STATE"))
    with (
        project.process_config_and_initialize_cm() as one,
        alone.process_config_and_initialize_cm() as other,
    ):
        assert one.is_postgres
        assert other.is_postgres
        one.set("dev:a", {"singer_state": {"bookmarks": {"s": {"id": 1}}}})
        other.merge("dev:a", {"singer_state": {"bookmarks": {"t": {"id": 2}}}})
        assert one.get("dev:a") == {"singer_state": {"bookmarks": {"s": {"id": 1}, "t": {"id": 2}}}}
        assert other.export("dev:*") == {
            "dev:a": {
                "completed": {"singer_state": {"bookmarks": {"s": {"id": 1}}}},
                "partial": {"singer_state": {"bookmarks": {"t": {"id": 2}}}},
            }
        }
        one.clear("dev:a")
        assert other.list() == []
        deleted, _, first = other.history("dev:a")
        assert (deleted.operation, first.version) == ("delete", 1)
        other.restore("dev:a", 1)
        assert one.get("dev:a") == {"singer_state": {"bookmarks": {"s": {"id": 1}}}}
        with one.run_lease("dev:a"), pytest.raises(StateLocked), other.run_lease("dev:a"):
            pass
        with pytest.raises(InvalidState, match="singer_state"):
            one.set("dev:a", {"bookmarks": {}})
        password = state_uri.split(":")[2].partition("@")[0]
        assert password not in repr(one) + repr(other) + repr(orchard(folder))


def test_a_project_with_another_state_backend_is_asked_with_its_own_commands(
    folder: Path,
) -> None:
    resource = MeltanoStateResource(project_dir=str(folder))
    state = {"singer_state": {"bookmarks": {"s": {"text": "x" * 200_000}}}}
    with resource.process_config_and_initialize_cm() as states:
        assert not states.is_postgres
        states.set("dev:a", state)
        assert states.list("dev:[ab]") == ["dev:a"]
        assert states.get("dev:a") == state
        assert list(states.export("dev:*")) == ["dev:a"]
        states.clear("dev:a")
        assert states.get("dev:a") is None
        with pytest.raises(InvalidState, match="neither histories nor run leases"):
            states.history("dev:a")


def test_a_failed_command_reveals_no_secret(folder: Path, state_uri: str) -> None:
    secret = make_secret()
    write_program(
        folder / "tap-fruit",
        "import os, sys\n"
        f"sys.exit('cannot log in with ' + os.environ['TAP_FRUIT_DSN'] + ' and {secret}')",
    )
    broken = MeltanoResource(
        project_dir=str(folder), env={"TAP_FRUIT_DSN": f"mysql://me:{secret}@host/shop"}
    )
    with pytest.raises(MeltanoError) as caught:
        broken.command("invoke", "tap-fruit")
    assert "cannot log in with ***" in caught.value.reason
    assert secret not in caught.value.reason
