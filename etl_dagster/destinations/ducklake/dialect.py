"""How DuckLake spells SQL, and what it can't do."""

# Every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Final

from etl_dagster.destinations.duckdb.dialect import DuckDBDialect
from etl_dagster.destinations.sql.dialect import literal, quote

#: What ALTER TABLE changes; all else is written again as another table.
_WIDER: Final[Mapping[str, frozenset[str]]] = {
    "SMALLINT": frozenset({"INTEGER", "BIGINT"}),
    "INTEGER": frozenset({"BIGINT"}),
    "FLOAT": frozenset({"DOUBLE"}),
}
_IDENTIFIER: Final = re.compile(r'"(?:[^"]|"")*"')
_MARK: Final = "__etl_rewritten"


class DuckLakeDialect(DuckDBDialect):
    """A lake, attached to a DuckDB."""

    name: ClassVar[str] = "DuckLake"
    are_one: ClassVar[str] = (
        "are one name to DuckLake, which doesn't distinguish upper case from lower case"
    )
    #: A row that is updated is written again anyway.
    changes_in_place: ClassVar[bool] = False
    has_keys: ClassVar[bool] = False
    renames_altered: ClassVar[bool] = False

    def add_column(self, table: str, name: str, type_: str, value: str | None = None) -> list[str]:
        """DuckLake takes a text as the default, and reads it as the column's type."""
        if value is None:
            return super().add_column(table, name, type_)
        return [
            f"ALTER TABLE {table} ADD COLUMN {quote(name)} {type_} DEFAULT {literal(value)}",
            f"ALTER TABLE {table} ALTER COLUMN {quote(name)} SET DEFAULT NULL",
        ]

    def change_type(self, table: str, name: str, type_: str) -> list[str]:
        """Most changes make another table of the rows, as DuckLake only widens types.

        What the table was before is in the earlier snapshots.
        """
        own = _IDENTIFIER.findall(table)[-1]
        rewritten = f'{table[:-1]}{_MARK}"'
        column = quote(name)
        return [
            f"CREATE TABLE {rewritten} AS SELECT * REPLACE (CAST({column} AS {type_}) AS {column}) "
            f"FROM {table}",
            f"DROP TABLE {table}",
            f"ALTER TABLE {rewritten} RENAME TO {own}",
        ]
