"""All rows of a table in a Postgres destination, to be compared with those of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pyarrow as pa
from psycopg import sql

from etl_dagster.destinations.postgres.readers import read_queries
from etl_dagster.destinations.sql.stored import stored_table
from etl_dagster.errors import TableRewritten
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.values import oids
from etl_dagster.values.adbc import CopiedColumn
from etl_dagster.values.registry import REGISTRY
from etl_dagster.values.text import parse

if TYPE_CHECKING:
    from etl_dagster.destinations.postgres.connections import DestinationConnections
    from etl_dagster.destinations.postgres.session import PostgresSession
    from etl_dagster.pg.connection import Connection

#: A piece of the table that one connection reads at a time; small, so that no connection reads long
#: after the others have ended.
_PIECE_BLOCKS: Final = 1024
#: In SQL, the text that the type's output function prints, as the stream and COPY have it; a cast
#: to text is another thing for some types. `num_nulls` because a row of nulls, too, IS NULL.
_PRINTED: Final = "CASE num_nulls({0}) WHEN 0 THEN format('%s', {0}) END"

_Values: TypeAlias = "Callable[[pa.Array[Any]], pa.Array[Any]]"


def read_rows(
    session: PostgresSession,
    connection: Connection,
    connections: DestinationConnections,
    schema: TableSchema,
) -> Iterator[pa.RecordBatch]:
    """The rows as of one moment, in batches; read by a few connections where there are many.

    Raises:
        TableRewritten: the table has other columns, or is not there.
        psycopg.Error, EtlError: the server refuses.
    """
    table = stored_table(session, schema)
    # Until the end of this transaction, no other moves rows that don't change.
    connection.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE".encode())
    found = connection.execute(
        "SELECT attname, atttypid FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        [table],
    )
    types: dict[str, int] = dict(found.fetchall())
    if not types.keys() >= set(schema.column_names):
        raise TableRewritten(f"{schema.name} has other columns at the destination")
    columns = [_column(column, types[column.name]) for column in schema.columns]
    row = connection.execute(
        "SELECT pg_export_snapshot(),"
        " pg_relation_size(%s::regclass) / current_setting('block_size')::int",
        [table],
    ).fetchone()
    assert row is not None
    snapshot, blocks = row
    selected = ", ".join(expression for expression, _ in columns) or "NULL::text"
    yield from read_queries(
        connections,
        snapshot,
        # Nothing of it is a value: expressions of columns, and places of blocks.
        [f"SELECT {selected} FROM {table}{where}" for where in _pieces(blocks)],  # noqa: S608
        partial(_typed, schema, [values for _, values in columns]),
        name=str(schema.name),
    )


def _pieces(blocks: int) -> list[str]:
    """Conditions, with a space before; together they hold for every row, and for each only once."""
    edges = range(_PIECE_BLOCKS, blocks, _PIECE_BLOCKS)
    first = [None, *(f"ctid >= '({edge},0)'::tid" for edge in edges)]
    last = [*(f"ctid < '({edge},0)'::tid" for edge in edges), None]
    both = (filter(None, each) for each in zip(first, last, strict=True))
    return [f" WHERE {' AND '.join(each)}" if each else "" for each in map(list, both)]


def _column(column: ColumnSchema, type_oid: int) -> tuple[str, _Values]:
    """What is selected of a column that has this type at the destination, and how it is read.

    A type that is the source's, too, is read as in a copy. All others are printed, and read as the
    stream is.
    """
    name = sql.Identifier(column.name)
    if type_oid == column.effective_type_oid and type_oid in REGISTRY:
        copied = CopiedColumn(column, None)
        expression = sql.SQL(copied.expression).format(name).as_string()
        return expression, lambda array: copied.values(array).array
    template = "{0}" if type_oid == oids.TEXT else _PRINTED
    expression = sql.SQL(template).format(name).as_string()
    return expression, lambda array: parse(column, array).array


def _typed(schema: TableSchema, values: list[_Values], read: pa.RecordBatch) -> pa.RecordBatch:
    if not schema.columns:
        return read.select([])
    try:
        arrays = [of(array) for of, array in zip(values, read.columns, strict=True)]
    except pa.ArrowException:
        raise TableRewritten(f"a column of {schema.name} got another type") from None
    return pa.RecordBatch.from_arrays(arrays, schema=schema.arrow_schema)
