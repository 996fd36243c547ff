"""A lake holds every value as a DuckDB file does, in the catalog and in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import numpy as np

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.ducklake import DuckLakeDestination
from etl_dagster.destinations.ducklake.attaching import LakePlace
from etl_dagster.destinations.sql.dialect import quote
from etl_dagster.destinations.sql.statements import insert
from etl_dagster.destinations.sql.tables import Target, create_table
from etl_dagster.model.events import ChunkId, CopiedRows, TableRows
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.tables.representation import chosen
from etl_dagster.source.catalog import fetch_published_tables
from etl_dagster.source.connection import connect
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.values.digest import hash_rows
from tests.ducklake.lakes import lake_at_server, reading
from tests.support.both_ways import rows_of_copy
from tests.support.database import PUBLICATION, Database
from tests.support.every_value import create_values, value_of

Texts = dict[str, list[tuple[Any, Any]]]
_ROWS = 24


def test_every_value_of_every_type_is_the_same_as_in_a_duckdb_file(
    newest_database: Database,
    lake_database: Database,
    make_config: Callable[..., PipelineConfig],
    tmp_path: Path,
) -> None:
    """At first the rows are in the catalog, where their types are, then in Parquet."""
    config, random = make_config(newest_database), Random(1)
    kinds = create_values(newest_database)
    with newest_database.connect() as connection:
        for number in range(_ROWS):
            values = ", ".join(value_of(kind, number, random) for kind in kinds)
            connection.execute(f"insert into v values ({number}, {values})")
    with connect(config.source, application_name="test") as source:
        (table,) = fetch_published_tables(source, PUBLICATION)
    names = {f"c{place}": kind.name for place, kind in enumerate(kinds)}
    schema = chosen(table.schema, config.model_copy(update={"nested": "native"}))
    pieces = list(rows_of_copy(config, schema))
    expected = in_duckdb(schema, pieces)
    place = lake_at_server(lake_database, tmp_path, inline_rows=1000)
    write(place, schema, pieces)
    found = differing(place, schema, expected)
    assert_read_back(place, schema, pieces)
    with reading(place, read_only=False) as connection:
        connection.execute("CALL ducklake_flush_inlined_data('lake')")
    found += differing(place, schema, expected)
    assert_read_back(place, schema, pieces)
    assert not found, "\n".join(f"{names.get(name, name)}: {pairs}" for name, pairs in found)


def differing(place: LakePlace, schema: TableSchema, expected: Texts) -> list[tuple[str, Any]]:
    """The columns in which a lake has something else, with the first of what it has."""
    with reading(place) as connection:
        found = texts_of(connection, schema)
    return [
        (name, [pair for pair in zip(found[name], texts, strict=True) if pair[0] != pair[1]][:2])
        for name, texts in expected.items()
        if found[name] != texts
    ]


def assert_read_back(place: LakePlace, schema: TableSchema, pieces: list[CopiedRows]) -> None:
    """Rows that are compared with the source's don't differ by what a lake makes of them."""
    destination = DuckLakeDestination(place)
    written = [hash_rows(destination.as_read(schema, piece.rows)) for piece in pieces]
    with destination.read_rows(schema) as batches:
        found = [hash_rows(batch, schema.column_names) for batch in batches]
    assert np.array_equal(np.sort(np.concatenate(found)), np.sort(np.concatenate(written)))
    written = [destination.hash_rows(schema, piece.rows).rows for piece in pieces]
    with destination.read_hashes(schema) as hashes:
        found = [each.rows for each in hashes]
    destination.shutdown()
    assert np.array_equal(np.sort(np.concatenate(found)), np.sort(np.concatenate(written)))


def write(place: LakePlace, schema: TableSchema, pieces: list[CopiedRows]) -> None:
    destination = DuckLakeDestination(place)
    destination.startup(MemoryStore())
    destination.write_table_rows(schema, TableRows("copy", pieces, ChunkId("copy", 0)))
    destination.write_table_rows(schema, TableRows("copy"))
    destination.shutdown()


def in_duckdb(schema: TableSchema, pieces: list[CopiedRows]) -> Texts:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        session = DuckDBSession(connection)
        target = Target.of(session.dialect, schema)
        create_table(session, target)
        for piece in pieces:
            session.run(insert(target, piece.rows))
        return texts_of(connection, schema)


def texts_of(connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> Texts:
    """Of each column its values as text, with the type of each, by id."""
    table = quote(schema.schema_name, schema.table_name)
    return {
        name: connection.execute(
            f"SELECT typeof({quote(name)}), CAST({quote(name)} AS VARCHAR) FROM {table} ORDER BY id"
        ).fetchall()
        for name in schema.column_names
    }
