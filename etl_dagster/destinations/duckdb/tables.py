"""Tables as DuckDB knows them: names, column types, and their change."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.destinations.evolution import (
    AddColumn,
    ChangeColumnType,
    DropColumn,
    MoveTable,
    RenameColumn,
    schema_changes,
)
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.table_name import TableName
from etl_dagster.values.form import Form
from etl_dagster.values.forms import form_of, labels_of
from etl_dagster.values.text import missing_value

#: Types whose values come as text.
_FROM_TEXT = ("UUID", "JSON", "INTERVAL", "BIT", "TIME WITH TIME ZONE", "UBIGINT")
_ARE_ONE = "are one name to DuckDB, which doesn't distinguish upper case from lower case"
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_BY_ARROW = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
}


#: What the database of each connection is called; it takes a query to learn that.
_databases: WeakKeyDictionary[duckdb.DuckDBPyConnection, str] = WeakKeyDictionary()


def fetch_row(
    connection: duckdb.DuckDBPyConnection, sql: str, values: Sequence[object] = ()
) -> tuple[Any, ...] | None:
    """The one row of a query, or None."""
    # A result that isn't read to its end keeps the connection busy.
    rows = connection.execute(sql, list(values)).fetchall()
    return rows[0] if rows else None


def quote(*names: str) -> str:
    """The names as one SQL identifier, such as ``"public"."orders"``."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def fold(name: TableName) -> tuple[str, str]:
    """Equal for names that are one to DuckDB: it ignores the case of ASCII letters alone."""
    return _fold(name.schema_name), _fold(name.table_name)


def _fold(name: str) -> str:
    return name.translate(_LOWER)


def find_clashes(schemas: Iterable[TableSchema]) -> list[str]:
    """Tables, and columns of one table, whose names are one to DuckDB; a sentence for each."""
    found: list[str] = []
    known: dict[tuple[str, str], TableSchema] = {}
    for schema in schemas:
        other = known.setdefault(fold(TableName(schema.schema_name, schema.table_name)), schema)
        if other is not schema:
            found.append(f"{other.name} and {schema.name} {_ARE_ONE}")
        found += _column_clashes(schema)
    return found


def _column_clashes(schema: TableSchema) -> list[str]:
    found: list[str] = []
    known: dict[str, str] = {}
    for name in schema.column_names:
        other = known.setdefault(_fold(name), name)
        if other != name:
            found.append(f'the columns "{other}" and "{name}" of {schema.name} {_ARE_ONE}')
    return found


def _require_distinct_columns(schema: TableSchema) -> None:
    for clash in _column_clashes(schema):
        raise TableWriteFailed(
            schema.id,
            clash,
            solution="Rename one of them in the source, or leave it out of the publication with "
            "a column list; then reset the table.",
        )


def column_list(names: Iterable[str]) -> str:
    return ", ".join(map(quote, names))


def table_name(connection: duckdb.DuckDBPyConnection, schema_name: str, name: str) -> str:
    """The table, quoted and with its database: alone, a schema could be taken for one."""
    database = _databases.get(connection)
    if database is None:
        row = fetch_row(connection, "SELECT current_database()")
        assert row is not None
        database = _databases[connection] = str(row[0])
    return quote(database, schema_name, name)


def column_type(column: ColumnSchema) -> str:
    """The DuckDB type for a column's values; of an enum, the one that its labels are cast to."""
    return _type_of(form_of(column))


def declared_type(column: ColumnSchema) -> str:
    """The type that the column has in DuckDB."""
    labels = labels_of(column) if column.own_type else None
    return column_type(column) if labels is None else enum_type(labels)


def enum_type(labels: Iterable[str]) -> str:
    """The type of an enum, in SQL."""
    return f"ENUM({', '.join(map(_literal, labels))})"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _type_of(form: Form) -> str:
    if form.duckdb is not None:
        return form.duckdb
    if not form.parts:
        return _plain_type(form.arrow)
    types = [_type_of(part) for part in form.parts]
    if pa.types.is_struct(form.arrow):
        fields = zip((field.name for field in form.arrow), types, strict=True)
        return f"STRUCT({', '.join(f'{quote(name)} {type_}' for name, type_ in fields)})"
    if pa.types.is_map(form.arrow):
        return f"MAP({', '.join(types)})"
    depth = 0
    inner: Any = form.arrow
    while inner != form.parts[0].arrow:
        depth, inner = depth + 1, inner.value_type
    return types[0] + "[]" * depth


def _plain_type(arrow: pa.DataType) -> str:
    if known := _BY_ARROW.get(arrow):
        return known
    if pa.types.is_timestamp(arrow):
        return "TIMESTAMP" if arrow.tz is None else "TIMESTAMP WITH TIME ZONE"
    if pa.types.is_decimal(arrow) and 0 <= arrow.scale <= arrow.precision <= 38:
        return f"DECIMAL({arrow.precision},{arrow.scale})"
    if pa.types.is_binary(arrow) or pa.types.is_large_binary(arrow):
        return "BLOB"
    return "VARCHAR"


def column_types(schema: TableSchema) -> dict[str, str]:
    """By column name, the type in which values can be compared with those of the table."""
    return {column.name: column_type(column) for column in schema.columns}


def readable(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with what DuckDB can't take from Arrow, such as 76 digits, as text."""
    arrays, fields = [], []
    for field, array in zip(rows.schema, rows.columns, strict=True):
        if pa.types.is_decimal256(field.type):
            array = _plain_text(array)
        elif pa.types.is_dictionary(field.type):
            array = array.cast(field.type.value_type)
        arrays.append(array)
        fields.append(pa.field(field.name, array.type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _plain_text(numbers: pa.Array[Any]) -> pa.Array[Any]:
    """Decimals as text without an exponent: Arrow prints 0.00000001 as 1E-8."""
    text = numbers.cast(pa.string())
    found = pc.match_substring(text, "E").fill_null(False)
    has_exponent = cast("pa.BooleanArray", found)
    if not has_exponent.true_count:
        return text
    plain = [format(number, "f") for number in numbers.filter(has_exponent).to_pylist()]
    replaced: pa.Array[Any] = pc.replace_with_mask(text, has_exponent, pa.array(plain, pa.string()))
    return replaced


def select_list(names: Iterable[str], types: dict[str, str]) -> str:
    """The columns of Arrow rows, of the type that the table's have: then they can be compared."""
    return ", ".join(
        f"CAST({quote(name)} AS {types[name]}) AS {quote(name)}"
        if any(type_ in types[name] for type_ in _FROM_TEXT)
        else quote(name)
        for name in names
    )


def insert_rows(
    connection: duckdb.DuckDBPyConnection,
    target: str,
    rows: pa.RecordBatch | pa.RecordBatchReader,
    names: Sequence[str],
    types: dict[str, str],
) -> None:
    """Append the named columns of rows that DuckDB can read to a table, given as SQL."""
    connection.register("_etl_rows", rows)
    columns, values = column_list(names), select_list(names, types)
    connection.execute(f"INSERT INTO {target} ({columns}) SELECT {values} FROM _etl_rows")  # noqa: S608
    connection.unregister("_etl_rows")


def create_table(
    connection: duckdb.DuckDBPyConnection, schema: TableSchema, name: str | None = None
) -> None:
    """Create the table, empty, under its own name or another.

    Without keys and constraints: an index costs memory for every row and every write, forbids to
    delete and insert a key in one transaction, and the source has checked all of it already.
    """
    _require_distinct_columns(schema)
    database = table_name(connection, schema.schema_name, name or schema.table_name)
    columns = ", ".join(
        f"{quote(column.name)} {declared_type(column)}" for column in schema.columns
    )
    create_schema(connection, schema.schema_name)
    # DuckDB has no table without a column.
    connection.execute(f"CREATE TABLE {database} ({columns or '_empty BOOLEAN'})")


def create_schema(connection: duckdb.DuckDBPyConnection, schema_name: str) -> None:
    qualified = table_name(connection, schema_name, "").removesuffix('.""')
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {qualified}")


def evolve(connection: duckdb.DuckDBPyConnection, old: TableSchema, new: TableSchema) -> None:
    """Give the table its new name, columns and types; values are converted where they can be."""
    _require_distinct_columns(new)
    qualified = table_name(connection, old.schema_name, old.table_name)
    filled: list[tuple[str, str, pa.Array[Any]]] = []
    for change in schema_changes(old, new):
        match change:
            case MoveTable():
                qualified = _move(connection, old, new)
            case DropColumn(column):
                connection.execute(f"ALTER TABLE {qualified} DROP COLUMN {quote(column.name)}")
            case RenameColumn(old_name, new_name):
                connection.execute(
                    f"ALTER TABLE {qualified} RENAME COLUMN {quote(old_name)} TO {quote(new_name)}"
                )
            case ChangeColumnType(before, after):
                type_ = declared_type(after)
                if type_ != declared_type(before):
                    connection.execute(
                        f"ALTER TABLE {qualified} ALTER COLUMN {quote(after.name)} TYPE {type_}"
                    )
            case AddColumn(column):
                value, type_ = missing_value(column), declared_type(column)
                if value is not None and pa.types.is_nested(value.type):
                    filled.append((column.name, type_, value))
                    value = None
                _add_column(connection, qualified, column, type_, value)
    # Before version 2, DuckDB alters no table of which the transaction has updated rows.
    for name, type_, value in filled:
        _fill_column(connection, qualified, name, type_, value)


def _add_column(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    column: ColumnSchema,
    type_: str,
    value: pa.Array[Any] | None,
) -> None:
    """Add the column with the value that rows which are there have in the source."""
    added = f"ALTER TABLE {table} ADD COLUMN {quote(column.name)} {type_}"
    if value is None:
        connection.execute(added)
        return
    connection.register("_etl_missing", readable(pa.RecordBatch.from_arrays([value], ["value"])))
    # As DuckDB prints it: ALTER TABLE takes no parameters.
    row = fetch_row(connection, f"SELECT value::{type_}::VARCHAR FROM _etl_missing")  # noqa: S608
    connection.unregister("_etl_missing")
    assert row is not None
    connection.execute(f"{added} DEFAULT CAST({_literal(row[0])} AS {type_})")
    connection.execute(f"ALTER TABLE {table} ALTER COLUMN {quote(column.name)} DROP DEFAULT")


def _fill_column(
    connection: duckdb.DuckDBPyConnection, table: str, name: str, type_: str, value: pa.Array[Any]
) -> None:
    """Give all rows a value whose text isn't always read back as the same value."""
    connection.register("_etl_missing", readable(pa.RecordBatch.from_arrays([value], ["value"])))
    connection.execute(
        f"UPDATE {table} SET {quote(name)} = "  # noqa: S608
        f"(SELECT CAST(value AS {type_}) FROM _etl_missing)"
    )
    connection.unregister("_etl_missing")


def _move(connection: duckdb.DuckDBPyConnection, old: TableSchema, new: TableSchema) -> str:
    before = table_name(connection, old.schema_name, old.table_name)
    after = table_name(connection, new.schema_name, new.table_name)
    if _fold(old.schema_name) == _fold(new.schema_name):
        connection.execute(f"ALTER TABLE {before} RENAME TO {quote(new.table_name)}")
    else:
        # DuckDB can't move a table to another schema.
        create_schema(connection, new.schema_name)
        connection.execute(f"CREATE TABLE {after} AS FROM {before}")
        connection.execute(f"DROP TABLE {before}")
    return after
