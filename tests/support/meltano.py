"""A Meltano project of a test's own, its console script, and places for its state."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from etl_dagster.integrations.meltano.states.storage import StateStorage, StorageOptions, locate
from tests.support.database import Database
from tests.support.forked import PIPE, Forked
from tests.support.leaks import LEAKS, make_secret
from tests.support.waiting import PATIENCE_S

#: Next to the interpreter that runs the tests: with the entry points of this package.
MELTANO = Path(sys.executable).with_name("meltano")
_IMPORTED = (
    "meltano.cli",
    # What its commands import when they get there.
    "alembic.command",
    "alembic.context",
    "anyio._backends._asyncio",
    "etl_dagster.integrations.meltano.backend",
    "etl_dagster.integrations.meltano.settings",
    "meltano.core.meltano_file",
    "meltano.core.state_store.azure",
    "meltano.core.state_store.google",
    "meltano.core.state_store.s3",
    "meltano.migrations.utils.dialect_typing",
    "pygments.lexers.python",
    "sqlite3",
)


def state_uri(
    database: Database,
    schema: str = "",
    *,
    user: str | None = None,
    password: str | None = None,
    port: int | str | None = None,
    name: str | None = None,
) -> str:
    """``postgres://user:password@host:port/database/schema``, as the superuser by default."""
    parts = conninfo_to_dict(database.dsn)
    user = quote(user or str(parts["user"]), safe="")
    password = quote(password if password is not None else str(parts["password"]), safe="")
    path = name or database.name
    return (
        f"postgres://{user}:{password}@{parts['host']}:{port or parts['port']}/{path}"
        f"{f'/{schema}' if schema else ''}"
    )


def open_storage(database: Database, schema: str = "public", **options: Any) -> StateStorage:
    return StateStorage(locate(state_uri(database, schema)), options=StorageOptions(**options))


@contextmanager
def role(database: Database, *grants: str) -> Iterator[tuple[str, str]]:
    """A login role with these rights (``{role}`` is its name); gives name and password."""
    name, password = f"role_{secrets.token_hex(4)}", make_secret(secrets.token_hex(8))
    database.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    try:
        database.execute(*(grant.format(role=name) for grant in grants))
        yield name, password
    finally:
        database.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@dataclass(frozen=True)
class MeltanoProject:
    """A folder with a meltano.yml and an environment ``dev``."""

    folder: Path
    environ: Mapping[str, str]
    script: Path = MELTANO

    @classmethod
    def create(
        cls, folder: Path, uri: str, *, script: Path = MELTANO, **rest: Any
    ) -> MeltanoProject:
        """Further keywords become top-level keys of meltano.yml."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "project_id": "3c1a5b1e-0000-4000-8000-000000000000",
            "send_anonymous_usage_stats": False,
            "environments": [{"name": "dev"}],
            **rest,
        }
        # JSON is YAML, too.
        (folder / "meltano.yml").write_text(json.dumps(content, indent=2))
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MELTANO", "PG", "DAGSTER"))
        }
        environ |= {"NO_COLOR": "1", "MELTANO_SEND_ANONYMOUS_USAGE_STATS": "false"}
        if uri:
            environ["MELTANO_STATE_BACKEND_URI"] = uri
        return cls(folder, environ, script)

    def with_environ(self, **more: str) -> MeltanoProject:
        return MeltanoProject(self.folder, {**self.environ, **more}, self.script)

    def start(self, *arguments: str) -> Forked:
        return Forked(
            "meltano.cli:main",
            _IMPORTED,
            [str(self.script), *arguments],
            cwd=self.folder,
            environ=self.environ,
            stdout=PIPE,
            stderr=PIPE,
            python=self.script.with_name("python"),
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Whatever its exit code."""
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
        LEAKS.look(stdout + stderr, f"output of meltano {' '.join(arguments)}")
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def __call__(self, *arguments: str) -> str:
        """What the command prints; it must succeed."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"meltano {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fails(self, *arguments: str) -> str:
        """Everything that the command prints, on one line; it must fail."""
        done = self.run(*arguments)
        assert done.returncode == 1, f"meltano {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return re.sub(r"\s+", " ", done.stdout + done.stderr)
