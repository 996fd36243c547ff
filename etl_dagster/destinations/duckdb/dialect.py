"""How DuckDB spells SQL."""

from __future__ import annotations

import string
from collections.abc import Mapping
from importlib.metadata import version
from typing import ClassVar

import pyarrow as pa

from etl_dagster.destinations.duckdb.tables import column_type, declared_type, readable
from etl_dagster.destinations.sql.dialect import Dialect, quote
from etl_dagster.model.schema import ColumnSchema, TableId
from etl_dagster.table_name import TableName

#: Types whose values come as text.
_FROM_TEXT = ("UUID", "JSON", "INTERVAL", "BIT", "TIME WITH TIME ZONE", "UBIGINT")
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class DuckDBDialect(Dialect):
    """DuckDB, any version of its files.

    Args:
        database: the one that schemas are in; alone, a schema could be taken for a database.
    """

    name: ClassVar[str] = "DuckDB"
    are_one: ClassVar[str] = (
        "are one name to DuckDB, which doesn't distinguish upper case from lower case"
    )
    row_id: ClassVar[str] = "rowid"
    changes_in_place: ClassVar[bool] = True
    joins_nulls: ClassVar[bool] = True
    #: Earlier versions refuse a transaction that alters a table and changes rows of it.
    renames_altered: ClassVar[bool] = int(version("duckdb").split(".")[0]) >= 2
    temporary: ClassVar[str] = "temp.main."
    uint64: ClassVar[str] = "UBIGINT"
    uint32: ClassVar[str] = "UINTEGER"
    only_column: ClassVar[str | None] = "_empty"

    def __init__(self, database: str | None = None) -> None:
        self._database = database

    def schema(self, schema_name: str) -> str:
        return quote(*([self._database] if self._database else []), schema_name)

    def fold(self, name: str) -> str:
        """The case of ASCII letters alone is ignored."""
        return name.translate(_LOWER)

    def staging(self, schema_name: str, table_id: TableId) -> TableName:
        """In the table's schema, since tables are renamed but not moved between schemas.

        It has more than 63 bytes, so that no table of a Postgres can have it.
        """
        name = f"_etl_copy_{table_id}_becomes_the_table_with_that_oid_when_it_is_complete"
        return TableName(schema_name, name)

    def column_type(self, column: ColumnSchema) -> str:
        return column_type(column)

    def readable(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return readable(rows)

    def declared_type(self, column: ColumnSchema) -> str:
        return declared_type(column)

    def is_cast(self, type_: str) -> bool:
        return any(name in type_ for name in _FROM_TEXT)

    def exact(self, value: str, type_: str) -> str:
        """To DuckDB, a day is 24 hours."""
        return f"CAST({value} AS VARCHAR)" if "INTERVAL" in type_ else value

    def create_table(self, table: str, types: Mapping[str, str]) -> str:
        """Without an index a key may also be deleted and inserted in one transaction; and there is
        no table without a column."""
        return super().create_table(table, types or {str(self.only_column): "BOOLEAN"})

    def move_table(self, old: TableName, new: TableName) -> list[str]:
        before = self.table(old.schema_name, old.table_name)
        if self.fold(old.schema_name) == self.fold(new.schema_name):
            return [f"ALTER TABLE {before} RENAME TO {quote(new.table_name)}"]
        # DuckDB can't move a table to another schema.
        after = self.table(new.schema_name, new.table_name)
        return [
            self.create_schema(new.schema_name),
            f"CREATE TABLE {after} AS FROM {before}",
            f"DROP TABLE {before}",
        ]
