"""How the SQL of one database differs from another's, and what it can't do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import pyarrow as pa

from etl_dagster.destinations.evolution import (
    AddColumn,
    ChangeColumnType,
    DropColumn,
    MoveTable,
    RenameColumn,
    SchemaChange,
)
from etl_dagster.model.schema import ColumnSchema, TableId, TableSchema
from etl_dagster.table_name import TableName

#: A condition on a column of table IDs; the list of them is the statement's first value.
AMONG = "IN (SELECT unnest($1::BIGINT[]))"
#: A moment in time, as every dialect calls this type.
ZONED = "TIMESTAMP WITH TIME ZONE"


def quote(*names: str) -> str:
    """The names as one SQL identifier, such as ``"public"."orders"``."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def literal(text: str) -> str:
    """The text as an SQL literal, where a statement takes no parameter."""
    return "'" + text.replace("'", "''") + "'"


def column_list(names: Iterable[str]) -> str:
    """The names as columns, such as ``"id", "total"``."""
    return ", ".join(map(quote, names))


class Dialect(ABC):
    """Texts and facts of one database; it asks nothing and holds no connection.

    What is the same everywhere isn't here: identifiers stand in double quotes, parameters are
    ``$1``, lists are arrays, DDL belongs to the transaction, and a schema is made by
    ``CREATE SCHEMA IF NOT EXISTS``.
    """

    #: For people, such as ``DuckDB``.
    name: ClassVar[str]
    #: Why two different names clash; follows "a and b" in a message.
    are_one: ClassVar[str] = "have the same name"
    #: Bytes of the longest name that a table can have; None: there is no limit.
    max_name_bytes: ClassVar[int | None] = None
    #: The column of every table that distinguishes equal rows.
    row_id: ClassVar[str]
    #: Whether row IDs are int64, and a row keeps its own within the transaction: then rows are
    #: found once, and changed by that.
    changes_in_place: ClassVar[bool] = False
    #: What stands before the names of temporary tables, which only this session sees.
    temporary: ClassVar[str]
    #: Types for unsigned integers of 64 and 32 bits.
    uint64: ClassVar[str]
    uint32: ClassVar[str]
    #: Whether a table can have a primary key. Without one the database would let two writers write
    #: the same chunk at the same time; then chunks are names, see `chunks`.
    has_keys: ClassVar[bool] = True
    #: Whether a table that the transaction has altered may get rows and another name in it.
    renames_altered: ClassVar[bool] = True
    #: Whether tables are joined by IS NOT DISTINCT FROM as quickly as by equality.
    joins_nulls: ClassVar[bool] = False
    #: The only column of a table without columns, if the database has no such tables.
    only_column: ClassVar[str | None] = None
    #: The one schema of all tables that `staging` names; None: each is in that of its table.
    staging_schema: ClassVar[str | None] = None
    #: A schema that no table of the source can be in.
    reserved_schema: ClassVar[str | None] = None
    #: Ends a query and locks its rows until the transaction ends; empty where no other
    #: transaction could.
    row_lock: ClassVar[str] = ""
    #: Ends a query for a batch's tables and lets no other batch have them until the transaction
    #: ends; empty where each batch is alone.
    batch_lock: ClassVar[str] = ""
    #: All tables and views that there are: a relation with schema_name, table_name and is_view.
    tables: ClassVar[str] = (
        "(SELECT table_schema AS schema_name, table_name, table_type = 'VIEW' AS is_view "
        "FROM information_schema.tables WHERE table_catalog = current_database())"
    )

    # -- names ---------------------------------------------------------------------------------

    @abstractmethod
    def schema(self, schema_name: str) -> str:
        """The schema, quoted, and with its database if that is needed."""

    def table(self, schema_name: str, table_name: str) -> str:
        """The table in its schema, quoted."""
        return f"{self.schema(schema_name)}.{quote(table_name)}"

    def fold(self, name: str) -> str:
        """Equal for names that are the same to the database."""
        return name

    def fold_table(self, name: TableName) -> tuple[str, str]:
        """Equal for tables whose names are the same to the database."""
        return self.fold(name.schema_name), self.fold(name.table_name)

    def aside(self, table_name: str, mark: str) -> str:
        """A name for a table whose name another one has taken.

        Args:
            mark: its ending, in ASCII.
        """
        if self.max_name_bytes is None:
            return table_name + mark
        room = self.max_name_bytes - len(mark)
        return table_name.encode()[:room].decode(errors="ignore") + mark

    @abstractmethod
    def staging(self, schema_name: str, table_id: TableId) -> TableName:
        """Where a copy in chunks is until it is complete; no table of the source has this name."""

    # -- columns and their values --------------------------------------------------------------

    @abstractmethod
    def column_type(self, column: ColumnSchema) -> str:
        """The type for a column's values; see `ZONED`."""

    def column_types(self, schema: TableSchema) -> dict[str, str]:
        """By column name, the type in which values can be compared with those of the table."""
        return {column.name: self.column_type(column) for column in schema.columns}

    def declared_type(self, column: ColumnSchema) -> str:
        """The type that the column has in the table, where that isn't the one of its values."""
        return self.column_type(column)

    def declared_types(self, schema: TableSchema) -> dict[str, str]:
        """By column name, the type that the column has in the table; in order."""
        return {column.name: self.declared_type(column) for column in schema.columns}

    def exact(self, value: str, type_: str) -> str:
        """SQL for a value; two of them are equal only if Postgres prints them alike."""
        return value

    def same_row(self, pairs: Sequence[tuple[str, str]]) -> str:
        """The condition under which two rows are equal in every column.

        Args:
            pairs: for each column the values of both rows, as `exact` makes them.
        """
        return " AND ".join(f"{one} IS NOT DISTINCT FROM {other}" for one, other in pairs)

    @abstractmethod
    def readable(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The same rows, with what the database can't read from Arrow converted to what it can."""

    @abstractmethod
    def is_cast(self, type_: str) -> bool:
        """Whether staged values are of another type than this one, which the table's have."""

    def select_list(self, names: Iterable[str], types: Mapping[str, str]) -> str:
        """Columns of staged rows, of the types that the table's have: then they are comparable."""
        return ", ".join(
            f"CAST({quote(name)} AS {types[name]}) AS {quote(name)}"
            if self.is_cast(types[name])
            else quote(name)
            for name in names
        )

    def hides_row_id(self, names: Iterable[str]) -> bool:
        """Whether one of the columns has the name of the row ID, and so hides it."""
        return self.row_id in map(self.fold, names)

    # -- tables --------------------------------------------------------------------------------

    def create_schema(self, schema_name: str) -> str:
        """Create the schema where it is missing."""
        return f"CREATE SCHEMA IF NOT EXISTS {self.schema(schema_name)}"

    def create_table(self, table: str, types: Mapping[str, str]) -> str:
        """Create a table, empty, without keys and constraints.

        An index costs memory for every row and every write, and the source has checked all of it
        already.
        """
        columns = ", ".join(f"{quote(name)} {type_}" for name, type_ in types.items())
        return f"CREATE TABLE {table} ({columns})"

    @abstractmethod
    def move_table(self, old: TableName, new: TableName) -> list[str]:
        """Give a table another name, or another schema; refused if there is one already."""

    def change_type(self, table: str, name: str, type_: str) -> list[str]:
        """Give a column another type; values are converted where they can be."""
        return [f"ALTER TABLE {table} ALTER COLUMN {quote(name)} TYPE {type_}"]

    def alter(
        self, table: str, change: SchemaChange, types: tuple[Mapping[str, str], Mapping[str, str]]
    ) -> list[str]:
        """The statements that make the change.

        Args:
            types: declared types of the columns, before and after all changes.
        """
        before, after = types
        match change:
            case MoveTable(old, new):
                return self.move_table(
                    TableName(old.schema_name, old.table_name),
                    TableName(new.schema_name, new.table_name),
                )
            case DropColumn(column):
                return [f"ALTER TABLE {table} DROP COLUMN {quote(column.name)}"]
            case RenameColumn(old_name, new_name):
                return [f"ALTER TABLE {table} RENAME COLUMN {quote(old_name)} TO {quote(new_name)}"]
            case ChangeColumnType(was, now):
                if before[was.name] == after[now.name]:
                    return []
                return self.change_type(table, now.name, after[now.name])
            case AddColumn(column):
                return self.add_column(table, column.name, after[column.name])

    def add_column(self, table: str, name: str, type_: str, value: str | None = None) -> list[str]:
        """Add a column.

        Args:
            value: the value in existing rows, as text; it is null in later ones.
        """
        added = f"ALTER TABLE {table} ADD COLUMN {quote(name)} {type_}"
        if value is None:
            return [added]
        return [
            f"{added} DEFAULT CAST({literal(value)} AS {type_})",
            f"ALTER TABLE {table} ALTER COLUMN {quote(name)} DROP DEFAULT",
        ]
