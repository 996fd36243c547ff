"""`etl-dagster state`: list states and who wrote them, restore earlier ones, import others."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from etl_dagster.cli.app import cli
from etl_dagster.integrations.meltano.states.storage import StateStorage
from tests.support.database import Database, make_config
from tests.support.leaks import make_secret
from tests.support.meltano import open_storage, state_uri

SECRET = make_secret("geheim")
EXACT = '{"singer_state":  {"x": 1E5, "nul": "\\u0000"}}'

Run = Callable[..., Result]


@pytest.fixture
def run(newest_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls `etl-dagster state` with the states in the database's public schema."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MELTANO_STATE_BACKEND_URI", state_uri(newest_database))

    def invoke(*arguments: str, code: int | tuple[int, ...] = 0) -> Result:
        result = CliRunner().invoke(cli, ["state", *arguments])
        assert result.exit_code in (code if isinstance(code, tuple) else (code,)), result.output
        return result

    return invoke


@pytest.fixture
def storage(newest_database: Database) -> StateStorage:
    return open_storage(newest_database)


def test_states_are_listed_and_printed(run: Run, storage: StateStorage) -> None:
    storage.set("dev:a", completed=EXACT, partial={"p": 1})
    storage.set("prod:a", completed={"n": 2})

    assert [line.split()[0] for line in run("list").stdout.splitlines()[1:]] == ["dev:a", "prod:a"]
    assert json.loads(run("list", "p*", "--json").stdout)[0]["state_id"] == "prod:a"
    assert run("list", "x*").stdout == ""
    assert json.loads(run("get", "dev:a").stdout)["p"] == 1
    halves = json.loads(run("get", "dev:a", "--json").stdout)
    assert (halves["partial"], halves["version"]) == ({"p": 1}, 1)
    assert "there is no state 'nope'" in run("get", "nope", code=2).stderr
    exported = run("export", "dev:*").stdout
    assert EXACT in exported
    assert json.loads(exported) == {"dev:a": {"completed": json.loads(EXACT), "partial": {"p": 1}}}
    assert json.loads(run("export", "x*").stdout) == {}


def test_a_corrupt_state_does_not_keep_the_others_from_being_exported(
    run: Run, storage: StateStorage, newest_database: Database
) -> None:
    storage.set("bad", completed={"n": 1})
    storage.set("good", completed={"n": 2})
    newest_database.execute("update meltano_state set completed_state = '{oo' where state_id='bad'")

    assert "bad" in run("list").stdout
    exported = run("export", code=1)

    assert json.loads(exported.stdout) == {"good": {"completed": {"n": 2}, "partial": {}}}
    assert "'bad' is not JSON" in exported.stderr


def test_an_earlier_version_is_shown_first_and_restored_with_yes(
    run: Run, storage: StateStorage
) -> None:
    storage.set("a", completed=EXACT)
    storage.set("a", completed={"singer_state": {"x": 2}})
    storage.delete("a")

    history = json.loads(run("history", "a", "--json").stdout)
    assert [version["operation"] for version in history] == ["delete", "set", "set"]
    assert run("history", "a").stdout.splitlines()[1].startswith("3 ")
    assert "+ completed.singer_state.x: 2" in run("diff", "a", "1", "2").stdout
    assert json.loads(run("diff", "a", "1", "2", "--json").stdout)[0]["after"] is None

    shown = run("restore", "a", "1", "--dry-run").stdout
    assert "+ completed.singer_state.x: 100000.0" in shown
    assert "Dry run: nothing changed" in shown
    assert storage.get("a") is None
    run("restore", "a", "1", "--yes")
    stored = storage.get("a")
    assert stored is not None
    assert stored.completed == EXACT
    assert "no version 9" in run("restore", "a", "9", code=2).stderr


def test_clearing_names_what_it_clears_and_needs_yes(run: Run, storage: StateStorage) -> None:
    for state_id in ("dev:a", "dev:b", "prod:a"):
        storage.set(state_id, completed={"n": 1})
    assert "clear  dev:a" in run("clear", "--pattern", "dev:*", code=2).stdout
    assert len(storage.list_ids()) == 3
    run("clear", "--pattern", "dev:*", "--yes")
    assert storage.list_ids() == ["prod:a"]
    assert "no state dev:a" in run("clear", "dev:a", "--yes", code=2).stderr
    assert "No state matches 'dev:*'" in run("clear", "--pattern", "dev:*", "--yes").stdout
    run("clear", code=2)


def test_locks_are_listed_with_their_owner(run: Run, storage: StateStorage) -> None:
    storage.migrate()
    with storage.run_lease("a"):
        [row] = json.loads(run("locks", "--json").stdout)
        assert (row["state_id"], row["kind"]) == ("a", "run")
        assert row["owner"] in run("locks").stdout


def test_meltanos_system_database_is_imported_verbatim(
    run: Run, storage: StateStorage, tmp_path: Path
) -> None:
    pytest.importorskip("sqlalchemy")
    with sqlite3.connect(tmp_path / "meltano.db") as system:
        system.execute(
            "CREATE TABLE state (state_id TEXT PRIMARY KEY, updated_at TEXT, partial_state TEXT, "
            "completed_state TEXT)"
        )
        rows = [("dev:a", "null", EXACT), ("dev:b", '{"p": 1}', None), ("dev:c", None, None)]
        system.executemany("INSERT INTO state VALUES (?, NULL, ?, ?)", rows)
    system.close()
    storage.set("dev:b", completed={"n": 1})
    source = "sqlite:///meltano.db"

    shown = run("import", "--from", source, "--dry-run").stdout
    assert "3 states at the source: 2 new, 1 replace, 0 same, 0 keep." in shown
    assert storage.list_ids() == ["dev:b"]
    only_new = run("import", "--from", source, "--only-new", "--dry-run").stdout
    assert "2 new, 0 replace, 0 same, 1 keep" in only_new
    assert "Imported 3 states" in run("import", "--from", source, "--yes").stdout
    stored = storage.get("dev:a")
    assert stored is not None
    assert (stored.completed, stored.partial) == (EXACT, None)
    assert "0 new, 0 replace, 3 same" in run("import", "--from", source, "--yes").stdout
    assert stored == storage.get("dev:a")


@pytest.mark.parametrize("sqlalchemy_uri", [False, True])
def test_another_backends_table_is_imported(
    run: Run, storage: StateStorage, newest_database: Database, sqlalchemy_uri: bool
) -> None:
    newest_database.execute(
        "CREATE SCHEMA old; CREATE TABLE old.state (state_id varchar(900) PRIMARY KEY, "
        "updated_at timestamp, partial_state text, completed_state text)",
        f"INSERT INTO old.state VALUES ('dev:a', NULL, NULL, '{EXACT}')",
    )
    source = state_uri(newest_database, "old")
    for wrong in ("tpyo", "of_something_else"):
        newest_database.execute("CREATE TABLE IF NOT EXISTS old.of_something_else (id int)")
        refused = run("import", "--from", source, "--table", wrong, code=2).stderr
        assert f"schema old has no table '{wrong}' of states" in refused
        assert "Name the table with --table" in refused
    if sqlalchemy_uri:
        newest_database.execute(
            f"ALTER DATABASE {newest_database.name} SET search_path = old, public"
        )
        source = state_uri(newest_database).replace("postgres://", "postgresql+psycopg://")
    run("import", "--from", source, "--yes")
    [stored] = storage.get_all()
    assert stored.completed == EXACT


def test_any_backend_that_meltano_knows_is_imported(
    run: Run, storage: StateStorage, tmp_path: Path
) -> None:
    pytest.importorskip("meltano")
    from meltano.core.state_store.base import MeltanoState
    from meltano.core.state_store.filesystem import LocalFilesystemStateStoreManager

    files = LocalFilesystemStateStoreManager(
        uri=(tmp_path / "files").as_uri(), lock_timeout_seconds=10
    )
    files.update(MeltanoState("dev:a", {"p": 1}, json.loads(EXACT)))
    result = run("import", "--from", (tmp_path / "files").as_uri(), "--yes")
    assert "Imported 1 state." in result.stdout
    [stored] = storage.get_all()
    assert stored.merged() == {**json.loads(EXACT), "p": 1}
    assert "No state backend found" in run("import", "--from", "nope://x", code=2).stderr


def test_exported_states_can_be_imported(run: Run, storage: StateStorage, tmp_path: Path) -> None:
    (tmp_path / "states.json").write_text(f'{{"a": {{"completed": {EXACT}, "partial": null}}}}')
    # Looking makes no tables.
    assert "1 new" in run("import", "--from", "states.json", "--dry-run").stdout
    assert "are missing" in run("list", code=2).stderr
    run("import", "--from", "states.json", "--yes")
    assert storage.list_ids() == ["a"]
    (tmp_path / "states.json").write_text("[1]")
    assert "not what `meltano" in run("import", "--from", "states.json", code=2).stderr
    (tmp_path / "states.json").write_text('{"b": {"completed": {}}, "c": {"completed": [1]}}')
    assert "'c'" in run("import", "--from", "states.json", "--yes", code=2).stderr
    assert "'c'" in run("import", "--from", "states.json", code=2).stderr
    assert storage.list_ids() == ["a"]


def test_without_a_uri_the_states_are_in_the_state_store_of_etl_yaml(
    run: Run, newest_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MELTANO_STATE_BACKEND_URI")
    assert "there is no --uri" in run("list", code=2).stderr
    config = make_config(newest_database, tmp_path)
    content: dict[str, Any] = {
        "pipeline": config.pipeline,
        "source": {"dsn": newest_database.dsn, "publication": "p"},
        "state_store": {"schema": "mine"},
        "destination": {"type": "memory"},
    }
    (tmp_path / "etl.yaml").write_text(json.dumps(content))
    assert "schema 'mine' does not exist" in run("list", code=2).stderr
    open_storage(newest_database, "mine", create_schema=True).set("a", completed={"n": 1})
    assert run("list").stdout.splitlines()[1].startswith("a ")

    # Where positions are mirrored to another place, that is where to look.
    open_storage(newest_database, "other", create_schema=True).set("b", completed={"n": 1})
    content["meltano"] = {"state_backend": state_uri(newest_database, "other")}
    (tmp_path / "etl.yaml").write_text(json.dumps(content))
    assert run("list").stdout.splitlines()[1].startswith("b ")
    content["state_store"] = {"type": "memory"}
    (tmp_path / "etl.yaml").write_text(json.dumps(content))
    assert run("list").stdout.splitlines()[1].startswith("b ")
    content["meltano"] = {}
    (tmp_path / "etl.yaml").write_text(json.dumps(content))
    assert "or set meltano.state_backend" in run("list", code=2).stderr


def test_failures_do_not_reveal_the_password(run: Run, newest_database: Database) -> None:
    uris = [
        state_uri(newest_database, password=SECRET),
        f"postgres://u:{SECRET}@x@h/db",
        f"postgres://u:{SECRET}@127.0.0.1:1/db",
    ]
    sources = [
        *uris,
        f"mysql+nope://u:{SECRET}@h/db",
        f"postgresql+psycopg://u:{SECRET}@127.0.0.1:1/d",
    ]
    for arguments in [
        *(["list", "--uri", uri] for uri in uris),
        *(["import", "--from", source] for source in sources),
    ]:
        said = run(*arguments, code=(1, 2))
        assert "What to do:" in said.stderr
        assert SECRET not in said.output
