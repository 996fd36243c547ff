"""PgBouncer in transaction mode in front of a test server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.support.database import Database


@contextmanager
def transaction_pooler(database: Database, folder: Path, *, pool_size: int) -> Iterator[int]:
    """Its port. The test is skipped where PgBouncer is missing."""
    binary = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if binary is None:
        pytest.skip("no pgbouncer here")
    parts = conninfo_to_dict(database.dsn)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "users.txt").write_text(f'"{parts["user"]}" "{parts["password"]}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"""
        [databases]
        * = host={parts["host"]} port={parts["port"]}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = scram-sha-256
        auth_file = {folder / "users.txt"}
        pool_mode = transaction
        default_pool_size = {pool_size}
        logfile = {folder / "pgbouncer.log"}
        """
    )
    command = [binary, str(folder / "pgbouncer.ini")]
    if os.getuid() == 0:
        # It refuses to run as root; its folder must be open to whoever it becomes.
        for path in (folder, *folder.iterdir()):
            path.chmod(0o777)
        for parent in folder.parents:
            if parent.stat().st_uid == os.getuid():
                parent.chmod(parent.stat().st_mode | 0o011)
        command += ["-u", "nobody"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_answers(process, database, port, folder)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_it_answers(
    process: subprocess.Popen[bytes], database: Database, port: int, folder: Path
) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(database.dsn, port=port, connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                log = folder / "pgbouncer.log"
                pytest.fail(f"pgbouncer: {log.read_text() if log.exists() else 'no log'}")
            time.sleep(0.05)
