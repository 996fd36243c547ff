"""Values on their two ways from Postgres into Arrow, by the copy and by the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import duckdb
import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.sql.statements import insert
from etl_dagster.destinations.sql.tables import Target, create_table
from etl_dagster.model.schema import TableSchema
from etl_dagster.pg.settings import pin_session
from etl_dagster.runtime.tables.representation import chosen
from etl_dagster.source.catalog import fetch_published_tables
from etl_dagster.values.python import to_dicts
from etl_dagster.values.registry import REGISTRY
from tests.support.both_ways import changes_of_stream, rows_of_copy
from tests.support.database import PUBLICATION, Database

_SLOT = "types"

#: Column type, and values as SQL; each in a row of its own with nulls everywhere else.
_EDGES: dict[str, list[str]] = {
    "bool": ["true", "false"],
    "int2": ["-32768", "32767", "0"],
    "int4": ["-2147483648", "2147483647"],
    "int8": ["-9223372036854775808", "9223372036854775807"],
    "oid": ["0", "4294967295"],
    "float4": ["'NaN'", "'Infinity'", "'-Infinity'", "-0.0", "1e-45", "3.4028235e38", "0.1"],
    "float8": ["'NaN'", "'Infinity'", "'-Infinity'", "-0.0", "5e-324", "1.7976931348623157e308"],
    "numeric": ["'NaN'", "'-Infinity'", "1.500", "-0.00", "1e100", "1e-20"],
    "numeric(12,2)": ["-9999999999.99", "'NaN'", "0", "0.10"],
    "numeric(60,20)": ["12345678901234567890123456789012345678.00000000000000000001", "-1"],
    "numeric(3,-2)": ["12345"],
    "numeric(2,5)": ["0.00012"],
    "text": ["''", "'ä€😀'", "E'tab\\t newline\\n quote'' backslash\\\\'", "repeat('x', 5000)"],
    "varchar(10)": ["'short'", "'  '"],
    "char(5)": ["'ab'", "''"],
    "name": ["'n'"],
    '"char"': ["'c'", "''"],
    "bytea": ["'\\x'", "'\\x00ff10'", "decode(repeat('ab', 3000), 'hex')"],
    "date": ["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'5874897-12-31'", "'0001-01-01'"],
    "time": ["'00:00'", "'24:00:00'", "'23:59:59.999999'", "'12:00:00.5'"],
    "timestamp": [
        "'infinity'",
        "'-infinity'",
        "'4713-01-01 00:00 BC'",
        "'294276-12-31 23:59:59.999999'",
        "'294247-01-10 04:00:54.775806'",
        "'2024-02-29 12:34:56.789'",
        "'1969-12-31 23:59:59.999999'",
        "'0044-03-15 01:02:03.4 BC'",
    ],
    "timestamptz": [
        "'infinity'",
        "'-infinity'",
        "'4713-01-01 00:00+00 BC'",
        "'294276-12-31 23:59:59.999999+00'",
        "'2024-02-29 12:34:56+05:30'",
        "'10000-01-01 00:00+00'",
    ],
    "uuid": ["'6f1b6a3c-1111-2222-3333-444455556666'"],
    "json": ["'{\"a\" :  1}'", "'null'"],
    "jsonb": ['\'{"b": [1, 2.50], "a": null}\''],
    "interval": ["'1 year 2 months -3 days 04:05:06.7'", "'0'"],
    "timetz": ["'12:00+02'"],
    "money": ["12.34"],
    "inet": ["'10.0.0.1'", "'10.0.0.0/8'", "'::1'"],
    "cidr": ["'10.0.0.0/8'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "bit(3)": ["B'101'"],
    "varbit": ["B'10'"],
    "tsvector": ["'a b:2'"],
    "point": ["'(1,2)'"],
    "int4range": ["'[1,5)'", "'empty'", "'(,)'", "'(,3]'"],
    "numrange": ["'(1.50,NaN]'", "'[-Infinity,2)'"],
    "tstzrange": ["'[2024-01-01 00:00+02,infinity)'", "'[0044-03-15 BC,2024-01-01]'"],
    "datemultirange": ["'{[2024-01-01,2024-02-01),[2024-03-01,)}'", "'{}'"],
    "int4[]": ["'{1,NULL,3}'", "'{}'", "'{{1,2},{3,4}}'", "'[0:1]={1,2}'"],
    "int4[][]": ["'{{1,2},{3,NULL}}'", "'{}'", "'{1}'"],
    "text[]": ["array['a b', null, 'NULL', '', 'x\"y', E'b\\\\c', '{,}', 'ä']"],
    "numeric(12,2)[]": ["'{1.50,NaN}'", "'{-0.01}'"],
    "time[]": ["'{24:00,00:00}'"],
    "timestamptz[]": ["'{infinity,2024-02-29 12:34:56+05:30,0044-03-15 00:00+00 BC}'"],
    "bytea[]": ["array['\\x00ff'::bytea, '\\x', null]"],
    "uuid[]": ["'{6f1b6a3c-1111-2222-3333-444455556666}'"],
    "jsonb[]": ['array[\'{"a": [1, "x\\\\y"]}\'::jsonb]'],
    "box[]": ["'{(1,1),(0,0);(2,2),(1,1)}'"],
    "mood[]": ["'{sad,NULL}'"],
    "pair[]": ["array[row(1, 'a \"b\", c'), row(null, ''), null]::pair[]"],
    "amounts": ["'{12.3,4}'"],
    "span": ["'[1,2.5)'"],
    "nothing": ["row()"],
    "regclass": ["'pg_class'"],
    "mood": ["'happy'"],
    "short_text": ["'abc  '"],
    "amount": ["12.3"],
    "pair": ["row(1, null)", "row(null, null)", "row(2, '(\"a\\b, ')"],
    "made": ["row(array[1, null], '[1,2)', row(1, 'x')::pair, 'sad', 1.5)"],
}
_TYPES = """
create type mood as enum ('happy', 'sad');
create domain short_text as char(6);
create domain amount as numeric(8,3) check (value > 0);
create type pair as (a int, b text);
create domain amounts as amount[];
create type span as range (subtype = amount);
create type made as (l int[], r int4range, p pair, m mood, d amount);
create type nothing as ();
"""

#: A table of random rows; SQL expressions over `random()`.
_RANDOM = {
    "b bool": "random() < 0.5",
    "i2 int2": "(random() * 65535 - 32768)::int2",
    "i8 int8": "((random() - 0.5) * 1.8e19)::int8",
    "f4 float4": "((random() - 0.5) * 10 ^ (random() * 70 - 35))::float4",
    "f8 float8": "(random() - 0.5) * 10 ^ (random() * 500 - 250)",
    "n numeric": "((random() - 0.5) * 10 ^ (random() * 20))::numeric",
    "m numeric(20,6)": "((random() - 0.5) * 10 ^ (random() * 14))::numeric(20,6)",
    "t text": "md5(random()::text)",
    "y bytea": "substr(decode(md5(random()::text), 'hex'), 1, (random() * 16)::int)",
    "d date": "'2000-01-01'::date + ((random() - 0.5) * 2 * 1e6)::int",
    "h time": "'00:00'::time + random() * interval '1 day'",
    "s timestamp": "'2000-01-01'::timestamp + (random() - 0.4) * interval '10000 years'",
    "z timestamptz": "'2000-01-01'::timestamptz + (random() - 0.4) * interval '10000 years'",
    "u uuid": "gen_random_uuid()",
    "j jsonb": "jsonb_build_object('a', random(), 'b', md5(random()::text))",
    "v interval": "random() * interval '1000 days'",
    "l int[]": "(select array_agg(case when random() < 0.9 then (random() * 1e9)::int end)"
    " from generate_series(1, (random() * 5)::int) where i > 0)",
    "x text[]": "string_to_array(md5(random()::text), substr('abc,', 1 + (random() * 3)::int, 1))",
    "g numrange": "numrange(random()::numeric, case when random() < 0.5 then 2 end, '[]')",
    "o random_pair": "row((random() * 99)::int, array[md5(random()::text), 'a \"', null])"
    "::random_pair",
}


@contextmanager
def _slot(database: Database) -> Iterator[None]:
    with database.connect() as connection:
        connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [_SLOT])
    yield


def _schema(database: Database) -> TableSchema:
    with database.connect() as connection:
        (table,) = fetch_published_tables(connection, PUBLICATION)
    return table.schema


def _copied(config: PipelineConfig, schema: TableSchema) -> pa.Table:
    batches = [piece.rows for piece in rows_of_copy(config, schema)]
    return pa.Table.from_batches(batches, schema.arrow_schema)


def _as_text(table: pa.Table) -> list[dict[str, str]]:
    """Rows by id, their values in a form in which NaN equals itself and 0 isn't -0.

    A scan begins where another one is, so that a copy may begin in the middle of the table.
    """
    batches = table.sort_by("id").to_batches()
    rows = [row for batch in batches for row in to_dicts(batch)]
    return [{name: repr(value) for name, value in row.items()} for row in rows]


@pytest.fixture
def config(database: Database, make_config: Callable[..., PipelineConfig]) -> PipelineConfig:
    return make_config(database)


def test_copy_stream_and_duckdb_give_the_same_value_at_every_edge_of_every_type(
    database: Database, config: PipelineConfig
) -> None:
    database.execute(_TYPES)
    edges = _EDGES | _registered(database)
    types = list(edges)
    columns = ", ".join(f"c{place} {name}" for place, name in enumerate(types))
    database.execute(
        f"create table v (id int primary key, {columns})",
        f"create publication {PUBLICATION} for table v",
    )
    values = [(place, value) for place, name in enumerate(types) for value in edges[name]]
    with _slot(database):
        database.execute(
            *(
                f"insert into v (id, c{place}) values ({number}, {value})"
                for number, (place, value) in enumerate(values)
            )
        )
        plain = _schema(database)
        odd = {"numeric(12,2)": 1, "timestamp": 1, "timestamptz": 1}
        counts = {row.name: sum(edge.is_odd for edge in row.edges) for row in REGISTRY.values()}
        odd |= {name: count for name, count in counts.items() if count}
        # Only servers from 17 on have infinite intervals.
        if infinite := sum("infinity" in text for text in edges["interval"]):
            odd["interval"] = infinite
        nested_odd = {"int4[]": 2, "int4[][]": 1, "numeric(12,2)[]": 1}
        for nested, expected in (("text", odd), ("native", odd | nested_odd)):
            schema = chosen(plain, config.model_copy(update={"nested": nested}))
            copied = _copied(config, schema)
            changes = changes_of_stream(config, _SLOT, schema, len(values))

            streamed = pa.Table.from_batches([step.rows for step in changes], schema.arrow_schema)
            assert copied.schema == streamed.schema
            assert _as_text(copied) == _as_text(streamed)
            # Only values that Arrow has no number or no list for are odd.
            names = {f"c{place}": name for place, name in enumerate(types)}
            found = {names[c]: len(o) for step in changes for c, o in step.odd.items()}
            assert found == expected
            _require_same_in_duckdb(schema, copied)


def _registered(database: Database) -> dict[str, list[str]]:
    """The edges of all built-in types as SQL, which the server prints as the registry says."""
    found: dict[str, list[str]] = {
        "hstore": ["'a=>1, b=>NULL'", "hstore('k \"', E'\\\\ =>,')", "''"]
    }
    if not database.query("select from pg_available_extensions where name = 'hstore'"):
        del found["hstore"]
    else:
        database.execute("create extension hstore")
    otherwise: list[tuple[str, str, str]] = []
    with database.connect() as connection:
        pin_session(connection)
        for row in REGISTRY.values():
            for edge in row.edges:
                literal = sql.Literal(edge.text).as_string(connection)
                try:
                    printed = connection.execute(f"select format('%s', {literal}::{row.name})")
                except (
                    psycopg.errors.FeatureNotSupported,  # the wheel has no XML
                    psycopg.errors.InvalidDatetimeFormat,  # intervals are infinite from 17 on
                ):
                    continue
                if (text := printed.fetchall()[0][0]) != edge.text:
                    otherwise.append((row.name, edge.text, text))
                found.setdefault(row.name, []).append(literal)
    assert not otherwise
    return found


def _require_same_in_duckdb(schema: TableSchema, table: pa.Table) -> None:
    names = schema.column_names
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        session = DuckDBSession(connection)
        target = Target.of(session.dialect, schema)
        create_table(session, target)
        for batch in table.to_batches():
            session.run(insert(target, batch))
        kept = connection.sql("select * from public.v").to_arrow_table()
    # What DuckDB has another type for is checked elsewhere; nested in it, it is text here.
    same = [name for name in names if kept.schema.field(name).type == table.schema.field(name).type]
    assert len(same) > len(names) * 0.7
    assert _as_text(kept.select(same)) == _as_text(table.select(same))


def test_copy_and_stream_give_the_same_random_rows(
    database: Database, config: PipelineConfig
) -> None:
    columns = ", ".join(_RANDOM)
    nullable = ", ".join(f"case when random() < 0.9 then {what} end" for what in _RANDOM.values())
    database.execute(
        "create type random_pair as (a int, b text[])",
        f"create table r (id int primary key, {columns})",
        f"create publication {PUBLICATION} for table r",
    )
    with _slot(database):
        database.execute(f"insert into r select i, {nullable} from generate_series(1, 20000) i")
        schema = chosen(_schema(database), config)
        copied = _copied(config, schema)
        changes = changes_of_stream(config, _SLOT, schema, 20000)

    streamed = pa.Table.from_batches([step.rows for step in changes], schema.arrow_schema)
    assert _as_text(copied) == _as_text(streamed)


def test_duckdb_shows_infinities_and_old_dates_as_postgres_does(
    database: Database, config: PipelineConfig
) -> None:
    texts = ["infinity", "-infinity", "0044-03-15 BC", "12024-01-01"]
    database.execute(
        "create table w (id int primary key, d date, s timestamp, z timestamptz, h time)",
        f"create publication {PUBLICATION} for table w",
        *(
            f"insert into w values ({number}, '{text}', '{text}', '{text}', '24:00')"
            for number, text in enumerate(texts)
        ),
    )
    rows = _copied(config, _schema(database))
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        connection.register("w", rows)
        shown = connection.execute(
            "select d::text, s::text, z::text, h::text from w order by id"
        ).fetchall()

    assert shown == [
        ("infinity", "infinity", "infinity", "24:00:00"),
        ("-infinity", "-infinity", "-infinity", "24:00:00"),
        (
            "0044-03-15 (BC)",
            "0044-03-15 (BC) 00:00:00",
            "0044-03-15 (BC) 00:00:00+00",
            "24:00:00",
        ),
        ("12024-01-01", "12024-01-01 00:00:00", "12024-01-01 00:00:00+00", "24:00:00"),
    ]
