"""A table is read in little memory, however many rows it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from etl_dagster.destinations.duckdb import rows

#: Of all rows of `_file`.
_BYTES = 16_000_000


@contextmanager
def _file(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    path = folder / "texts.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS texts AS "
            "SELECT i, string_agg(md5((i * 100 + j)::text), '') AS t "
            "FROM range(8000) AS a(i), range(64) AS b(j) GROUP BY i"
        )
    with duckdb.connect(str(path), read_only=True, config={"threads": 1}) as connection:
        yield connection


def _kept_bytes(connection: duckdb.DuckDBPyConnection) -> int:
    [(size,)] = connection.execute("SELECT sum(memory_usage_bytes) FROM duckdb_memory()").fetchall()
    return int(size)


def test_batches_are_small_and_those_already_read_are_freed(
    tmp_path: Path,
) -> None:
    little = rows.ReadCache(most_bytes=1024**2, left="1MB", look_s=0)
    with _file(tmp_path) as connection:
        limit = _limit(connection)
        # Where others use the same DuckDB, its memory is theirs.
        list(rows.read_query(connection, "FROM texts", "texts", None))
        everything = _kept_bytes(connection)
    with _file(tmp_path) as connection:
        sizes, kept = [], []
        for batch in rows.read_query(connection, "FROM texts", "texts", little):
            sizes.append(batch.nbytes)
            kept.append(_kept_bytes(connection.cursor()))
        assert _limit(connection) == limit
    assert sum(sizes) >= _BYTES
    assert max(sizes) <= _BYTES // 3
    assert kept[-1] <= everything * 2 // 3


def _limit(connection: duckdb.DuckDBPyConnection) -> str:
    [(limit,)] = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    return str(limit)
