"""A Postgres of your own, in the folder `postgres`. Ctrl-C stops it, the data stays."""

import contextlib
import threading
from pathlib import Path

from etl_dagster.demo.server import EmbeddedPostgres

with EmbeddedPostgres("postgres") as server:
    address = Path("source.env")
    address.touch(mode=0o600)
    address.write_text(
        f"export ETL_SOURCE_DSN='{server.dsn()}'\n"
        f"export SOURCE_PASSWORD='{server.password}'\n"
        f'export PATH="$PATH:{server.binaries.folder}"\n'
    )
    print(f"PostgreSQL {server.binaries.version} is ready: see source.env", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
