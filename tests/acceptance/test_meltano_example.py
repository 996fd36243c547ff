"""The project in `examples/meltano`, as its README says, with everything real."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.integrations.meltano.states.storage import StateStorage
from etl_dagster.integrations.meltano.states.uri import locate
from tests.support.database import Database
from tests.support.leaks import LEAKS
from tests.support.meltano import MeltanoProject
from tests.support.singer import write_program
from tests.support.waiting import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "meltano"
ORDERS, CUSTOMERS = "dev:shop-to-duckdb:public.orders", "dev:shop-to-duckdb:public.customers"
_PROGRAMS = Path(sys.executable).parent


class Example:
    """The folder, and what a person types in it."""

    def __init__(self, folder: Path, shop: Database) -> None:
        self.folder = shutil.copytree(EXAMPLE, folder / "example")
        server = shop.server
        place = f"postgres:{server.password}@{server.host}:{server.port}/{shop.name}"
        self.environ = {
            **os.environ,
            "SHOP_DSN": f"postgresql://{place}",
            "SHOP_STATE_URI": f"postgresql://{place}/etl",
            "SHOP_SQLALCHEMY_URL": f"postgresql+psycopg2://{place}",
            "DAGSTER_HOME": str(folder),
            "DAGSTER_DISABLE_TELEMETRY": "1",
        }
        self._log = (folder / "run.log").open("wb")
        self.pipeline: subprocess.Popen[bytes] | None = None

    def type(self, *command: str, **more: str) -> str:
        program, *arguments = command
        done = subprocess.run(
            [str(_PROGRAMS / program), *arguments],
            cwd=self.folder,
            env=self.environ | more,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        LEAKS.look(done.stdout + done.stderr, f"output of {' '.join(command)}")
        return done.stdout

    def state(self, *arguments: str, **more: str) -> str:
        """What is printed; many of these are typed, and start in less time than a shell's."""
        project = MeltanoProject(self.folder, self.environ | more)
        return project("--log-level", "error", "state", *arguments)

    def bookmark(self, state_id: str) -> dict[str, Any]:
        return _bookmark(json.loads(self.state("get", state_id)))

    def bookmark_when(self, state_id: str, done: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """As `bookmark`, once it is like that; in between the table is asked, which is faster."""
        deadline = time.monotonic() + PATIENCE_S
        with closing(StateStorage(locate(self.environ["SHOP_STATE_URI"]))) as storage:
            while not ((state := storage.get(state_id)) and done(_bookmark(state.merged()))):
                assert time.monotonic() < deadline, f"the last was {state and state.merged()}"
                time.sleep(0.1)
        return self.bookmark(state_id)

    def start(self) -> None:
        self.pipeline = subprocess.Popen(
            [str(_PROGRAMS / "etl-dagster"), "run", "--plain"],
            cwd=self.folder,
            env=self.environ,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def stop(self) -> None:
        if self.pipeline is not None:
            self.pipeline.send_signal(signal.SIGINT)
            assert self.pipeline.wait(PATIENCE_S) == 0
            self.pipeline = None

    def end(self) -> None:
        if self.pipeline is not None:
            self.pipeline.kill()
            self.pipeline.wait(PATIENCE_S)
        self._log.close()


def _bookmark(state: dict[str, Any]) -> dict[str, Any]:
    """The only one, and the mirror's note."""
    (bookmark,) = state["singer_state"]["bookmarks"].values()
    return {**bookmark, "note": state.get("etl_dagster", {}).get("note", "")}


@pytest.fixture
def example(newest_database: Database, tmp_path: Path) -> Iterator[Example]:
    newest_database.execute((EXAMPLE / "shop.sql").read_text())
    example = Example(tmp_path, newest_database)
    try:
        yield example
    finally:
        example.end()


def copies_of(shop: Database, table: str) -> int:
    ((count,),) = shop.query(
        "select count(*) from etl.table_states where state->>'type' = 'finished_copy'"
        " and table_id = to_regclass(%s)::oid",
        [table],
    )
    return int(count)


def is_ready(bookmark: dict[str, Any]) -> bool:
    return bookmark.get("phase") == "ready"


def test_meltanos_own_commands_work_on_a_pipelines_positions(
    example: Example, newest_database: Database
) -> None:
    shop = newest_database
    example.start()
    # The store makes the schema; before, there is no place to ask.
    deadline = time.monotonic() + PATIENCE_S
    while shop.query("select to_regclass('etl.meltano_state')") == [(None,)]:
        assert time.monotonic() < deadline
        time.sleep(0.1)

    for state_id in (ORDERS, CUSTOMERS):
        example.bookmark_when(state_id, is_ready)
    pattern = ("--pattern", "dev:shop-to-duckdb:*")
    listed = example.type("meltano", "--log-level", "error", "state", "list", *pattern)
    assert listed.split() == [CUSTOMERS, ORDERS]
    first = example.bookmark(ORDERS)
    assert first["replication_method"] == "LOG_BASED"
    assert first["rows_copied"] == 500

    # Editing a position: refused, and written back.
    editor = example.folder / "editor"
    write_program(
        editor,
        "import json, sys\n"
        "state = json.load(open(sys.argv[1]))\n"
        "state['singer_state']['bookmarks']['public-orders']['lsn'] = 5\n"
        "json.dump(state, open(sys.argv[1], 'w'))\n",
    )
    example.state("edit", "--force", ORDERS, EDITOR=shlex.quote(str(editor)))
    refused = example.bookmark_when(ORDERS, lambda found: "refused" in found["note"])
    assert refused["lsn"] >= first["lsn"]
    assert "can't go back to 0/5" in refused["note"]

    # Copy and move: the table keeps its ID, and the copy is the user's own.
    example.state("copy", "--force", ORDERS, "dev:kept")
    example.state("move", "--force", ORDERS, "dev:moved")
    moved = example.bookmark_when(ORDERS, is_ready)
    assert "moved to dev:moved" in moved["note"]
    assert example.bookmark("dev:kept")["handover_lsn"] == first["handover_lsn"]

    # Export and import: what was true then is only displayed.
    exported = example.folder / "states.json"
    exported.write_text(example.state("export"))
    shop.execute("INSERT INTO orders VALUES (1000, 1)")
    example.bookmark_when(ORDERS, lambda found: found.get("commit_time"))
    example.state("import", str(exported))
    example.bookmark_when(ORDERS, lambda found: found.get("commit_time"))
    assert copies_of(shop, "orders") == 1

    # Clearing asks for a new copy, of this table and once.
    example.state("clear", "--force", ORDERS)
    example.bookmark_when(
        ORDERS, lambda found: is_ready(found) and found["handover_lsn"] != first["handover_lsn"]
    )
    assert copies_of(shop, "orders") == 2
    assert copies_of(shop, "customers") == 1

    # While nothing runs, the request waits, and can be looked at.
    example.stop()
    example.state("clear", "--force", CUSTOMERS)
    shown = example.type("etl-dagster", "reset", "--from-meltano", "--dry-run")
    assert f"{CUSTOMERS}: its state was cleared; public.customers is copied again" in shown
    example.type("etl-dagster", "run", "--plain", "--until-caught-up")
    assert copies_of(shop, "customers") == 2
    assert is_ready(example.bookmark(CUSTOMERS))
    assert copies_of(shop, "orders") == 2


def test_the_definitions_run_meltano_alongside_the_pipeline(
    example: Example, newest_database: Database
) -> None:
    """A tap and a target from the package index; the positions in an asset of one's own."""
    example.type("etl-dagster", "run", "--plain", "--until-caught-up")
    example.type("meltano", "install")
    (example.folder / "output").mkdir()
    select = ("--select", "tap_postgres/public_orders,tap_postgres/public_customers,positions")
    example.type("dagster", "asset", "materialize", "-f", "definitions.py", *select)

    (loaded,) = (example.folder / "output").glob("public-orders-*.jsonl")
    assert len(loaded.read_text().splitlines()) == 500
    state = json.loads(example.state("get", "dev:tap-postgres-to-target-jsonl"))
    assert state["singer_state"]["bookmarks"]["public-orders"]["replication_key_value"] == 500
    ((run_id, locks),) = newest_database.query(
        "select run_id, (select count(*) from etl.meltano_state_locks) from etl.meltano_state"
        " where state_id = 'dev:tap-postgres-to-target-jsonl'"
    )
    assert run_id
    assert locks == 0
