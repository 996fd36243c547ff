"""The command line as people use it: real processes, real servers, real files."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from etl_dagster.cli import cli
from etl_dagster.demo.server import EmbeddedPostgres, find_servers
from etl_dagster.destinations.duckdb import query
from etl_dagster.runtime.showing.status import PipelineStatus
from etl_dagster.source.slots import apply_slot_name
from etl_dagster.stores.postgres.migrate import STORE
from tests.support.database import Database
from tests.support.forked import Forked, etl_dagster
from tests.support.leaks import LEAKS, PASSWORD, make_secret
from tests.support.meltano import state_uri
from tests.support.waiting import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.servers("newest")]

COMMAND = [sys.executable, "-m", "etl_dagster.cli"]
ROWS = 500
SECRET = make_secret("Wr0ng-s3cret")
SECRET_URI = f"postgres://me:{SECRET}@127.0.0.1:1/nowhere/public"


@dataclass
class Shop:
    """A source, a folder, and the commands that are run there."""

    database: Database
    folder: Path
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / "shop.duckdb"

    def configure(self, **sections: Any) -> None:
        for name, section in sections.items():
            merged = isinstance(section, Mapping) and self.values.get(name)
            self.values[name] = {**self.values[name], **section} if merged else section
        # JSON is YAML.
        (self.folder / "etl.yaml").write_text(json.dumps(self.values))

    def start(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Forked:
        return etl_dagster(*arguments, cwd=self.folder, environ=environ)

    def start_interpreter(
        self, *arguments: str, prefix: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """As a shell does."""
        return subprocess.Popen(
            [*prefix, *COMMAND, *arguments],
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(
        self, *arguments: str, prefix: Sequence[str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; in an interpreter of its own if a prefix is given."""
        if prefix is None:
            process: Forked | subprocess.Popen[str] = self.start(*arguments, **options)
        else:
            process = self.start_interpreter(*arguments, prefix=prefix)
        with process:
            try:
                out, err = process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        LEAKS.look(out + err, f"output of etl-dagster {' '.join(arguments)}")
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def call(
        self, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The same in this process, which is quicker; for commands that don't set up logging."""
        with contextlib.chdir(self.folder):
            result = CliRunner().invoke(cli, arguments, env=environ)
        return subprocess.CompletedProcess(
            arguments, result.exit_code, result.stdout, result.stderr
        )

    def count(self) -> int:
        """The orders at the destination."""
        table = query(self.file, "select count(*) from public.orders")
        return int(table.column(0)[0].as_py())

    def states(self) -> list[str]:
        """Every state the tables have had, in order."""
        rows = self.database.query("select state ->> 'type' from etl.table_states order by id")
        return [state for (state,) in rows]

    @property
    def is_untouched(self) -> bool:
        """No slot, no schema, no file of ours."""
        schemas = self.database.query("select nspname from pg_namespace where nspname = 'etl'")
        files = {path.name for path in self.folder.iterdir()} - {"etl.yaml"}
        return not (schemas or self.database.slots() or files)


def shop_in(database: Database, folder: Path) -> Shop:
    database.execute(
        "create table orders (id int primary key, note text, at timestamptz)",
        f"insert into orders select g, 'order ' || g, now() from generate_series(1, {ROWS}) g",
        "create publication etl_pub for table orders",
    )
    shop = Shop(database, folder)
    shop.configure(
        pipeline="shop",
        source={"dsn": database.dsn, "publication": "etl_pub"},
        destination={"type": "duckdb", "path": "shop.duckdb"},
        batch={"max_fill_ms": 50},
    )
    return shop


@pytest.fixture
def shop(newest_database: Database, tmp_path: Path) -> Shop:
    return shop_in(newest_database, tmp_path)


@contextlib.contextmanager
def running(shop: Shop, *options: str) -> Iterator[Forked]:
    """A pipeline that streams; killed at the end if it still runs."""
    process = shop.start("run", "--plain", *options)
    try:
        assert process.stdout is not None
        wait_for(process.stdout, "public.orders: ready")
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(lines: IO[str], text: str) -> str:
    seen = []
    for line in lines:
        seen.append(line)
        if text in line:
            return line
    pytest.fail(f"the process ended without {text!r}:\n{''.join(seen)}")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


def assert_explained(answer: subprocess.CompletedProcess[str], reason: str) -> None:
    """The reason and what to do, on one screen, without a traceback."""
    assert reason in answer.stderr, answer.stderr
    assert "What to do: " in answer.stderr
    assert "Traceback" not in answer.stderr + answer.stdout
    assert len(answer.stderr.splitlines()) < 25


# -- the first day -----------------------------------------------------------------------------


def test_run_copies_streams_and_ends_when_it_has_caught_up(
    database: Database, tmp_path: Path
) -> None:
    shop = shop_in(database, tmp_path)
    assert shop.call("doctor").returncode == 0

    first = shop.run("run", "--until-caught-up")
    database.execute(
        "update orders set note = 'new' where id <= 10; delete from orders where id > 490"
    )
    second = shop.run("run", "--until-caught-up")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert shop.count() == ROWS - 10
    new = query(shop.file, "select count(*) from public.orders where note = 'new'")
    assert new.column(0).to_pylist() == [10]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP], ids=["SIGINT", "SIGHUP"])
def test_ctrl_c_and_a_closed_terminal_end_a_running_pipeline_cleanly(
    shop: Shop, sent: signal.Signals
) -> None:
    with running(shop) as process:
        process.send_signal(sent)
        out, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0, err
    assert "Traceback" not in out + err
    assert "public.orders is streamed from now on" in err
    assert shop.database.slots() == [apply_slot_name("shop")]


def test_json_lines_are_statuses(shop: Shop) -> None:
    answer = shop.run("run", "--until-caught-up", "--json")

    assert answer.returncode == 0, answer.stderr
    statuses = [PipelineStatus.from_json(json.loads(line)) for line in answer.stdout.splitlines()]
    assert statuses[-1].phase == "stopped"
    assert statuses[-1].tables["public.orders"].state == "ready"


def test_a_terminal_shows_the_live_display(shop: Shop) -> None:
    control, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "run"],
        cwd=shop.folder,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "110", "LINES": "40"},
    )
    os.close(terminal)
    screen = b""
    try:
        while b"ready" not in screen:
            screen += os.read(control, 65536)
        process.send_signal(signal.SIGINT)
        try:
            while chunk := os.read(control, 65536):
                screen += chunk
        except OSError:
            pass  # Linux says EIO when the last writer is gone
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(control)
    text = screen.decode()
    assert "public.orders" in text
    assert "Ctrl-C stops" in text
    assert "Traceback" not in text


@pytest.fixture
def table_of_values(tmp_path: Path) -> Shop:
    """A destination without a pipeline."""
    import duckdb

    with duckdb.connect(tmp_path / "shop.duckdb") as connection:
        connection.execute(
            "create table t (id int, note text); insert into t values (1, 'a'), (2, null)"
        )
    shop = Shop(None, tmp_path)  # type: ignore[arg-type]
    shop.configure(
        pipeline="shop",
        source={"dsn": "dbname=nowhere", "publication": "etl_pub"},
        destination={"type": "duckdb", "path": "shop.duckdb"},
    )
    return shop


def test_a_query_has_three_forms(table_of_values: Shop) -> None:
    sql = "select id, note from t order by id"

    table = table_of_values.call("query", sql).stdout
    comma = table_of_values.call("query", "--csv", sql).stdout
    lines = table_of_values.call("query", "--json", sql).stdout

    assert "note" in table
    assert "2 rows" in table
    assert list(csv.reader(comma.splitlines())) == [["id", "note"], ["1", "a"], ["2", ""]]
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"id": 1, "note": "a"},
        {"id": 2, "note": None},
    ]


def test_a_query_prints_json_that_every_reader_accepts(table_of_values: Shop) -> None:
    sql = "select 'nan'::double a, ['-inf'::double, 1] b, 'ab'::blob c, ['ab'::blob] d"

    row = json.loads(table_of_values.call("query", "--json", sql).stdout)

    assert row == {"a": "NaN", "b": ["-Infinity", 1.0], "c": "\\x6162", "d": ["\\x6162"]}
    assert "\\x6162" in table_of_values.call("query", "--csv", sql).stdout
    refused = table_of_values.call("query", "--json", "select 1 as a, 2 as a")
    assert (refused.returncode, "two columns are called 'a'" in refused.stderr) == (2, True)


def test_a_query_shows_values_that_python_cannot_represent(table_of_values: Shop) -> None:
    sql = "select 'infinity'::timestamptz t, '20000-01-01'::timestamp late"

    row = json.loads(table_of_values.call("query", "--json", sql).stdout)

    assert row["t"] == "infinity"
    assert row["late"].startswith("20000-01-01")


@pytest.mark.parametrize("sql", ["delete from t", "selec 1", "select * from nothing"])
def test_a_query_that_writes_or_is_invalid_is_refused_with_the_reason(
    table_of_values: Shop, sql: str
) -> None:
    answer = table_of_values.call("query", sql)

    assert answer.returncode == 2
    assert_explained(answer, "DuckDB")
    assert query(table_of_values.file, "select * from t").num_rows == 2


def test_a_query_is_answered_while_the_pipeline_runs(shop: Shop) -> None:
    with running(shop):
        answer = shop.run("query", "--csv", "select count(*) from public.orders")

    assert answer.stdout.splitlines()[1:] == [str(ROWS)]


# -- what can't start --------------------------------------------------------------------------


def missing_publication(shop: Shop) -> str:
    shop.configure(source={"publication": "no_pub"})
    return "publication 'no_pub' does not exist"


def empty_publication(shop: Shop) -> str:
    shop.database.execute("alter publication etl_pub drop table orders")
    return "publication 'etl_pub' contains no table"


def wrong_password(shop: Shop) -> str:
    shop.configure(source={"dsn": make_conninfo(shop.database.dsn, password=SECRET)})
    return "password authentication failed"


def wrong_password_of_the_state_store(shop: Shop) -> str:
    shop.configure(state_store={"dsn": make_conninfo(shop.database.dsn, password=SECRET)})
    return "the state store refuses the connection"


def no_server(shop: Shop) -> str:
    shop.configure(source={"dsn": make_conninfo(shop.database.dsn, port=1)})
    return "connecting to postgresql://"


def no_folder(shop: Shop) -> str:
    shop.configure(destination={"path": "no/such/folder/x.duckdb"})
    return "there is no folder"


def unknown_key(shop: Shop) -> str:
    shop.configure(sorce={"dsn": SECRET})
    return "sorce: unknown key"


def broken_dsn(shop: Shop) -> str:
    shop.configure(source={"dsn": f"postgresql://me:{SECRET}@x@host/db"})
    return "percent-encoded"


obstacles = [
    missing_publication,
    empty_publication,
    wrong_password,
    wrong_password_of_the_state_store,
    no_server,
    no_folder,
    unknown_key,
    broken_dsn,
]


@pytest.mark.parametrize("obstruct", obstacles, ids=lambda obstruct: obstruct.__name__)
def test_a_pipeline_that_cannot_start_is_explained_and_leaves_nothing_behind(
    shop: Shop, obstruct: Callable[[Shop], str]
) -> None:
    reason = obstruct(shop)

    answer = shop.call("run")

    # Waiting may bring a server back, and a supervisor that starts the command again is right to.
    code = 1 if obstruct is no_server else 2
    assert answer.returncode == code, answer.stdout + answer.stderr
    assert_explained(answer, reason)
    assert SECRET not in answer.stdout + answer.stderr
    assert shop.is_untouched


def test_all_obstacles_to_a_start_are_reported_at_once(shop: Shop) -> None:
    missing_publication(shop)
    no_folder(shop)

    answer = shop.run("run", "--json")

    assert answer.returncode == 2
    assert_explained(answer, "2 things stand in the way")
    assert "no_pub" in answer.stderr
    assert "there is no folder" in answer.stderr
    assert "no_pub" in json.loads(answer.stdout)["error"]
    assert shop.is_untouched


def test_a_server_without_logical_wal_is_explained(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = tmp_path_factory.mktemp("replica")
    folder.chmod(0o755)
    settings = {"wal_level": "replica"}
    with (
        EmbeddedPostgres(
            folder / "pg", find_servers()[0], settings=settings, durable=False
        ) as server,
        Database.create(server) as database,
    ):
        shop = shop_in(database, tmp_path)

        answer = shop.call("run")

        assert answer.returncode == 2
        assert_explained(answer, "wal_level is 'replica'")
        assert shop.is_untouched


def test_a_folder_without_write_permission_is_explained(newest_database: Database) -> None:
    with tempfile.TemporaryDirectory(prefix="etl-test-cli-") as name:
        shop = shop_in(newest_database, Path(name))
        Path(name).chmod(0o555)
        # Root may write everywhere, unless it gives that right away.
        as_others = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []

        answer = shop.run("run", prefix=as_others)

        Path(name).chmod(0o755)
        assert answer.returncode == 2
        assert_explained(answer, "no right to write in the folder")
        assert shop.is_untouched


def test_a_second_process_for_the_same_pipeline_is_refused(shop: Shop) -> None:
    with running(shop):
        answer = shop.run("run")

        assert answer.returncode == 2
        assert_explained(answer, "another process runs the pipeline 'shop'")


# -- what fails while it runs ------------------------------------------------------------------


def test_a_pipeline_that_fails_while_it_runs_ends_with_1(shop: Shop) -> None:
    shop.configure(retry={"initial_delay_ms": 2000})
    with running(shop) as process:
        shop.database.drop_slots()
        _, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 1
    assert "is gone from the source" in err
    assert "`etl-dagster repair --all`" in err
    assert "Traceback" not in err


def test_a_table_that_cannot_be_copied_ends_the_run_with_1_and_the_others_are_there(
    shop: Shop,
) -> None:
    # Not a marked secret: the source has it, and so has the log of its server.
    value = "red herring"
    shop.database.execute(
        "create table ratios (x int primary key); insert into ratios values (0)",
        "create table notes (x int primary key, note text)",
        f"""insert into notes values (1, 'the "{value}" of a row')""",
        "drop publication etl_pub",
        "create publication etl_pub for table orders, ratios where (1 / x > 0), "
        "notes where (pg_size_bytes(note) > 0)",
    )

    answer = shop.run("run", "--until-caught-up", "--plain")

    assert answer.returncode == 1
    assert "public.ratios: errored: " in answer.stdout
    assert "division by zero" in answer.stdout
    # The server quotes the value that it could not read.
    assert 'invalid size: "..."' in answer.stdout
    assert value not in answer.stdout + answer.stderr
    assert shop.count() == ROWS
    status = json.loads(shop.call("status", "--json").stdout)
    states = {table["table"]: table["state"] for table in status["tables"]}
    assert states == {
        "public.orders": "ready",
        "public.ratios": "errored",
        "public.notes": "errored",
    }
    assert "division by zero" in shop.call("status").stdout


# -- doctor and status -------------------------------------------------------------------------


def test_the_doctor_finds_everything_and_changes_nothing(shop: Shop) -> None:
    empty_publication(shop)
    no_folder(shop)

    people, program = shop.call("doctor"), shop.call("doctor", "--json")

    assert (people.returncode, program.returncode) == (1, 1)
    errors = {check["name"] for check in json.loads(program.stdout) if check["level"] == "error"}
    assert errors == {"published tables", "destination"}
    assert "2 errors: the pipeline can't start." in people.stdout
    assert "-> Add one: ALTER PUBLICATION" in people.stdout
    assert shop.is_untouched


def test_the_doctor_finds_no_fault_with_a_running_pipeline(shop: Shop) -> None:
    with running(shop):
        answer = shop.call("doctor", "--json")

    checks = {check["name"]: check for check in json.loads(answer.stdout)}
    assert answer.returncode == 0
    assert "is read by backend" in checks["slot"]["message"]
    assert checks["state store"]["message"] == "schema 'etl' is up to date"


def test_the_doctor_reports_a_role_that_may_not_create_the_state_store(shop: Shop) -> None:
    role = f"{shop.database.name}_poor"
    shop.database.execute(
        f"create role {role} login replication password '{PASSWORD}'",
        f"grant select on orders to {role}",
    )
    try:
        shop.configure(
            source={"dsn": make_conninfo(shop.database.dsn, user=role, password=PASSWORD)}
        )

        answer = shop.call("run")

        assert answer.returncode == 2
        assert_explained(answer, "may not create")
        assert f'CREATE SCHEMA "etl" AUTHORIZATION "{role}"' in answer.stderr
        shop.database.execute(f'create schema etl authorization "{role}"')
        assert shop.run("run", "--until-caught-up").returncode == 0
    finally:
        shop.database.drop_slots()
        shop.database.execute(f"drop owned by {role} cascade", f"drop role {role}")


def test_status_of_a_pipeline_that_never_ran_creates_nothing(shop: Shop) -> None:
    answer = shop.call("status")

    assert answer.returncode == 2
    assert_explained(answer, "has no pipeline 'shop'")
    assert shop.is_untouched


def test_status_shows_a_pipeline_of_another_process(shop: Shop) -> None:
    with running(shop):
        status = json.loads(shop.call("status", "--json").stdout)
        text = shop.call("status").stdout

    assert status["is_running"] is True
    assert status["slot"]["active"] is True
    assert [(t["table"], t["state"], t["state_id"]) for t in status["tables"]] == [
        ("public.orders", "ready", "dev:shop-to-duckdb:public.orders")
    ]
    assert "shop to duckdb: running" in text
    assert "public.orders  ready" in text


# -- reset -------------------------------------------------------------------------------------


def test_a_table_is_copied_again_while_the_pipeline_runs(shop: Shop) -> None:
    with running(shop):
        answer = shop.call("reset", "public.orders", "--yes")
        assert answer.returncode == 0, answer.stderr
        assert "starts on it now" in answer.stdout
        wait_until(lambda: shop.states()[-1] == "ready" and shop.states().count("ready") == 2)
        assert shop.count() == ROWS


def test_a_reset_announces_what_it_does_asks_first_and_has_a_dry_run(shop: Shop) -> None:
    assert shop.run("run", "--until-caught-up").returncode == 0

    tried = shop.call("reset", "--all", "--dry-run")
    refused = shop.call("reset", "--all")

    assert tried.returncode == 0
    assert "All tables (1) will be copied again" in tried.stdout
    assert refused.returncode == 2
    assert shop.database.slots() == [apply_slot_name("shop")]


def test_a_lost_slot_prevents_the_start_and_reset_all_recovers_from_it(shop: Shop) -> None:
    assert shop.run("run", "--until-caught-up").returncode == 0
    shop.database.drop_slots()

    stopped = shop.run("run")
    assert stopped.returncode == 2
    assert_explained(stopped, "is gone from the source")

    assert shop.call("reset", "--all", "--yes").returncode == 0
    assert shop.run("run", "--until-caught-up").returncode == 0
    assert shop.count() == ROWS


def test_reset_all_is_refused_while_the_pipeline_runs(shop: Shop) -> None:
    with running(shop):
        answer = shop.call("reset", "--all", "--yes")

        assert answer.returncode == 2
        assert_explained(answer, "a process runs the pipeline 'shop'")
        assert shop.database.slots() == [apply_slot_name("shop")]


def test_a_reset_that_names_nothing_to_reset_is_refused(shop: Shop) -> None:
    assert shop.run("run", "--until-caught-up").returncode == 0

    for arguments in ([], ["public.orders", "--all"], ["public.nothing"]):
        answer = shop.call("reset", "--yes", *arguments)

        assert answer.returncode == 2
        assert "Error: " in answer.stderr


# -- init --------------------------------------------------------------------------------------


def test_the_file_that_init_writes_runs_once_the_password_is_in_the_environment(
    newest_database: Database, tmp_path: Path
) -> None:
    shop = shop_in(newest_database, tmp_path)
    (tmp_path / "etl.yaml").unlink()
    password = newest_database.server.password
    uri = (
        f"postgresql://postgres:{password}@{newest_database.server.host}:"
        f"{newest_database.server.port}/{newest_database.name}"
    )
    assert shop.call("init", "--dsn", uri).returncode == 0
    assert password not in (tmp_path / "etl.yaml").read_text()
    assert yaml.safe_load((tmp_path / "etl.yaml").read_text())["source"]["user"] == "postgres"

    environ = os.environ | {"SOURCE_PASSWORD": password}
    assert shop.run("run", "--until-caught-up", environ=environ).returncode == 0
    assert (tmp_path / "etl.duckdb").exists()


# -- migrate -----------------------------------------------------------------------------------


def test_migrate_prints_what_an_administrator_then_runs(shop: Shop) -> None:
    shop.configure(state_store={"schema": "my state"})

    printed = shop.call("migrate", "--print")
    assert printed.returncode == 0
    assert "CREATE TABLE table_states" in printed.stdout
    assert 'CREATE TABLE "my state"."meltano_state"' in printed.stdout
    assert shop.database.query("SELECT to_regnamespace('\"my state\"')") == [(None,)]
    assert shop.call("migrate", "--print", "--offline").stdout == printed.stdout

    shop.database.execute(printed.stdout)
    done = json.loads(shop.call("migrate", "--yes", "--json").stdout)
    assert done == {"schema": "my state", "run": []}
    assert shop.call("migrate", "--print").stdout == "-- schema my state is up to date\n"
    assert "is up to date" in shop.call("doctor").stdout


def test_migrate_creates_the_tables_and_says_so_once(shop: Shop) -> None:
    names = [*(migration.name for migration in STORE), "meltano_states"]
    tried = shop.call("migrate", "--dry-run")
    assert tried.stdout.endswith("Dry run: nothing changed.\n")
    assert shop.call("migrate").returncode == 2
    assert shop.database.query("SELECT to_regnamespace('etl')") == [(None,)]

    done = shop.call("migrate", "--yes").stdout.splitlines()
    assert done == [tried.stdout.splitlines()[0], *(f"ran {name}" for name in names)]
    assert shop.call("migrate").stdout == "schema 'etl' is up to date\n"


def test_migrate_source_installs_what_it_prints_and_removes_it_again(shop: Shop) -> None:
    assert "no event trigger that reports them" in shop.call("doctor").stdout
    shop.database.execute(shop.call("migrate", "--source", "--print").stdout)
    installed = shop.call("migrate", "--source").stdout  # there is nothing to ask about
    assert installed == "the event trigger, version 1 is installed\n"
    assert "reported by the event trigger, version 1" in shop.call("doctor").stdout

    shop.database.execute("alter event trigger etl_dagster_alteration enable")
    assert "the event trigger is disabled" in shop.call("doctor").stdout
    repaired = shop.call("migrate", "--source", "--yes").stdout
    assert repaired.endswith("installed the event trigger, version 1\n")

    tried = json.loads(shop.call("migrate", "--source", "--remove", "--dry-run", "--json").stdout)
    assert tried == {"to_remove": True}
    removed = json.loads(shop.call("migrate", "--source", "--remove", "--yes", "--json").stdout)
    assert removed == {"removed": True}
    assert shop.database.query("select to_regnamespace('etl_dagster')") == [(None,)]
    shop.database.execute(shop.call("migrate", "--source", "--print", "--remove").stdout)
    assert shop.call("migrate", "--source", "--remove").stdout == "there is no event trigger\n"


def test_migrate_of_another_store_is_refused(shop: Shop) -> None:
    shop.configure(state_store={"type": "memory"})

    refused = shop.call("migrate", "--yes")

    assert refused.returncode == 2
    assert "state_store.type: memory has no migrations" in refused.stderr


def test_a_role_that_may_only_write_rows_runs_a_pipeline_and_mirrors_it(shop: Shop) -> None:
    """With what `migrate --print` prints, and the grants that the documentation names."""
    name = f"least_{shop.database.name}"
    shop.database.execute(shop.call("migrate", "--print").stdout)
    shop.database.execute(
        f"CREATE ROLE {name} LOGIN REPLICATION PASSWORD '{PASSWORD}'",
        f"GRANT SELECT ON orders TO {name}",
        f"GRANT USAGE ON SCHEMA etl TO {name}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA etl TO {name}",
    )
    try:
        dsn = make_conninfo(shop.database.dsn, user=name, password=PASSWORD)
        shop.configure(source={"dsn": dsn})

        run = shop.run("run", "--until-caught-up", "--plain")

        assert run.returncode == 0, run.stderr
        assert shop.count() == ROWS
        [state] = shop.database.query("SELECT state_id, writer FROM etl.meltano_state")
        assert state == ("dev:shop-to-duckdb:public.orders", "etl-dagster, pipeline shop")
    finally:
        shop.database.drop_slots()
        shop.database.execute(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_doctor_warns_that_the_place_for_positions_is_missing(shop: Shop) -> None:
    """The pipeline continues without it, so it is not an error."""
    shop.configure(meltano={"state_backend": SECRET_URI})

    report = shop.call("doctor")

    assert report.returncode == 0, report.stderr
    assert "meltano state" in report.stdout
    assert SECRET not in report.stdout


def test_doctor_creates_nothing_where_positions_will_be(shop: Shop) -> None:
    shop.database.execute("CREATE SCHEMA elsewhere")
    uri = state_uri(shop.database, "elsewhere")
    shop.configure(meltano={"state_backend": uri})

    report = shop.call("doctor")

    assert "the first start makes the tables" in report.stdout
    assert shop.database.query("SELECT to_regclass('elsewhere.meltano_state')") == [(None,)]
    shop.configure(meltano={"state_backend": uri.replace("elsewhere", "nowhere")})
    assert "schema 'nowhere' does not exist" in shop.call("doctor").stdout
