"""Hashes of rows, by DuckDB where its own hash tells any two values apart.

Which it doesn't of every type: 0 and -1 of 128 bits have the same hash, as have 0.0 and -0.0, an
empty list and none, a month and thirty days. Values of such types are hashed here, of what DuckDB
gives (`values/digest.py`).
"""

# Every identifier is quoted.
# ruff: noqa: S608

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from etl_dagster.destinations.duckdb.rows import (
    CACHE,
    DIALECT,
    GIVEN,
    AsStored,
    as_stored,
    read_query,
)
from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.sql.dialect import quote
from etl_dagster.destinations.sql.stored import stored_table
from etl_dagster.model.schema import TableSchema
from etl_dagster.values.digest import Hashes, RowHashes, combined

#: Of at most 64 bits, or bytes. Equal values of one of these have one form.
_TOLD_APART: Final = frozenset(
    {
        "BOOLEAN",
        "TINYINT",
        "SMALLINT",
        "INTEGER",
        "BIGINT",
        "UTINYINT",
        "USMALLINT",
        "UINTEGER",
        "UBIGINT",
        "DATE",
        "TIME",
        "TIMESTAMP",
        "TIMESTAMP WITH TIME ZONE",
        "VARCHAR",
        "JSON",
        "BLOB",
    }
)
_DECIMAL: Final = re.compile(r"DECIMAL\((\d+),\d+\)")
#: A decimal of more digits has 128 bits.
_MOST_DIGITS: Final = 18


def read_hashes(
    session: DuckDBSession, schema: TableSchema, *, is_alone: bool = False
) -> Iterator[RowHashes]:
    """Of all rows of a table; see `rows.read_rows`."""
    hashing = _Hashing(schema)
    query = hashing.query(stored_table(session, schema))
    for batch in read_query(session.connection, query, schema.name, CACHE if is_alone else None):
        yield hashing.hashes(batch)


def hash_rows(
    engine: AsStored, schema: TableSchema, rows: pa.RecordBatch, *, are_read: bool
) -> RowHashes:
    """Of rows as `read_rows` gives them, or else as they are to be written."""
    hashing = _Hashing(schema)
    if not schema.columns:
        none = pa.array(np.zeros(rows.num_rows, np.uint64))
        return hashing.hashes(pa.RecordBatch.from_arrays([none, none], names=["c0", "c1"]))
    source = GIVEN
    if not are_read:
        rows = DIALECT.readable(rows)
        source = f"(SELECT {as_stored(schema)} FROM {GIVEN})"
    return hashing.hashes(engine.select(rows, hashing.query(source)))


class _Hashing:
    """How the rows of a table are hashed: the same way wherever they are."""

    def __init__(self, schema: TableSchema) -> None:
        self._types = DIALECT.column_types(schema)
        self._names = schema.column_names
        self._key = schema.key_columns
        self._others = [name for name in self._names if not is_told_apart(self._types[name])]

    def query(self, source: str) -> str:
        """In SQL, the hash of the key, that of the row, and the columns that are in neither."""
        columns = [self._hash(self._key), self._hash(self._names), *map(quote, self._others)]
        named = (f"{column} AS c{place}" for place, column in enumerate(columns))
        return f"SELECT {', '.join(named)} FROM {source}"

    def _hash(self, names: Sequence[str]) -> str:
        # An enum has the hash of its number; the type of the values is that of the labels.
        values = [
            f"CAST({quote(name)} AS {self._types[name]})"
            for name in names
            if name not in self._others
        ]
        return f"hash({', '.join(values)})" if values else "CAST(0 AS UBIGINT)"

    def hashes(self, found: pa.RecordBatch) -> RowHashes:
        """From what the query found."""
        columns = dict(zip(self._others, found.columns[2:], strict=True))
        rows = combined(_numbers(found.column(1)), list(columns.values()))
        if not self._key:
            return RowHashes(rows, rows)
        of_key = [columns[name] for name in self._key if name in columns]
        return RowHashes(combined(_numbers(found.column(0)), of_key), rows)


def is_told_apart(type_: str) -> bool:
    """Whether any two values of the type have different hashes in DuckDB, but for chance."""
    decimal = _DECIMAL.fullmatch(type_)
    return type_ in _TOLD_APART if decimal is None else int(decimal[1]) <= _MOST_DIGITS


def _numbers(array: pa.Array[Any]) -> Hashes:
    numbers: Hashes = array.to_numpy(zero_copy_only=False).astype(np.uint64, copy=False)
    return numbers
