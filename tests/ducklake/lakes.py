"""Lakes for tests, and their contents as read with DuckDB alone."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import filelock

from etl_dagster.destinations.ducklake.attaching import LakePlace, attach, open_duckdb
from etl_dagster.destinations.ducklake.catalogs import parse_catalog
from tests.support.database import Database

INLINE_ROWS = 10


def lake_in_file(kind: str, folder: Path, **settings: Any) -> LakePlace:
    """A lake whose catalog is a file in `folder`, and so are its data."""
    return _place(f"{kind}:{folder / f'catalog.{kind}'}", None, folder, settings)


def lake_at_server(database: Database, folder: Path, **settings: Any) -> LakePlace:
    """A lake whose catalog has a schema of its own in the database, for each folder."""
    schema = "lake_" + hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return _place(database.dsn, schema, folder, settings)


def _place(catalog: str, schema: str | None, folder: Path, settings: dict[str, Any]) -> LakePlace:
    defaults = {"inline_rows": INLINE_ROWS, "memory_limit": "256MB"}
    return LakePlace(parse_catalog(catalog, schema), str(folder / "data"), **(defaults | settings))


#: By extension of the catalog; loading these takes longer than all else that a reader does.
_DATABASES: dict[str | None, duckdb.DuckDBPyConnection] = {}


@contextmanager
def reading(place: LakePlace, *, read_only: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection of a reader's own."""
    path = getattr(place.catalog, "path", None)
    lock = filelock.FileLock(f"{path}.lock") if path else contextlib.nullcontext()
    extension = place.catalog.extension
    if extension not in _DATABASES:
        _DATABASES[extension] = open_duckdb(place)
    database = _DATABASES[extension]
    with lock:
        attach(database, place, read_only=read_only)
        try:
            with database.cursor() as connection:
                connection.execute("USE lake")
                yield connection
        finally:
            database.execute("DETACH lake")


def rows_of(place: LakePlace, sql: str, values: list[Any] | None = None) -> list[dict[str, Any]]:
    """The rows of a query."""
    with reading(place) as connection:
        found: list[dict[str, Any]] = (
            connection.execute(sql, values or None).to_arrow_table().to_pylist()
        )
    return found
