"""These tests have an environment of their own, with a DuckDB that has a DuckLake extension."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.destinations.ducklake import attaching
from tests.support.database import Database

# Otherwise DuckDB hashes an extension (tens of MB) at each load, to verify its signature.
attaching._CONFIG["allow_unsigned_extensions"] = True

if importlib.util.find_spec("duckdb_extension_ducklake") is None:
    # `make test-ducklake` runs them.
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def lake_database(newest_server: EmbeddedPostgres) -> Iterator[Database]:
    """A database for catalogs; each lake has a schema of its own."""
    with Database.create(newest_server) as database:
        yield database
