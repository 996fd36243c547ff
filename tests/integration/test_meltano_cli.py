"""The real `meltano` command with states in a real Postgres, in the newest version and in 4.2."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from etl_dagster.integrations.meltano.states.storage import StateStorage, locate
from tests.support.database import Database
from tests.support.leaks import make_secret
from tests.support.meltano import MELTANO, MeltanoProject, open_storage, role, state_uri

pytestmark = pytest.mark.slow

pytest.importorskip("meltano")

ROOT = Path(__file__).parents[2]
SECRET = make_secret("ge heim@/:#")
STATE = {"singer_state": {"bookmarks": {"orders": {"id": 7, "note": "\0 \ud800 ü", "n": 1e308}}}}


@pytest.fixture
def project(newest_database: Database, tmp_path: Path) -> MeltanoProject:
    newest_database.execute("CREATE SCHEMA states")
    return MeltanoProject.create(tmp_path / "project", state_uri(newest_database, "states"))


@pytest.fixture
def storage(newest_database: Database) -> Iterator[StateStorage]:
    opened = open_storage(newest_database, "states")
    yield opened
    opened.close()


def test_a_corrupt_state_does_not_end_the_list_of_all(
    project: MeltanoProject, storage: StateStorage, newest_database: Database
) -> None:
    storage.set("bad", completed={"n": 1})
    storage.set("good", completed={"n": 1})
    newest_database.execute(
        "update states.meltano_state set partial_state = '{oops' where state_id = 'bad'"
    )

    assert project("state", "list").split() == ["bad", "good"]
    assert "'bad' is not JSON" in project.fails("state", "get", "bad")
    assert json.loads(project("state", "get", "good")) == {"n": 1}


def test_the_state_commands_do_what_meltano_documents(
    project: MeltanoProject, storage: StateStorage, tmp_path: Path
) -> None:
    def get(state_id: str) -> object:
        return json.loads(project("state", "get", state_id))

    with storage.run_lease("dev:a-to-b"):
        done = project.run("state", "set", "--force", "dev:a-to-b", json.dumps(STATE))
    # A run continues from what it has read.
    assert "'dev:a-to-b' is in use by a run of" in done.stdout + done.stderr
    assert get("dev:a-to-b") == STATE
    assert storage.list_ids() == ["dev:a-to-b"]

    project("state", "merge", "--from-state-id", "dev:a-to-b", "dev:c-to-b")
    [merged] = storage.get_all("dev:c*")
    assert (merged.completed, merged.partial_object()) == (None, STATE)

    project("state", "copy", "--force", "dev:a-to-b", "dev_a-to-b")
    project("state", "move", "--force", "dev:c-to-b", "prod:c-to-b")
    assert project("state", "list").split() == ["dev:a-to-b", "dev_a-to-b", "prod:c-to-b"]
    # _ is not a wildcard, [..] is one.
    assert project("state", "list", "--pattern", "dev_*").split() == ["dev_a-to-b"]
    assert project("state", "list", "--pattern", "[dp]*:?-to-b").split() == [
        "dev:a-to-b",
        "prod:c-to-b",
    ]

    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/7/8/' \"$1\"\n")
    editor.chmod(0o755)
    project.with_environ(EDITOR=str(editor))("state", "edit", "--force", "dev_a-to-b")
    assert json.dumps(get("dev_a-to-b")) == json.dumps(STATE).replace("7", "8")

    exported = project("state", "export")
    assert json.loads(exported)["dev:a-to-b"] == {"completed": STATE, "partial": {}}
    (tmp_path / "states.json").write_text(exported)
    project("state", "clear", "--force", "dev:a-to-b")
    assert storage.list_ids() == ["dev_a-to-b", "prod:c-to-b"]
    project("state", "clear", "--force", "--all")
    assert storage.list_ids() == []
    project("state", "import", str(tmp_path / "states.json"))
    assert json.loads(project("state", "export")) == json.loads(exported)
    assert storage.locks() == []


def test_the_documented_settings_reach_the_server(
    newest_database: Database, tmp_path: Path
) -> None:
    """Parts as settings, under either namespace, above a URI that says otherwise."""
    newest_database.execute("CREATE SCHEMA my_schema")
    parts = locate(state_uri(newest_database)).parameters
    project = MeltanoProject.create(
        tmp_path,
        "",
        state_backend={
            "uri": "postgres://nowhere.invalid/nothing",
            "postgres": {
                "host": parts["host"],
                "port": int(parts["port"]),
                "user": parts["user"],
                "database": newest_database.name,
                "schema": "my_schema",
                "sslmode": "prefer",
            },
            "postgresql": {"state_table": "kept_here"},
        },
    ).with_environ(MELTANO_STATE_BACKEND_POSTGRES_PASSWORD=parts["password"])
    project("state", "set", "--force", "custom id", json.dumps(STATE))
    assert newest_database.query("SELECT state_id FROM my_schema.kept_here") == [("custom id",)]

    other = project.with_environ(MELTANO_STATE_BACKEND_URI="postgresql://")
    assert other("state", "list").split("\n")[0] == "custom id"


def test_upgrade_creates_the_tables(project: MeltanoProject, newest_database: Database) -> None:
    project("upgrade", "--skip-package")
    rows = newest_database.query("SELECT tablename FROM pg_tables WHERE schemaname = 'states'")
    assert {"meltano_state", "meltano_state_locks"} <= {name for (name,) in rows}


def test_failures_are_one_line_with_what_to_do_and_without_a_traceback(
    project: MeltanoProject, newest_database: Database
) -> None:
    uri = state_uri(newest_database, "states")
    wrong_password = state_uri(newest_database, "states", password=SECRET)
    cases = [
        (wrong_password, "password authentication failed", "~/.pgpass"),
        (f"{uri}_typo", "schema 'states_typo' does not exist", 'CREATE SCHEMA "states_typo"'),
        (state_uri(newest_database, password=SECRET, port=1), "can't be reached", "server is up"),
        ("postgres://u:ge@heim@h/db", "more than one @", "percent-encoded"),
    ]
    commands = [["list"], ["get", "x"], ["set", "--force", "x", json.dumps(STATE)], ["list"]]
    # `set` is the one that writes without reading first.
    for (wrong, reason, instruction), command in zip(cases, commands, strict=True):
        said = project.with_environ(MELTANO_STATE_BACKEND_URI=wrong).fails("state", *command)
        assert reason in said
        assert instruction in said
        assert "Traceback" not in said
        assert not re.search(r"ge ?heim|ge%20heim|ge@heim", said)


def test_a_write_that_fails_says_why_and_changes_nothing(
    project: MeltanoProject, storage: StateStorage, newest_database: Database
) -> None:
    storage.set("dev:a-to-b", completed={"singer_state": {"n": 1}})
    grants = (
        "GRANT USAGE ON SCHEMA states TO {role}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA states TO {role}",
    )
    with role(newest_database, *grants) as (user, password):
        reader = project.with_environ(
            MELTANO_STATE_BACKEND_URI=state_uri(
                newest_database, "states", user=user, password=password
            )
        )
        assert json.loads(reader("state", "get", "dev:a-to-b")) == {"singer_state": {"n": 1}}
        for command, *content in (
            (["clear", "--force"],),
            (["set", "--force"], json.dumps(STATE)),
            (["merge"], json.dumps(STATE)),
            (["copy", "--force"], "dev:c-to-d"),
            (["move", "--force"], "dev:c-to-d"),
        ):
            said = reader.fails("state", *command, "dev:a-to-b", *content)
            assert "permission denied" in said
            assert "GRANT SELECT, INSERT, UPDATE, DELETE" in said
            assert "Traceback" not in said
            assert password not in said
    newest_database.execute("UPDATE states.meltano_state SET completed_state = '{oops'")
    said = project.fails("state", "get", "dev:a-to-b")
    assert "the completed state stored for 'dev:a-to-b' is not JSON" in said
    assert "etl-dagster state history" in said
    assert "Traceback" not in said
    assert "oops" not in said


def test_meltano_4_2_works_as_well(project: MeltanoProject, storage: StateStorage) -> None:
    old = MeltanoProject(project.folder, project.environ, meltano_4_2())
    assert "4.2." in old("--version")
    old("state", "set", "--force", "dev:a-to-b", json.dumps(STATE))
    old("state", "merge", "--from-state-id", "dev:a-to-b", "dev:c-to-b")
    assert json.loads(old("state", "get", "dev:c-to-b")) == STATE
    assert old("state", "list", "--pattern", "dev:[ac]*").split() == ["dev:a-to-b", "dev:c-to-b"]
    old("state", "move", "--force", "dev:c-to-b", "dev:d-to-b")
    old("state", "clear", "--force", "dev:a-to-b")
    assert storage.list_ids() == ["dev:d-to-b"]
    said = old.with_environ(MELTANO_STATE_BACKEND_POSTGRES_PASSWORD=SECRET).fails("state", "list")
    assert "password authentication failed" in said
    assert "Traceback" not in said


def meltano_4_2() -> Path:
    """Its console script, in an environment that is made once for this checkout and interpreter."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # An editable install doesn't follow changes of the entry points.
    entry_points = (ROOT / "pyproject.toml").read_text("utf-8")
    key = hashlib.sha256(f"{ROOT}\0{os.getuid()}\0{entry_points}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir())
    folder = cache / f"etl-dagster-tests-{key}-meltano-4.2-py{version}"
    uv = MELTANO.with_name("uv")
    python = folder / "bin" / "python"
    script = folder / "bin" / "meltano"
    with FileLock(f"{folder}.lock", timeout=300):
        if not script.exists():
            # Compiled, since each command would do it again where Python may not write.
            install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
            for command in (
                [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder],
                # Of what this package needs, the backend needs no more than this.
                [*install, "psycopg[binary]>=3.2"],
                [*install, "--no-deps", "-e", ROOT],
                # Last: its script says that all of it is there.
                [*install, "meltano>=4.2,<4.3"],
            ):
                subprocess.run(command, check=True, timeout=300)
    return script
