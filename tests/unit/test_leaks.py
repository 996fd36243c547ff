"""The search for secrets finds those that are planted, wherever that is.

The planted mark is another than the run's own, which would fail for it.
"""

from __future__ import annotations

import gzip
import os
import sqlite3
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from tests.support.leaks import MARK, Leaks

PLANTED = "planted0123456789abcdef"
ROOT = Path(__file__).parents[2]


def in_a_log(folder: Path) -> None:
    (folder / "run.log").write_text(f"connecting to postgresql://me:{PLANTED}@host/db\n")


def in_a_header(folder: Path) -> None:
    (folder / "run.log").write_bytes(b"Basic " + b64encode(f"user:{PLANTED}".encode()))


def in_a_compressed_file(folder: Path) -> None:
    (folder / "body.gz").write_bytes(gzip.compress(f"{PLANTED}{'and more' * 1000}".encode()))


def over_two_pages_of_sqlite(folder: Path) -> None:
    file = folder / "events.db"
    for before in range(2800, 3000, 8):
        file.unlink(missing_ok=True)
        with closing(sqlite3.connect(file)) as database:
            database.execute("create table events (event text)")
            text = f"{'.' * before}{PLANTED}{'.' * (7000 - before)}"
            database.execute("insert into events values (?)", [text])
            database.commit()
        if PLANTED.encode() not in file.read_bytes():
            return
    pytest.fail("no page ended within the secret")


def in_a_table_of_duckdb(folder: Path) -> None:
    with closing(duckdb.connect(folder / "shop.duckdb")) as database:
        database.execute("create table marks (identity varchar)")
        database.execute("insert into marks values (?)", [f"host=h password={PLANTED}"])


def in_the_log_of_another_server(folder: Path) -> None:
    (folder / "password").write_text("by-chance\n")
    (folder / "run.log").write_text("dsn: password=by-chance")


@pytest.mark.parametrize(
    "plant",
    [
        in_a_log,
        in_a_header,
        in_a_compressed_file,
        over_two_pages_of_sqlite,
        in_a_table_of_duckdb,
        in_the_log_of_another_server,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_secret_is_found_and_not_shown(
    plant: Callable[[Path], None],
) -> None:
    leaks = Leaks(PLANTED)
    with tempfile.TemporaryDirectory() as folder:  # not where this run is searched
        of_one_test = Path(folder, "test_0")
        of_one_test.mkdir()
        plant(of_one_test)

        leaks.look_at_files(Path(folder))

    assert leaks.found
    assert PLANTED not in "".join(leaks.found)


def test_files_that_hold_secrets_on_purpose_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "test_0").mkdir()
    (tmp_path / "test_0" / "etl.yaml").write_text(PLANTED)
    (tmp_path / "test_0" / "run.log").write_text(f"other words, {MARK[:8]}")
    leaks = Leaks(PLANTED)

    leaks.look_at_files(tmp_path)

    assert leaks.found == []


LEAKING_TESTS = f"""
import logging, warnings
import click
from click.testing import CliRunner

def test_log(): logging.getLogger("etl_dagster.x").info("dsn %s", "{PLANTED}")
def test_output(): print("dsn {PLANTED}")
def test_warning(): warnings.warn("dsn {PLANTED}")
def test_command(): CliRunner().invoke(click.Command("x", callback=lambda: click.echo("{PLANTED}")))
def test_file(tmp_path): (tmp_path / "run.log").write_text("dsn {PLANTED}")
def test_nothing(tmp_path): (tmp_path / "run.log").write_text("no secret")
"""


def run_leaking_tests(folder: Path, *options: str) -> tuple[int, str]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_leaking.py").write_text(LEAKING_TESTS)
    plugins = [*("-p", "xdist"), *("-p", "tests.support.search_for_leaks")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *plugins),
            *(f"--basetemp={folder / 'tmp'}", *options),
        ],
        cwd=folder,
        env=os.environ
        | {
            "TESTS_MARK_OF_SECRETS": PLANTED,
            "PYTHONPATH": str(ROOT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def test_a_test_that_leaks_fails(tmp_path: Path) -> None:
    code, said = run_leaking_tests(tmp_path)

    assert code == pytest.ExitCode.TESTS_FAILED
    for name in ("log", "output", "command"):
        assert f"ERROR test_leaking.py::test_{name} - secrets were leaked" in said
    assert "ERROR test_leaking.py::test_nothing" not in said
    assert "a warning of test_leaking.py::test_warning: 'dsn (secret)'" in said


def test_a_run_fails_for_what_a_worker_finds_in_the_end(tmp_path: Path) -> None:
    code, said = run_leaking_tests(tmp_path, "-n", "1", "-k", "file or nothing")

    assert code == pytest.ExitCode.TESTS_FAILED
    assert "run.log: 'dsn (secret)'" in said
    assert "2 passed" in said


def test_the_current_run_is_searched_for_leaks(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    from tests.support import search_for_leaks

    assert pytestconfig.pluginmanager.is_registered(search_for_leaks)
    assert [folder for folder in search_for_leaks._folders if tmp_path.is_relative_to(folder)]
