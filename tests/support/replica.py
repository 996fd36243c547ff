"""A pipeline into memory that a test starts and stops, changing the source in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.model.stores import PipelineStore
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.stores.memory import MemoryStore
from tests.support.database import Database
from tests.support.waiting import PATIENCE_S

Row = tuple[Any, ...]


class Replica:
    """A pipeline into memory that is started and stopped, and what it copied."""

    def __init__(
        self, database: Database, config: PipelineConfig, store: PipelineStore | None = None
    ) -> None:
        self.database = database
        self.config = config
        self.store: Any = store or MemoryStore()
        self.destination = MemoryDestination()

    @contextmanager
    def running(self) -> Iterator[Pipeline]:
        pipeline = Pipeline(self.config, self.store, self.destination)
        pipeline.start()
        try:
            assert pipeline.wait_until_caught_up(PATIENCE_S)
            yield pipeline
        finally:
            pipeline.shutdown()
            assert pipeline.wait(PATIENCE_S)

    def catch_up(self) -> None:
        with self.running():
            pass

    def rows(self, table: str) -> list[Row]:
        return sorted(
            (
                # A row that was updated has its columns in another order.
                tuple(row.get(name) for name in kept.schema.column_names)
                for kept in self.destination.tables.values()
                if kept.schema.name == table
                for row in kept.rows
            ),
            key=repr,
        )

    def assert_in_step(self, *tables: str) -> None:
        for table in tables:
            expected = self.database.query(f"select * from {table}")
            assert self.rows(table) == sorted(expected, key=repr), table
