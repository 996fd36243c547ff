"""A real PgBouncer in front of a test database; Debian's package, so not on every machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from etl_dagster.demo.ports import free_port
from tests.support.database import Database

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")

_SETTINGS = """
[databases]
* = {target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
pool_mode = {mode}
default_pool_size = {pool_size}
unix_socket_dir =
ignore_startup_parameters = extra_float_digits
"""


@contextmanager
def pgbouncer(
    database: Database, mode: Literal["transaction", "session"], *, pool_size: int = 10
) -> Iterator[str]:
    """The DSN of the database through the pooler, as the superuser."""
    assert PGBOUNCER is not None
    parts = conninfo_to_dict(database.dsn)
    port = free_port()
    target = make_conninfo(**{k: parts[k] for k in ("host", "port", "user", "password")})
    # It refuses to be root, and must then be able to read its settings.
    folder = Path(tempfile.mkdtemp(prefix="etl-test-pgbouncer-"))
    folder.chmod(0o755)
    settings = folder / "pgbouncer.ini"
    settings.write_text(_SETTINGS.format(target=target, port=port, mode=mode, pool_size=pool_size))
    account = ["-u", "nobody"] if os.getuid() == 0 else []
    process = subprocess.Popen(
        [PGBOUNCER, *account, str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        dsn = make_conninfo(host="127.0.0.1", port=port, user="any", dbname=database.name)
        while True:
            try:
                psycopg.connect(dsn).close()
                break
            except psycopg.OperationalError:
                assert process.poll() is None, process.stderr and process.stderr.read().decode()
        yield dsn
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)
