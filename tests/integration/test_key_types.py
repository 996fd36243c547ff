"""Rows are found by keys of every type, even where keys that Postgres calls equal print apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.runtime.checking.preflight import run_checks
from tests.support.database import Database
from tests.support.pipelines import rows, running

pytestmark = pytest.mark.servers("newest")


@dataclass(frozen=True)
class Key:
    """A type of a key, and what happens to rows with such keys."""

    type: str
    #: The first row's key, and another one that Postgres calls equal, if the type has such.
    first: str
    equal: str
    second: str
    third: str
    #: What the second row's becomes.
    new: str


_ISBNS = (
    "978-0-11-000533-1",
    "9780110005331",
    "978-0-393-04002-9",
    "978-3-16-148410-0",
    "978-1-86197-271-2",
)
#: Values as the type's input takes them.
KEYS = (
    Key("bool", "t", "true", "f", "f", "f"),
    Key("int8", "1", "01", "2", "3", "4"),
    Key("oid", "4294967295", "4294967295", "2", "3", "4"),
    Key("float4", "-0", "0", "NaN", "Infinity", "1e-45"),
    Key("float8", "0", "-0", "NaN", "-Infinity", "5e-324"),
    Key("numeric", "1.0", "1.00", "NaN", "Infinity", "1e100"),
    Key("money", "1.0", "1.00", "0", "-92233720368547758.08", "92233720368547758.07"),
    Key("price[]", "{1.0}", "{1.00}", "{}", "{NULL}", "{-1}"),
    Key("numeric(10,2)", "1.0", "1.00", "NaN", "-1", "2"),
    Key("numeric(60,20)", "1.0", "1.00", "NaN", "-1", "2"),
    Key('text collate "C"', "", "", "a", "A", "ä"),
    Key("text collate no_case", "Ab", "aB", "ä", "x", "Ü"),
    Key("bpchar", "ab", "ab  ", "", "c", "d"),
    Key("char(5)", "ab", "ab  ", "", "c", "d"),
    Key("varchar(5)", "ab", "ab", "", "ab ", "d"),
    Key("name", "n", "n", "", "o", "p"),
    Key('"char"', "c", "c", "", "d", "e"),
    Key("bytea", "\\x00ff", "\\x00FF", "\\x", "\\x01", "\\x02"),
    Key("date", "0044-03-15 BC", "0044-03-15 BC", "infinity", "-infinity", "5874897-12-31"),
    Key("time", "24:00", "24:00", "00:00", "12:00", "12:00:00.5"),
    Key("timetz", "12:00+02", "12:00+02", "11:00+01", "10:00+00", "24:00-15:59"),
    Key("timestamp", "infinity", "infinity", "-infinity", "0044-03-15 BC", "12024-01-01"),
    Key("timestamptz", "2024-01-01 02:00+02", "2024-01-01+00", "infinity", "-infinity", "epoch"),
    Key("interval", "1 day", "24 hours", "1 mon", "-1 year", "365 days"),
    Key("uuid", "a" * 32, "A" * 32, "0" * 32, "1" * 32, "2" * 32),
    Key("jsonb", '{"a": 1.0}', '{"a": 1.00}', "null", "[]", '"x"'),
    Key("inet", "10.0.0.1", "10.0.0.1/32", "::1/64", "10.0.0.0/8", "::2"),
    Key("cidr", "10.0.0.0/8", "10/8", "::/0", "10.0.0.0/9", "::2"),
    Key("macaddr", "08:00:2b:01:02:03", "08002b010203", "0" * 12, "1" * 12, "2" * 12),
    Key("bit(3)", "101", "101", "000", "001", "010"),
    Key("varbit", "10", "10", "", "1", "0"),
    Key("tsvector", "a b", "b a", "", "a", "b"),
    Key("tsquery", "a & b", "a & b", "", "a", "b"),
    Key("pg_lsn", "0/0", "0/0", "FFFFFFFF/FFFFFFFF", "0/1", "0/2"),
    Key("xid8", "18446744073709551615", "18446744073709551615", "0", "1", "2"),
    Key("tid", "(0,1)", "(0,1)", "(0,2)", "(0,3)", "(0,4)"),
    Key("int4range", "[1,5)", "(0,4]", "empty", "(,)", "[1,6)"),
    Key("numrange", "[1.0,2)", "[1.00,2.0)", "empty", "(,)", "[1,2]"),
    Key("nummultirange", "{[1.0,2)}", "{[1.00,2.0)}", "{}", "{(,)}", "{[1,2]}"),
    Key("numeric[]", "{1.0,NULL}", "{1.00,NULL}", "{}", "{NaN}", "{{1},{2}}"),
    Key("float8[]", "{-0}", "{0}", "{NaN}", "{NULL}", "[0:1]={1,2}"),
    Key("text[]", "{a,NULL}", "{a,NULL}", '{"NULL"}', "{}", '{"\\"\\\\"}'),
    Key("mood", "sad", "sad", "so, \"so\"", "", "NULL"),
    Key("low", "1.0", "1.00", "NaN", "-1", "2"),
    Key("pair", "(1.0,a)", "(1.00,a)", "(NaN,)", "(,)", '(2,"a ""b"", c")'),
    Key("citext", "Ab", "aB", "", "x", "y"),
    Key("ltree", "a.b", "a.b", "", "x", "y"),
    Key("hstore", "a=>1,b=>2", "b=>2,a=>1", "", "a=>NULL", 'a=>"NULL"'),
    Key("cube", "(1,2)", "(1.0,2)", "(0)", "(1)", "(2)"),
    Key("isbn13", *_ISBNS),
)  # fmt: skip


def test_rows_are_found_by_what_postgres_calls_equal(
    database: Database, make_config: Callable[..., PipelineConfig]
) -> None:
    keys = _create(database)
    config = make_config(database, **{"copy_tables.max_table_sync_workers": 2})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(120)
        # In one transaction, and with values that are too large to be sent when they stay.
        _execute(database, keys, _update_and_delete)
        assert pipeline.wait_until_caught_up(120)
        assert not _differing(database, config, keys)
        _execute(database, keys, _change_back_and_insert)
        assert pipeline.wait_until_caught_up(120)
        assert not _differing(database, config, keys)
        states = pipeline.status().tables
        refused = {
            name: table.error or "" for name, table in states.items() if table.state == "errored"
        }
    assert refused.keys() == {"public.by_class"}
    assert "k in the key of public.by_class is of type regclass" in refused["public.by_class"]
    found = [check.message for check in run_checks(config) if check.name == "replica identity"]
    assert set(refused.values()) <= set(found)


def _execute(database: Database, keys: list[Key], changes: Callable[[str, Key], list[str]]) -> None:
    statements = [
        statement for number, key in enumerate(keys) for statement in changes(f"t{number}", key)
    ]
    database.execute("; ".join(statements))


def _update_and_delete(table: str, key: Key) -> list[str]:
    return [
        f"update {table} set n = n + 10",
        _change(table, key, 11, key.equal),
        f"update {table} set n = 101 where k = {_value(key, key.first)}",
        f"delete from {table} where n = 13",
        _change(table, key, 12, key.new),
        f"update {table} set n = 102 where n = 12",
    ]


def _change_back_and_insert(table: str, key: Key) -> list[str]:
    return [
        _change(table, key, 101, key.first),
        f"update {table} set n = 201, doc = 'new' where k = {_value(key, key.equal)}",
        f"insert into {table} values ({_value(key, key.third)}, 203, 'again')"
        " on conflict do nothing",
        f"delete from {table} where k = {_value(key, key.new)}",
        f"delete from {table} where k = {_value(key, key.equal)}",
        f"insert into {table} values ({_value(key, key.equal)}, 301, 'last')",
    ]


def _create(database: Database) -> list[Key]:
    with database.connect() as admin:
        for extension in ("citext", "ltree", "hstore", "cube", "isn"):
            admin.execute(f"create extension {extension}")
        keys = list(KEYS)
        try:
            admin.execute(
                "create collation no_case (provider = icu, locale = 'und-u-ks-level2',"
                " deterministic = false)"
            )
        except psycopg.errors.FeatureNotSupported:
            keys = [key for key in keys if "no_case" not in key.type]
    database.execute(
        "create type mood as enum ('sad', 'so, \"so\"', 'NULL', '')",
        "create domain low as numeric(10,2)",
        "create type pair as (a numeric, b text)",
        "create domain price as money",
        "create table by_class (k regclass primary key); insert into by_class values ('pg_class')",
    )
    statements = []
    for number, key in enumerate(keys):
        table = f"t{number}"
        statements.append(f"create table {table} (k {key.type} primary key, n int, doc text)")
        statements.append(f"alter table {table} alter doc set storage external")
        for place, text in enumerate((key.first, key.second, key.third), start=1):
            doc = f"repeat('{place}', 3000)"
            statements.append(
                f"insert into {table} values ({_value(key, text)}, {place}, {doc})"
                " on conflict do nothing"
            )
    database.execute("; ".join(statements), "create publication etl_pub for all tables")
    return keys


def _value(key: Key, text: str) -> str:
    escaped = text.replace("'", "''")
    type_ = key.type.partition(" ")[0] if "collate" in key.type else key.type
    return f"'{escaped}'::{type_}"


def _change(table: str, key: Key, n: int, text: str) -> str:
    return f"update {table} set k = {_value(key, text)} where n = {n}"


def _differing(database: Database, config: PipelineConfig, keys: list[Key]) -> list[object]:
    select = " union all ".join(
        f"select {number} as t, n, md5(doc) as d from public.t{number}"
        for number in range(len(keys))
    )
    query = f"{select} order by 1, 2, 3"
    expected, found = set(database.query(query)), rows(config, query)
    assert len(found) >= len(set(found))
    wrong = sorted(expected.symmetric_difference(found)) + sorted(
        row for row in set(found) if found.count(row) > 1
    )
    return [(keys[row[0]].type, row, row in expected) for row in wrong]
