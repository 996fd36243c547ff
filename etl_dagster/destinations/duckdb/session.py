"""A DuckDB connection as the session of a merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from etl_dagster.destinations.duckdb import enums
from etl_dagster.destinations.duckdb.dialect import DuckDBDialect
from etl_dagster.destinations.sql.labels import pieces_with_room
from etl_dagster.destinations.sql.session import Rows, Session, Statement
from etl_dagster.model.schema import TableSchema


class DuckDBSession(Session):
    """Reads rows where Arrow has them, without a copy.

    Args:
        connection: in a transaction that the caller ends.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection

    @cached_property
    def dialect(self) -> DuckDBDialect:
        [(database,)] = self.fetch("SELECT current_database()")
        return DuckDBDialect(database)

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        # Only what changes rows has a result, which is their number.
        rows = self.fetch(sql, values)
        return rows[0][0] if rows else 0

    def fetch(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        # A result that isn't read to its end keeps the connection busy.
        return self.connection.execute(sql, list(values) or None).fetchall()

    def fetch_arrays(self, statement: Statement) -> Mapping[str, np.ndarray]:
        with self.staged(statement.staged):
            found = self.connection.execute(statement.sql, list(statement.values)).fetchnumpy()
        return {name: np.ma.getdata(array) for name, array in found.items()}

    def make_room(
        self, table: str, known: TableSchema, wanted: TableSchema, rows: pa.RecordBatch
    ) -> TableSchema:
        return enums.make_room(self, table, known, wanted, rows)

    def make_room_as(self, table: str, other: str, schema: TableSchema) -> None:
        enums.make_room_as(self, table, other, schema)

    def stretches(
        self, table: str, schema: TableSchema, batches: Iterator[pa.RecordBatch]
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        return pieces_with_room(self, table, schema, batches)

    def stage(self, name: str, rows: Rows) -> None:
        self.connection.register(name, rows)

    def release(self, name: str) -> None:
        self.connection.unregister(name)
