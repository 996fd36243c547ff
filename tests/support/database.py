"""A database of a test's own, and a configuration for it."""

from __future__ import annotations

import re
import secrets
import select
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.demo.server import EmbeddedPostgres
from tests.support.leaks import LEAKS
from tests.support.waiting import wait_until

PUBLICATION = "etl_pub"

#: What only new sessions notice.
_SETTINGS = re.compile(r"\balter\s+(database|role|user|system)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Database:
    """A database in a test server."""

    server: EmbeddedPostgres
    name: str
    #: Connections of `execute` and `query` for their next calls: a new one takes far longer than
    #: most statements.
    _idle: list[psycopg.Connection[Any]] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    @contextmanager
    def create(
        cls, server: EmbeddedPostgres, encoding: str = "UTF8", name: str | None = None
    ) -> Iterator[Database]:
        """A fresh one, with a random name if none is given; it is dropped at the end, its slots
        before it.

        Its rows are searched for secrets then.
        """
        database = cls(server, name or f"test_{secrets.token_hex(6)}")
        quoted = sql.Identifier(database.name)
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            create = "CREATE DATABASE {} ENCODING {} TEMPLATE template0"
            if server.binaries.major >= 15:  # which would write each page to the WAL
                create += " STRATEGY file_copy"
            admin.execute(sql.SQL(create).format(quoted, sql.Literal(encoding)))
        try:
            yield database
        finally:
            database.disconnect()
            database.drop_slots()
            with psycopg.connect(server.dsn(), autocommit=True) as admin:
                database._end_sessions(admin)
                LEAKS.look_at_rows(database.dsn)
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))

    def empty(self) -> None:
        """Drop all schemas, as for a destination's next test: a new database takes much longer.

        What is in no schema stays, such as slots, publications and settings.
        """
        self.disconnect()
        LEAKS.look_at_rows(self.dsn)
        with self.connect() as connection:
            self._end_sessions(connection)
            names = connection.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$)'"
            ).fetchall()
            schemas = sql.SQL(", ").join(sql.Identifier(name) for (name,) in names)
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(schemas))
            connection.execute("CREATE SCHEMA public")

    def _end_sessions(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> pg_backend_pid()",
            [self.name],
        )

    @property
    def dsn(self) -> str:
        """As the superuser."""
        return self.server.dsn(self.name)

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection in autocommit mode, unless `autocommit=False` is given."""
        return psycopg.connect(self.dsn, **({"autocommit": True} | options))

    def execute(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own; one string may hold several."""
        with self._session() as connection:
            for statement in statements:
                connection.execute(statement)
        if any(map(_SETTINGS.search, statements)):
            self.disconnect()

    def query(
        self, statement: str | sql.Composed, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[tuple[Any, ...]]:
        with self._session() as connection:
            return connection.execute(statement, parameters or None).fetchall()

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A connection that is like a new one."""
        while self._idle:
            connection = self._idle.pop()
            # The server says something to a session without a question only when it ends it.
            if not select.select([connection], [], [], 0)[0]:
                break
            connection.close()
        else:
            connection = self.connect(prepare_threshold=None)
        try:
            yield connection
            connection.execute("DISCARD ALL")
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    def disconnect(self) -> None:
        """Close the connections that are kept for `execute` and `query`."""
        while self._idle:
            self._idle.pop().close()

    def slots(self) -> list[str]:
        """The names of this database's replication slots, sorted."""
        rows = self.query(
            "SELECT slot_name FROM pg_replication_slots WHERE database = %s ORDER BY 1", [self.name]
        )
        return [name for (name,) in rows]

    def current_lsn(self) -> str:
        return str(self.query("SELECT pg_current_wal_lsn()")[0][0])

    def drop_slots(self) -> None:
        """Terminate readers of this database's slots, and drop them."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as admin:
            # A pipeline that still runs may have its slot again before it is dropped.
            wait_until(lambda: self._drop_slots(admin))

    def _drop_slots(self, admin: psycopg.Connection[Any]) -> bool:
        # A walsender takes a moment to let go of its slot, so ending it must be waited for.
        admin.execute(
            "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots "
            "WHERE database = %s AND active_pid IS NOT NULL",
            [self.name],
        )
        try:
            admin.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
                "WHERE database = %s",
                [self.name],
            )
        except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
            return False
        return True


def make_config(database: Database, tmp_path: Path, **overrides: Any) -> PipelineConfig:
    """A pipeline ``test`` from `database` to ``tmp_path/test.duckdb``.

    An override is a whole section (``copy={"chunk_rows": 100}``, merged into the default) or,
    through ``**{"batch.max_rows": 10}``, one dotted key.
    """
    values: dict[str, Any] = {
        "pipeline": "test",
        "source": {"dsn": database.dsn, "publication": PUBLICATION},
        "destination": {"type": "duckdb", "path": str(tmp_path / "test.duckdb")},
        "batch": {"max_fill_ms": 50},
        "retry": {"initial_delay_ms": 50, "max_delay_ms": 500},
    }
    for key, value in overrides.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        if isinstance(value, Mapping) and isinstance(target.get(last), Mapping):
            value = {**target[last], **value}
            if "type" in value and value["type"] != target[last].get("type", value["type"]):
                value = dict(overrides[key])
        target[last] = value
    return parse_config(values, {})
