"""Test classes that define too little, for the errors that they get."""

from __future__ import annotations

from pathlib import Path

from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing import DestinationSuite, StoreSuite
from etl_dagster.testing.changes import Row


class TestNoStore(StoreSuite):
    promise = "test_progress_never_moves_back"


class TestNoDestination(DestinationSuite):
    promise = "test_a_deleted_row_is_gone"


class TestNoWayToRead(DestinationSuite):
    promise = "test_a_deleted_row_is_gone"

    def make_destination(self, folder: Path) -> MemoryDestination:
        return MemoryDestination()


class TestTheLeast(TestNoWayToRead):
    """The five lines, and then a check that is left out."""

    promise = None  # type: ignore[assignment]
    durable = False

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        assert isinstance(destination, MemoryDestination)
        return destination.rows(schema.name)

    test_a_deleted_row_is_gone = None  # type: ignore[assignment]
