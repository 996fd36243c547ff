"""A table with a column for each type, and one for arrays of each."""

from __future__ import annotations

from random import Random

import psycopg

from tests.support.database import PUBLICATION, Database
from tests.support.random_values import DECLARATIONS, EXTENSIONS, Kind, every_kind


def create_values(database: Database) -> list[Kind]:
    """Table ``v``, published: a column ``c0``, ``c1`` and so on for each kind of value."""
    with database.connect() as admin:
        rows = admin.execute("select name from pg_available_extensions").fetchall()
        extensions = [name for name in EXTENSIONS if (name,) in rows]
        for name in extensions:
            admin.execute(f"create extension {name}")
    database.execute(DECLARATIONS)
    kinds = every_kind(extensions)
    if not has_xml(database):
        kinds = [kind for kind in kinds if not kind.name.startswith("xml")]
    columns = ", ".join(f"c{place} {kind.name}" for place, kind in enumerate(kinds))
    database.execute(
        f"create table v (id int primary key, {columns})",
        f"create publication {PUBLICATION} for table v",
    )
    return kinds


def has_xml(database: Database) -> bool:
    try:
        database.query("select '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        return False
    return True


def value_of(kind: Kind, number: int, random: Random) -> str:
    """Every edge once, then others."""
    if number < len(kind.edges):
        return f"({kind.edges[number]})::{kind.name}"
    return kind.maybe(random)
