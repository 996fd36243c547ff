"""The demo's roles and databases: each program may do what it needs and no more."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from etl_dagster.demo.flights import TABLES, Progress, is_loaded, load_flights
from etl_dagster.demo.ports import HOST
from etl_dagster.demo.server import EmbeddedPostgres

#: Holds the tables that are replicated.
SOURCE = "flights"
#: The state store, owned by the role `PIPELINE`.
STATE = "etl"
#: Dagster's runs, events and sensor ticks, owned by the role `DAGSTER`.
DAGSTER_STORAGE = "dagster"

#: Replicates: REPLICATION, and SELECT on the published tables.
PIPELINE = "etl"
#: The airline's own program, which changes flights and weather.
AIRLINE = "airline"
DAGSTER = "dagster"

_ROLES = (PIPELINE, AIRLINE, DAGSTER)
_Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Databases:
    """How each program logs in, with a role of its own."""

    server: EmbeddedPostgres
    passwords: dict[str, str]

    def dsn(self, database: str, role: str) -> str:
        return self.server.dsn(database, user=role, password=self.passwords[role])

    def uri(self, database: str, role: str, schema: str) -> str:
        """As Meltano's state backend takes it."""
        password = quote(self.passwords[role], safe="")
        return f"postgresql://{role}:{password}@{HOST}:{self.server.port}/{database}/{schema}"

    def __repr__(self) -> str:
        return f"Databases(port={self.server.port})"


def prepare(server: EmbeddedPostgres, progress: Progress | None = None) -> Databases:
    """Create what is missing, and load the data if it is not there yet."""
    databases = Databases(server, _passwords(server.folder / "roles.json"))
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for role, password in databases.passwords.items():
            _create_role(admin, role, password)
        admin.execute(sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(PIPELINE)))
        for database, owner in ((SOURCE, None), (STATE, PIPELINE), (DAGSTER_STORAGE, DAGSTER)):
            _create_database(admin, database, owner)
    with psycopg.connect(server.dsn(SOURCE), autocommit=True) as admin:
        if not is_loaded(admin):
            load_flights(admin, progress)
        grants = (
            ("SELECT", TABLES, PIPELINE),
            ("SELECT", TABLES, AIRLINE),
            ("INSERT, UPDATE, DELETE", ("flights", "weather"), AIRLINE),
        )
        for rights, tables, role in grants:
            names = sql.SQL(", ").join(sql.Identifier("public", table) for table in tables)
            statement = sql.SQL("GRANT {} ON {} TO {}")
            admin.execute(statement.format(sql.SQL(rights), names, sql.Identifier(role)))
    return databases


def _passwords(file: Path) -> dict[str, str]:
    """One for each role, random, kept in a file that only its owner can read."""
    try:
        kept: dict[str, str] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        kept = {}
    wanted = {role: kept.get(role) or secrets.token_urlsafe(18) for role in _ROLES}
    if wanted != kept:
        write_private(file, json.dumps(wanted))
    return wanted


def write_private(file: Path, text: str) -> None:
    """Write a file that holds a secret, for its owner alone; as a whole or not at all."""
    unfinished = file.with_name(f"{file.name}.new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
    unfinished.replace(file)


def _create_role(admin: _Connection, role: str, password: str) -> None:
    name = sql.Identifier(role)
    if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is None:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    # Hashed here: the server's log may quote a statement.
    hashed = admin.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(hashed.decode())))


def _create_database(admin: _Connection, database: str, owner: str | None) -> None:
    found = admin.execute("SELECT FROM pg_database WHERE datname = %s", [database]).fetchone()
    if found is not None:
        return
    statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database))
    if owner is not None:
        statement += sql.SQL(" OWNER {}").format(sql.Identifier(owner))
    admin.execute(statement)
