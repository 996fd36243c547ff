"""All rows of a table in a Postgres destination, to be compared with those of the source."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv as csv

from etl_dagster.destinations.sql.dialect import column_list
from etl_dagster.destinations.sql.stored import stored_table
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.text import parse

if TYPE_CHECKING:
    from etl_dagster.destinations.postgres.session import PostgresSession
    from etl_dagster.pg.connection import Connection

_BATCH_BYTES = 4 * 1024**2


def read_rows(
    session: PostgresSession, connection: Connection, schema: TableSchema
) -> Iterator[pa.RecordBatch]:
    """The rows, in batches: read as the text that Postgres prints, as the source's stream is.

    Raises:
        TableRewritten: the table has other columns, or is not there.
        psycopg.Error: the server refuses.
    """
    table = stored_table(session, schema)
    names = [f"c{place}" for place in range(len(schema.columns))] or ["none"]
    # COPY prints by output functions, as the stream does; a cast to text is another thing.
    columns = column_list(schema.column_names) or "NULL::text"
    # Both are quoted.
    query = f"COPY (SELECT {columns} FROM {table}) TO STDOUT (FORMAT csv, FORCE_QUOTE *)"  # noqa: S608
    with connection.cursor() as cursor, cursor.copy(query.encode()) as copy:
        lines: list[bytes] = []
        size = 0
        for line in copy:  # libpq gives row by row
            lines.append(bytes(line))
            size += len(line)
            if size >= _BATCH_BYTES:
                yield _parsed(schema, _texts(b"".join(lines), names))
                lines, size = [], 0
        if lines:
            yield _parsed(schema, _texts(b"".join(lines), names))


def _texts(content: bytes, names: list[str]) -> pa.RecordBatch:
    """The columns of rows in CSV, in which every value is quoted and null is not."""
    table = csv.read_csv(
        io.BytesIO(content),
        read_options=csv.ReadOptions(
            use_threads=False, block_size=len(content) + 1, column_names=names
        ),
        parse_options=csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(
            check_utf8=False,
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    [batch] = table.combine_chunks().to_batches()
    return batch


def _parsed(schema: TableSchema, texts: pa.RecordBatch) -> pa.RecordBatch:
    if not schema.columns:
        return texts.select([])
    arrays: list[pa.Array[Any]] = [
        parse(column, texts.column(place)).array for place, column in enumerate(schema.columns)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema.arrow_schema)
