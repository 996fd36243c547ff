"""A connection to a lake as the session of a merge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import duckdb

from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.ducklake.attaching import NAME
from etl_dagster.destinations.ducklake.dialect import DuckLakeDialect
from etl_dagster.destinations.ducklake.inlining import Inlining
from etl_dagster.destinations.ducklake.renames import AlteredTables


class DuckLakeSession(DuckDBSession):
    """A session that knows whether it has written anything.

    Args:
        connection: in a transaction that the caller ends.
        inline_rows: so many rows of one write, at most, stay in the catalog.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, inline_rows: int = 0) -> None:
        super().__init__(connection)
        self._inlining = Inlining(connection, inline_rows)
        self._renames = AlteredTables()
        #: Whether the transaction leaves a new snapshot.
        self.has_written = False

    @cached_property
    def dialect(self) -> DuckLakeDialect:
        return DuckLakeDialect(NAME)

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        *first, last = self._renames.instead(sql)
        for each in first:
            self._run(each)
        return self._run(last, values)

    def _run(self, sql: str, values: Sequence[object] = ()) -> int:
        self._inlining.before(sql)
        rows = self.connection.execute(sql, list(values) or None).fetchall()
        # Only what changes rows has a result, which is their number; DDL has none.
        if not rows or rows[0][0]:
            self.has_written = True
        return rows[0][0] if rows else 0

    def fetch(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, list(values) or None).fetchall()
