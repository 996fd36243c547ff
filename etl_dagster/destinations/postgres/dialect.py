"""How Postgres spells SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import pyarrow as pa

from etl_dagster.destinations.postgres.printing import staged_type
from etl_dagster.destinations.postgres.types import column_type
from etl_dagster.destinations.sql.dialect import Dialect, literal, quote
from etl_dagster.model.schema import ColumnSchema, TableId
from etl_dagster.table_name import TableName
from etl_dagster.values.form import Form
from etl_dagster.values.registry import REGISTRY

#: Types of which staged rows have the values themselves, by name.
_AS_STAGED: Final = {
    row.name: row.form.arrow
    for row in REGISTRY.values()
    if isinstance(row.form, Form) and staged_type(row.form.arrow) == row.name
}


class PostgresDialect(Dialect):
    """Postgres from version 14 on."""

    name: ClassVar[str] = "Postgres"
    max_name_bytes: ClassVar[int | None] = 63
    row_id: ClassVar[str] = "ctid"
    temporary: ClassVar[str] = "pg_temp."
    uint64: ClassVar[str] = "NUMERIC(20)"
    uint32: ClassVar[str] = "BIGINT"
    row_lock: ClassVar[str] = " FOR SHARE"
    batch_lock: ClassVar[str] = " ORDER BY table_id FOR UPDATE"
    staging_schema: ClassVar[str | None] = "_etl"
    reserved_schema: ClassVar[str | None] = "_etl"
    # Indexes and sequences share the names of tables.
    tables: ClassVar[str] = (
        "(SELECT n.nspname AS schema_name, c.relname AS table_name, c.relkind <> 'r' AS is_view "
        "FROM pg_catalog.pg_class AS c "
        "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE c.relpersistence <> 't')"
    )

    def schema(self, schema_name: str) -> str:
        return quote(schema_name)

    def staging(self, schema_name: str, table_id: TableId) -> TableName:
        return TableName("_etl", f"copy_of_{table_id}")

    def column_type(self, column: ColumnSchema) -> str:
        return column_type(column)

    def readable(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """All of it is printed where it is sent."""
        return rows

    def is_cast(self, type_: str) -> bool:
        return type_ not in _AS_STAGED

    def exact(self, value: str, type_: str) -> str:
        """Some types have no equality, and to others 1.0 is 1.00."""
        arrow = _AS_STAGED.get(type_)
        # Zero has two signs.
        is_exact = arrow is not None and not pa.types.is_floating(arrow)
        return value if is_exact else f"CAST({value} AS text)"

    def same_row(self, pairs: Sequence[tuple[str, str]]) -> str:
        """By one text each: what may be null on both sides is neither hashed nor sorted."""
        one, other = (
            f"CAST(ROW({', '.join(values)}) AS text)" for values in zip(*pairs, strict=True)
        )
        return f"{one} = {other}"

    def hides_row_id(self, names: object) -> bool:
        """No column can be called as one of the system's."""
        return False

    def create_schema(self, schema_name: str) -> str:
        """Who may not create schemas may still use one that is there."""
        name = quote(schema_name)
        return f"DO {literal(_create_schema(name))}"

    def move_table(self, old: TableName, new: TableName) -> list[str]:
        before = self.table(old.schema_name, old.table_name)
        renamed = f"RENAME TO {quote(new.table_name)}"
        if old.schema_name == new.schema_name:
            return [f"ALTER TABLE {before} {renamed}"]
        moved = f"SET SCHEMA {quote(new.schema_name)}"
        steps = [self.create_schema(new.schema_name)]
        if old.table_name == new.table_name:
            return [*steps, f"ALTER TABLE {before} {moved}"]
        # Either name may be taken in the other schema.
        aside = "_etl moving"
        return [
            *steps,
            f"ALTER TABLE {before} RENAME TO {quote(aside)}",
            f"ALTER TABLE {self.table(old.schema_name, aside)} {moved}",
            f"ALTER TABLE {self.table(new.schema_name, aside)} {renamed}",
        ]

    def change_type(self, table: str, name: str, type_: str) -> list[str]:
        column = quote(name)
        # By way of the text, where one of the two is a type of a user's own.
        value = f"CAST({column} AS text)" if "." in type_ else column
        return [
            f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {type_} USING CAST({value} AS {type_})"
        ]

    def create_table(self, table: str, types: Mapping[str, str]) -> str:
        """Without its key, which is made when all rows are there: see `Session.complete`."""
        return super().create_table(table, types)


def _create_schema(name: str) -> str:
    return (
        f"BEGIN IF pg_catalog.to_regnamespace({literal(name)}) IS NULL "
        f"THEN CREATE SCHEMA {name}; END IF; END"
    )


def key_name(table_id: TableId) -> str:
    """What a table's primary key is called, wherever the table is."""
    return f"_etl_key_{table_id}"
