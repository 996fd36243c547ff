"""Tables of the source as tables of the destination: made, changed and dropped."""

# Every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from etl_dagster.destinations.evolution import (
    AddColumn,
    DropColumn,
    MoveTable,
    schema_changes,
)
from etl_dagster.destinations.sql.clashes import require_possible
from etl_dagster.destinations.sql.dialect import Dialect, quote
from etl_dagster.destinations.sql.session import Session
from etl_dagster.model.schema import TableSchema
from etl_dagster.table_name import TableName
from etl_dagster.values.text import missing_value


@dataclass(frozen=True)
class Target:
    """A table of the destination, as statements name it."""

    dialect: Dialect
    schema: TableSchema
    #: Where it is stored.
    name: TableName
    #: By name, the types of columns that it has besides those of the source; see `modes`.
    added: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, dialect: Dialect, schema: TableSchema) -> Target:
        """The table under the name that its schema has."""
        return cls(dialect, schema, TableName(schema.schema_name, schema.table_name))

    @classmethod
    def staging(cls, dialect: Dialect, schema: TableSchema) -> Target:
        """The table that holds a copy until it is complete."""
        return cls(dialect, schema, dialect.staging(schema.schema_name, schema.id))

    @cached_property
    def sql(self) -> str:
        return self.dialect.table(self.name.schema_name, self.name.table_name)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.schema.column_names, *self.added)

    @cached_property
    def types(self) -> dict[str, str]:
        """By column name, the type in which values can be compared with those of the table."""
        return self.dialect.column_types(self.schema) | dict(self.added)


def create_table(session: Session, target: Target) -> None:
    """Create the table, empty, and its schema; refused if there is one with its name.

    Raises:
        TableWriteFailed: the database would take two of its columns for one.
    """
    dialect = session.dialect
    require_possible(dialect, target.schema)
    session.prepare_types(target.schema)
    session.execute(dialect.create_schema(target.name.schema_name))
    types = dialect.declared_types(target.schema) | dict(target.added)
    session.execute(dialect.create_table(target.sql, types))


def move_table(session: Session, old: TableName, new: TableName) -> None:
    """Give a table another name, or another schema; refused if there is one already."""
    session.run_each(session.dialect.move_table(old, new))


def drop_tables(session: Session, names: Iterable[TableName]) -> None:
    """Drop staging tables, in whatever schemas they are: those of their tables may have changed."""
    dialect = session.dialect
    found = session.fetch(
        f"SELECT schema_name, table_name FROM {dialect.tables} AS there "
        "WHERE table_name IN (SELECT unnest($1::VARCHAR[])) AND NOT is_view",
        [[name.table_name for name in names]],
    )
    for schema_name, name in found:
        # In another schema, it may be a table of the source with this name.
        if dialect.staging_schema not in (None, schema_name):
            continue
        session.execute(f"DROP TABLE {dialect.table(schema_name, name)}")


def evolve(session: Session, old: TableSchema, new: TableSchema) -> None:
    """Give the table its new name, columns and types; values are converted where they can be.

    Raises:
        TableWriteFailed: the database would take two of its columns for one.
    """
    dialect = session.dialect
    require_possible(dialect, new)
    session.prepare_types(new)
    types = dialect.declared_types(old), dialect.declared_types(new)
    table = Target.of(dialect, old).sql
    filled: list[tuple[str, pa.Array[Any]]] = []
    changes = schema_changes(old, new)
    is_any_kept = len(old.columns) > sum(isinstance(change, DropColumn) for change in changes)
    only = None if is_any_kept or dialect.only_column is None else quote(dialect.only_column)
    if only is not None:
        session.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {only} BOOLEAN")
    for change in changes:
        if isinstance(change, AddColumn) and (value := missing_value(change.column)) is not None:
            name = change.column.name
            if pa.types.is_nested(value.type):
                filled.append((name, value))
            else:
                text = _printed(session, value, types[1][name])
                session.run_each(dialect.add_column(table, name, types[1][name], text))
                continue
        session.run_each(dialect.alter(table, change, types))
        if isinstance(change, MoveTable):
            table = Target.of(dialect, new).sql
    if only is not None and new.columns:
        session.execute(f"ALTER TABLE {table} DROP COLUMN {only}")
    # Before version 2, DuckDB alters no table of which the transaction has updated rows.
    for name, value in filled:
        _fill_column(session, table, name, value, types[1][name])


def _printed(session: Session, value: pa.Array[Any], type_: str) -> str:
    """The value as the database prints it: ALTER TABLE takes no parameters."""
    with session.staged({"_etl_missing": pa.RecordBatch.from_arrays([value], ["value"])}):
        [(text,)] = session.fetch(
            f"SELECT CAST(CAST(value AS {type_}) AS VARCHAR) FROM _etl_missing"
        )
    return str(text)


def _fill_column(session: Session, table: str, name: str, value: pa.Array[Any], type_: str) -> None:
    """Give all rows a value whose text isn't always read back as the same value."""
    missing = pa.RecordBatch.from_arrays([value], ["value"])
    with session.staged({"_etl_missing": missing}):
        session.execute(
            f"UPDATE {table} SET {quote(name)} = (SELECT CAST(value AS {type_}) FROM _etl_missing)"
        )
