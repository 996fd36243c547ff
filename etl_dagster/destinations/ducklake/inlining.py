"""Which small writes stay in the catalog.

A catalog that isn't a DuckDB's has no types with parts, and keeps such values as text. Read back, a
STRUCT may be another one (as of DuckDB 1.5.5, ``it's "x"`` in one becomes ``its "x"``), so tables
with such columns are written to files only. Lists of plain values are read back as they were.
"""

from __future__ import annotations

import re
from typing import Final

import duckdb

_TARGET: Final = re.compile(r'\s*(?:INSERT INTO|UPDATE) +((?:"(?:[^"]|"")*")(?:\."(?:[^"]|"")*")*)')
_MAKES_TABLE: Final = re.compile(r"\s*(?:CREATE TABLE|ALTER TABLE|DROP TABLE) ")
_UNSAFE: Final = re.compile(r"\b(?:STRUCT|MAP|UNION|VARIANT)\b")


class Inlining:
    """Sets DuckLake's limit before each statement that writes a table of the source.

    The ledger has a limit of its own, which is kept in the lake.

    Args:
        connection: of one transaction.
        limit: rows of one write.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, limit: int) -> None:
        self._connection = connection
        self._limit = limit
        self._now: int | None = None
        #: By table as SQL, whether what is written to it may stay in the catalog.
        self._is_safe: dict[str, bool] = {}

    def before(self, sql: str) -> None:
        """A statement is about to be run."""
        if _MAKES_TABLE.match(sql):
            self._is_safe.clear()
            self._set(0)  # it may hold rows at once
        elif (found := _TARGET.match(sql)) is not None:
            self._set(self._limit if self._may_stay(found[1]) else 0)

    def _may_stay(self, table: str) -> bool:
        if table not in self._is_safe:
            columns = self._connection.execute(f"DESCRIBE {table}").fetchall()
            self._is_safe[table] = not any(_UNSAFE.search(column[1]) for column in columns)
        return self._is_safe[table]

    def _set(self, limit: int) -> None:
        if limit != self._now:
            self._connection.execute(
                f"SET SESSION ducklake_default_data_inlining_row_limit = {limit:d}"
            )
            self._now = limit
