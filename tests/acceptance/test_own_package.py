"""A package with a store and a destination of its own, used as its users would use it.

`examples/etl_files` is built and installed into a fresh environment, next to etl-dagster itself;
everything after that is done with the commands of that environment.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from tests.support.database import Database
from tests.support.leaks import LEAKS
from tests.support.waiting import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "etl_files"
Row = dict[str, Any]


class Environment:
    """A virtual environment with both packages, and folders that have nothing to do with ours."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        # Dependencies, and pip, are those of the tests; so nothing is fetched.
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        for package in (ROOT, EXAMPLE):
            # Without --no-deps for the example: that etl-dagster is enough is part of the promise.
            options = ["--no-index", "--no-build-isolation", "--quiet"]
            options += ["--no-deps"] if package is ROOT else []
            self.run("python", "-m", "pip", "install", *options, str(package), cwd=folder)

    def run(
        self, command: str, *arguments: str, cwd: Path, exit_code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.bin / command), *arguments],
            cwd=cwd,
            env=self._environ(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == exit_code, f"{done.args}\n{done.stdout}\n{done.stderr}"
        LEAKS.look(done.stdout + done.stderr, f"output of {command} {' '.join(arguments)}")
        return done

    def start(self, command: str, *arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
        log = (cwd / "log").open("ab")
        with log:
            return subprocess.Popen(
                [str(self.bin / command), *arguments],
                cwd=cwd,
                env=self._environ(),
                stdout=log,
                stderr=log,
            )

    def _environ(self) -> dict[str, str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        return environ | {"NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment"))


@pytest.fixture
def shop(newest_database: Database) -> Database:
    newest_database.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric(12,2), note text,"
        " made timestamptz NOT NULL DEFAULT now())",
        "CREATE TABLE visits (page text, at int)",
        "CREATE TABLE nothing (id int PRIMARY KEY)",
        "ALTER TABLE visits REPLICA IDENTITY FULL",
        "INSERT INTO orders SELECT i, i * 1.25, 'Grüße ' || i FROM generate_series(1, 6000) i",
        "INSERT INTO visits SELECT 'page ' || i % 7, i % 50 FROM generate_series(1, 500) i",
        "VACUUM ANALYZE",
        "CREATE PUBLICATION etl_pub FOR TABLE orders, visits, nothing",
    )
    return newest_database


def write_config(shop: Database, folder: Path, **sections: Any) -> None:
    values = {
        "pipeline": "shop",
        "source": {"dsn": shop.dsn, "publication": "etl_pub"},
        "state_store": {"type": "sqlite", "path": "state.db"},
        "destination": {"type": "jsonl", "folder": "tables"},
        "batch": {"max_fill_ms": 50},
        "copy": {"chunk_rows": 500},
    }
    (folder / "etl.yaml").write_text(yaml.safe_dump(values | sections))


# -- what the files hold -------------------------------------------------------------------------


def rows_at(folder: Path, table: str) -> list[Row]:
    """Read by the example's own reader, which needs nothing but the file."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        from etl_files.reading import read_table
    finally:
        sys.path.remove(str(EXAMPLE))
    return read_table(folder / "tables" / f"public.{table}.jsonl")


def assert_holds_the_source(shop: Database, folder: Path) -> None:
    orders = [
        {"id": i, "amount": amount, "note": note, "made": made.astimezone(UTC).isoformat()}
        for i, amount, note, made in shop.query(
            "SELECT id::text, amount::text, note, made FROM orders"
        )
    ]
    visits = [{"page": page, "at": at} for page, at in shop.query("SELECT page, at FROM visits")]
    assert counted(rows_at(folder, "orders")) == counted(orders)
    assert counted(rows_at(folder, "visits")) == counted(visits)
    assert rows_at(folder, "nothing") == []
    assert_no_change_came_twice(folder)


def counted(rows: list[Row]) -> Counter[str]:
    return Counter(json.dumps(row, sort_keys=True) for row in rows)


def assert_no_change_came_twice(folder: Path) -> None:
    for path in (folder / "tables").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        positions = Counter(str(line["position"]) for line in lines if "position" in line)
        assert [at for at, count in positions.items() if count > 1][:3] == [], path.name


def until(process: subprocess.Popen[bytes], what: str, done: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert process.poll() is None, f"it ended before {what}"
        assert time.monotonic() < deadline, f"waiting for {what}"
        time.sleep(0.01)


def grows(path: Path) -> Callable[[], bool]:
    """Whether the file is longer than now."""
    now = path.stat().st_size
    return lambda: path.stat().st_size > now


# -- the promises ----------------------------------------------------------------------------------


def test_the_package_passes_the_suites_where_it_is_installed(
    installed: Environment, tmp_path: Path
) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "t")]
    done = installed.run("python", "-m", "pytest", *options, str(EXAMPLE / "tests"), cwd=tmp_path)

    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None
    assert int(found[1]) > 150


def test_a_pipeline_runs_on_it_and_resumes_where_it_was(
    installed: Environment, shop: Database, tmp_path: Path
) -> None:
    write_config(shop, tmp_path)

    def etl(*arguments: str, exit_code: int = 0) -> str:
        return installed.run("etl-dagster", *arguments, cwd=tmp_path, exit_code=exit_code).stdout

    # Checking creates nothing.
    assert "state.db: made at the start" in etl("doctor")
    etl("status", exit_code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["etl.yaml"]

    etl("run", "--until-caught-up", "--plain")
    assert_holds_the_source(shop, tmp_path)
    copied = (tmp_path / "tables" / "public.orders.jsonl").read_bytes()

    shop.execute(
        "UPDATE orders SET amount = amount + 1 WHERE id % 100 = 0",
        "UPDATE orders SET id = -id WHERE id = 7",
        "DELETE FROM orders WHERE id BETWEEN 11 AND 20",
        "ALTER TABLE visits ADD COLUMN agent text",
        "ALTER TABLE visits DROP COLUMN agent",
        "DELETE FROM visits WHERE ctid IN (SELECT min(ctid) FROM visits GROUP BY page, at)",
        "TRUNCATE nothing",
    )
    etl("run", "--until-caught-up", "--plain")
    assert_holds_the_source(shop, tmp_path)
    # It only continued: what was there is the beginning of what is there.
    assert (tmp_path / "tables" / "public.orders.jsonl").read_bytes().startswith(copied)

    status = json.loads(etl("status", "--json"))
    assert {table["table"]: table["state"] for table in status["tables"]} == {
        "public.orders": "ready",
        "public.visits": "ready",
        "public.nothing": "ready",
    }
    assert not status["is_running"]
    checks = {check["name"]: check for check in json.loads(etl("doctor", "--json"))}
    for name, place in (("state store", "state.db"), ("destination", "tables")):
        assert (checks[name]["level"], checks[name]["message"]) == ("ok", str(tmp_path / place))

    etl("reset", "--yes", "public.orders")
    etl("run", "--until-caught-up", "--plain")
    assert_holds_the_source(shop, tmp_path)
    assert not (tmp_path / "tables" / "public.orders.jsonl").read_bytes().startswith(copied)
    etl("reset", "--yes", "--all")
    etl("run", "--until-caught-up", "--plain")
    assert_holds_the_source(shop, tmp_path)


def test_nothing_is_lost_or_doubled_by_kills(
    installed: Environment, shop: Database, tmp_path: Path
) -> None:
    write_config(shop, tmp_path, copy={"chunk_rows": 100, "max_connections_per_table": 1})
    hidden, orders = tmp_path / "tables" / ".etl", tmp_path / "tables" / "public.orders.jsonl"

    @contextmanager
    def killed() -> Iterator[subprocess.Popen[bytes]]:
        process = installed.start("etl-dagster", "run", "--plain", cwd=tmp_path)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()

    with Changes(shop) as changes:
        with killed() as process:
            until(process, "two chunks", lambda: list(hidden.glob("*/chunks/1.jsonl")))
        # It has begun, and isn't done.
        assert not orders.exists()
        for _ in range(2):
            with killed() as process:
                until(process, "the copy", orders.exists)
                until(process, "a change", grows(orders))
        changes.stop()
    assert changes.count > 10
    # What a crash of the machine may leave of a line.
    with orders.open("ab") as file:
        file.write(b'{"type":"insert","tab')

    installed.run("etl-dagster", "run", "--until-caught-up", "--plain", cwd=tmp_path)
    assert_holds_the_source(shop, tmp_path)


class Changes:
    """Changes rows as fast as it may, in small transactions."""

    def __init__(self, shop: Database) -> None:
        self._shop = shop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with psycopg.connect(self._shop.dsn) as connection:
            while not self._ended.wait(0.005):
                n = self.count
                new = {"id": 100_000 + n, "page": f"page {n % 7}", "n": n % 50, "some": n % 97}
                for statement in (
                    "INSERT INTO orders VALUES (%(id)s, 1)",
                    "UPDATE orders SET note = 'changed' WHERE id %% 97 = %(some)s",
                    "DELETE FROM orders WHERE id = %(id)s - 20",
                    "INSERT INTO visits VALUES (%(page)s, %(n)s)",
                    "DELETE FROM visits WHERE ctid = (SELECT min(ctid) FROM visits)",
                ):
                    connection.execute(statement, new)
                connection.commit()
                self.count += 1


def test_dagster_runs_it_by_resources(
    installed: Environment, shop: Database, tmp_path: Path
) -> None:
    script = ROOT / "tests" / "support" / "dagster_by_resources.py"
    done = installed.run("python", str(script), shop.dsn, str(tmp_path), cwd=tmp_path)

    copied = json.loads(done.stdout.splitlines()[-1])
    assert copied["table_copy_rows"] == 6000
    assert copied["meltano/state_id"] == "dev:shop-to-jsonl:public.orders"
    assert_holds_the_source(shop, tmp_path)


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("state_store", {"type": "sqlite"}, "state_store.path: is required"),
    ("state_store", {"type": "sqlite", "path": "a", "wal": 1}, "state_store.wal: unknown key"),
    (
        "state_store",
        {"type": "sqlite", "path": "a", "busy_timeout_s": 0},
        "state_store.busy_timeout_s: Input should be greater than 0",
    ),
    (
        "state_store",
        {"type": "sqlit"},
        "state_store.type: unknown state store; known are:",
    ),
    ("destination", {"type": "jsonl"}, "destination.folder: is required"),
    (
        "destination",
        {"type": "jsonl", "folder": 7},
        "destination.folder: Input is not",
    ),
    (
        "destination",
        {"type": "jsonl", "folder": "a", "lock_timeout_s": "long"},
        "destination.lock_timeout_s: Input should be a valid number",
    ),
]
"""Sections that are wrong, and what is said of it."""


#: Reads each file that it is given as `etl-dagster run` would, in one process for all of them.
READ_ALL = """
import sys
from click.testing import CliRunner
from etl_dagster.cli import cli
for path in sys.argv[1:]:
    done = CliRunner().invoke(cli, ["run", "--config", path])
    assert done.exit_code == 2, done.output
    print(done.output, end="\\0")
"""


def test_a_mistake_in_its_section_is_one_line_that_names_the_key(
    installed: Environment, newest_database: Database, tmp_path: Path
) -> None:
    files = []
    for number, (section, values, _) in enumerate(MISTAKES):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_config(newest_database, folder, **{section: values})
        files.append(str(folder / "etl.yaml"))
    done = installed.run("python", "-c", READ_ALL, *files, cwd=tmp_path)

    for (section, _, mistake), said in zip(MISTAKES, done.stdout.split("\0")[:-1], strict=True):
        lines = [line.strip() for line in said.splitlines()]
        assert [line for line in lines if line.startswith(f"{section}.")] == [
            line for line in lines if line.startswith(mistake)
        ]
        assert "has 1 mistake:" in said
        assert "What to do:" in said
