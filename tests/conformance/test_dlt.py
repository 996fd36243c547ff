"""Destinations of dlt keep what every destination promises."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.dlt import DltDestination
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing import DestinationSuite
from etl_dagster.testing.changes import Row

pytest.importorskip("dlt")


class TestDuckDB(DestinationSuite):
    """Read as others read it, from the file that dlt has written."""

    # dlt finds rows by their key, so tables without one are only appended to.
    test_a_row_without_a_key_is_found_by_its_parts = None
    test_of_several_equal_rows_one_is_deleted_for_each_delete = None
    test_an_update_without_a_key_replaces_one_equal_row = None
    test_random_changes_end_in_what_the_source_has = None

    def make_destination(self, folder: Path) -> DltDestination:
        self.path = folder / "warehouse.duckdb"
        return DltDestination("duckdb", credentials=str(self.path), work_folder=folder.parent)

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        with duckdb.connect(str(self.path)) as connection:
            name = f'"{schema.schema_name}"."{schema.table_name}"'
            found: list[Row] = connection.table(name).to_arrow_table().to_pylist()
        return [{name: row.get(name) for name in schema.column_names} for row in found]

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        with duckdb.connect(str(self.path)) as connection:
            found = connection.execute(
                "FROM duckdb_tables() SELECT 1 WHERE schema_name = ? AND table_name = ?",
                [schema.schema_name, schema.table_name],
            ).fetchall()
        return bool(found)
