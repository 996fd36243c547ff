"""A lake keeps what every destination promises, with a catalog of each kind.

All of it with one kind, since the statements are the same; of the others, that they can be written
and read. `test_killed_workers.py` has a catalog in Postgres.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.ducklake import DuckLakeDestination
from etl_dagster.destinations.ducklake.attaching import LakePlace
from etl_dagster.destinations.sql.dialect import quote
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing import DestinationSuite, Recorded
from etl_dagster.testing.changes import Row
from etl_dagster.testing.marking import MarkChecks
from etl_dagster.testing.offering import OfferChecks
from etl_dagster.testing.sharing import SharedCopyChecks
from etl_dagster.testing.subject import DestinationHooks, Subject
from tests.conformance.test_destinations import ChecksOfOurOwn
from tests.ducklake.lakes import lake_at_server, lake_in_file, reading, rows_of
from tests.support.database import Database


class LakeHooks(DestinationHooks):
    """Read as any other client would, with DuckDB."""

    def lake(self, folder: Path) -> LakePlace:
        raise NotImplementedError

    def make_destination(self, folder: Path) -> DuckLakeDestination:
        self.place = self.lake(folder)
        return DuckLakeDestination(self.place, changelog=True, timeout_s=20)

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        return rows_of(self.place, f"FROM {quote(schema.schema_name, schema.table_name)}")

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        return bool(
            rows_of(
                self.place,
                "FROM duckdb_tables() SELECT 1 WHERE schema_name = ? AND table_name = ? "
                "AND database_name = current_database()",
                [schema.schema_name, schema.table_name],
            )
        )

    def read_odd_values(
        self, destination: Destination, schema: TableSchema
    ) -> list[tuple[Row, str, str]]:
        with reading(self.place) as connection:
            found = connection.execute(
                "FROM _etl.odd_values SELECT key, column_name, text WHERE table_id = ?", [schema.id]
            ).fetchall()
        return [
            (dict(zip(schema.key_columns, key or (), strict=True)), column, text)
            for key, column, text in found
        ]

    def read_quarantined(self, destination: Destination, schema: TableSchema) -> list[Row]:
        twin = quote("_etl_quarantine", f"{schema.schema_name}.{schema.table_name}")
        with suppress(duckdb.CatalogException):
            return rows_of(self.place, f"FROM {twin}")
        return []

    def read_changes(self, destination: Destination, schema: TableSchema) -> list[Recorded]:
        with reading(self.place) as connection:
            found = connection.execute(
                "FROM _etl.changelog SELECT op, commit_lsn, ordinal WHERE table_id = ? "
                "ORDER BY commit_lsn, ordinal",
                [schema.id],
            ).fetchall()
        return [Recorded(*entry) for entry in found]


class TestCatalogInDuckDB(LakeHooks, ChecksOfOurOwn, DestinationSuite):
    # Seconds each, and `test_modes.py` has more at random.
    @pytest.mark.parametrize("seed", range(2))
    def test_random_changes_end_in_what_the_source_has(self, subject: Subject, seed: int) -> None:
        super().test_random_changes_end_in_what_the_source_has(subject, seed)

    def lake(self, folder: Path) -> LakePlace:
        return lake_in_file("duckdb", folder)


class TestCatalogInSQLite(LakeHooks, OfferChecks):
    def lake(self, folder: Path) -> LakePlace:
        return lake_in_file("sqlite", folder)


class TestCatalogInPostgres(LakeHooks, MarkChecks, SharedCopyChecks):
    @pytest.fixture(autouse=True)
    def serve(self, lake_database: Database) -> None:
        self.database = lake_database

    def lake(self, folder: Path) -> LakePlace:
        return lake_at_server(self.database, folder)
