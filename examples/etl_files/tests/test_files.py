"""The suites that every store and every destination has to pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from etl_dagster.lsn import Lsn
from etl_dagster.model.destination import Capabilities, Destination
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing import CoordinationSuite, DestinationSuite, Recorded, StoreSuite

from etl_files import (
    JsonLinesDestination,
    SharedSqliteStore,
    SqliteStore,
    read_lines,
    read_table,
    table_path,
)


class TestSqliteStore(StoreSuite):
    def make_store(self, folder: Path) -> SqliteStore:
        return SqliteStore(folder / "state.db", "shop")


class TestSharedSqliteStore(CoordinationSuite):
    def make_store(self, folder: Path) -> SharedSqliteStore:
        return SharedSqliteStore(folder / "state.db", "shop")


class TestJsonLines(DestinationSuite):
    def make_destination(self, folder: Path) -> JsonLinesDestination:
        self.folder = folder / "out"
        return JsonLinesDestination(self.folder)

    def capabilities(self, destination: Destination) -> Capabilities:
        # read_table() makes of all changes in a file the rows that the table has.
        return replace(destination.capabilities, mirror=True)

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[dict[str, Any]]:
        return read_table(self.path_of(schema))

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        return self.path_of(schema).exists()

    def read_changes(self, destination: Destination, schema: TableSchema) -> Sequence[Recorded]:
        changes = [line for line in read_lines(self.path_of(schema)) if "position" in line]
        return [
            Recorded(
                change["type"][0].upper(),
                Lsn.parse(change["position"]["commit_lsn"]).offset,
                change["position"]["ordinal"],
                change.get("row"),
            )
            for change in changes
        ]

    def path_of(self, schema: TableSchema) -> Path:
        return table_path(self.folder, schema.schema_name, schema.table_name)
