"""A Postgres that dlt loads into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.database import Database


@contextmanager
def warehouse_of(database: Database) -> Iterator[str]:
    """Another database of the server; its DSN."""
    name = f"{database.name}_warehouse"
    with psycopg.connect(database.server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield make_conninfo(database.dsn, dbname=name)
        finally:
            drop = sql.SQL("drop database {} with (force)")
            connection.execute(drop.format(sql.Identifier(name)))


def uri(dsn: str, **more: str) -> str:
    """As dlt takes it."""
    parts = {name: quote(str(value)) for name, value in conninfo_to_dict(dsn).items()} | more
    return "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**parts)
