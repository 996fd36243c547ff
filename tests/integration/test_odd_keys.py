"""Rows are found again by keys of any type: their unchanged values are fetched by key."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.source.catalog import fetch_published_tables, fetch_row_values
from etl_dagster.source.connection import connect
from etl_dagster.values.adbc import text_expression
from etl_dagster.values.printing import print_keys
from etl_dagster.values.text import parse
from tests.support.database import Database

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

KEYS = [
    ("int", "0", "-1"),
    ("bigint", "9223372036854775807"),
    ("text", "", "a'b\\c", "größe"),
    ("character(5)", "ab"),
    ("varchar(5)", "ab"),
    ('"char"', "x"),
    ("boolean", "t", "f"),
    ("numeric", "NaN", "1E-20", "1.10"),
    ("numeric(10,2)", "NaN", "1.10", "-0.01"),
    ("numeric(60,20)", "0", "0.00000001"),
    ("real", "NaN", "-Infinity", "0.1", "1e-40"),
    ("double precision", "Infinity", "0.1", "1e300"),
    ("date", "0044-03-15 BC", "infinity", "-infinity", "12024-02-29", "2024-02-29"),
    ("time", "24:00:00", "00:00:00", "07:08:09.000001"),
    ("timetz", "24:00:00+05:45"),
    ("timestamp", "0044-03-15 12:00 BC", "infinity", "-infinity", "12024-01-01 00:00:00.1"),
    ("timestamptz", "0044-03-15 12:00 BC", "infinity", "2024-01-01 01:02:03.5+05:45"),
    ("interval", "1 year -2 days 03:00:00.5"),
    ("uuid", "5d2f7a30-0000-0000-0000-000000000001"),
    ("bytea", "\\x00ff", ""),
    ("inet", "10.0.0.1", "::1/64"),
    ("bit(3)", "101"),
    ("oid", "4294967295"),
    ("jsonb", '{"a": 1}'),
    ("int[]", "{1,NULL,3}"),
    ("text[]", '{a,NULL,"NULL"}'),
    ("int4range", "[1,5)"),
    ("mood", "so so"),
    ("pair", "(1,b)"),
    ("low", "7"),
    ("public.ltree", "a.b.c"),
    ("public.hstore", '"a"=>"1"'),
    ("public.citext", "Ab"),
    ("public.ltree[]", "{a.b}"),
    ("path_of", "a.b"),
]


@pytest.fixture
def extended(database: Database) -> Database:
    with database.connect() as admin:
        for extension in ("ltree", "hstore", "citext"):
            found = admin.execute(
                "select 1 from pg_available_extensions where name = %s", [extension]
            ).fetchone()
            if found is None:
                pytest.skip(f"this server has no {extension}")
            admin.execute(f"create extension {extension}")
    database.execute(
        "create type mood as enum ('so so')",
        "create type pair as (a int, b text)",
        "create domain low as numeric(10,2)",
        "create domain path_of as ltree",
    )
    return database


def test_a_row_is_found_by_its_decoded_key(extended: Database, make_config: MakeConfig) -> None:
    names = {}
    for number, (kind, *values) in enumerate(KEYS):
        extended.execute(f"create table t{number} (k {kind} primary key, doc text)")
        names[f"t{number}"] = kind
        with extended.connect() as writer:
            for value in values:
                writer.execute(
                    f"insert into t{number} values (%s::text::{kind}, %s)", [value, f"doc {value}"]
                )
    extended.execute("create publication etl_pub for all tables")
    config = make_config(extended)
    missing = []

    with connect(config.source, application_name="test") as connection:
        for table in fetch_published_tables(connection, "etl_pub"):
            schema = table.schema
            key = schema.columns[0]
            printed = text_expression(key).format("k")
            sent = connection.execute(
                f"select {printed}, doc from public.{schema.table_name}"  # type: ignore[arg-type]
            ).fetchall()
            values = parse(key, pa.array([text for text, _ in sent])).array
            keys = [(text,) for text in print_keys(key, values)]
            found = fetch_row_values(connection, schema, ["doc"], keys).rows
            if sorted(found.values()) != sorted((doc,) for _, doc in sent):
                missing.append((names[schema.table_name], keys, found))
    assert missing == []


def test_a_row_is_found_where_names_have_percent_signs(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(
        'create domain "%s" as int',
        'create table "100%" ("%s" "%s" primary key, "%(doc)s" text)',
        """insert into "100%" values (1, 'one')""",
        "create publication etl_pub for all tables",
    )

    with connect(make_config(database).source, application_name="test") as connection:
        (published,) = fetch_published_tables(connection, "etl_pub")
        found = fetch_row_values(connection, published.schema, ["%(doc)s"], [("1",)]).rows

    assert found == {("1",): ("one",)}
