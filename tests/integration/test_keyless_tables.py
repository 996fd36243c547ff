"""Tables without a key: without any identity, or found by all of their values."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from etl_dagster.config import PipelineConfig
from tests.support.database import Database
from tests.support.pipelines import rows, running
from tests.support.replica import Replica


def test_only_inserts_of_a_keyless_table_arrive_and_other_tables_are_not_held_up(
    database: Database, make_config: Callable[..., PipelineConfig], caplog: pytest.LogCaptureFixture
) -> None:
    database.execute(
        "create table orders (id int primary key, n int)",
        "create table log (line text)",
        "create table unidentified (id int primary key)",
        "alter table unidentified replica identity nothing",
        "insert into orders values (1, 0)",
        "insert into log values ('a'), ('a')",
        "insert into unidentified values (1)",
        "create publication etl_pub for all tables",
    )
    replica = Replica(database, make_config(database, destination={"type": "memory"}))
    replica.catch_up()
    assert "only inserts arrive: public.log, public.unidentified" in caplog.text
    database.execute(
        "update orders set n = 1",
        "insert into log values ('a'), ('b')",
        "insert into unidentified values (2)",
    )
    replica.catch_up()
    replica.assert_in_step("public.orders", "public.log", "public.unidentified")
    database.execute("truncate log", "insert into log values ('c')")
    replica.catch_up()
    replica.assert_in_step("public.log")


#: Types, each with some values that Postgres calls equal but prints differently.
_WHOLE = (
    ("bool", "t", "f"),
    ("float4", "-0", "0", "NaN", "-Infinity", "1e-45"),
    ("float8", "0", "-0", "NaN", "Infinity", "5e-324"),
    ("numeric", "1.0", "1.00", "NaN", "Infinity", "1.555"),
    ("numeric(10,2)", "1", "NaN", "-0.01"),
    ("numeric(60,20)", "1", "NaN", "0.00000001"),
    ("money", "1.5", "-1", "0"),
    ("mood", "sad", "", 'so, "so"'),
    ("feeling", "sad", ""),
    ("json", '{"a": 1,  "a": 2}', "null", "[]", "1e400"),
    ("jsonb", '{"b": 1.0}', "null", '"x"'),
    ("timestamp", "294276-12-31", "294275-12-31", "infinity", "0044-03-15 BC"),
    ("timestamptz", "294276-12-31", "infinity", "2024-01-01 02:00+02"),
    ("timetz", "12:00+02", "11:00+01", "24:00-15:59"),
    ("interval", "1 day", "24 hours", "1 mon"),
    ("bytea", "\\x00ff", "\\x"),
    ("char(5)", "ab", ""),
    ("text", "", "a", "NULL"),
    ("inet", "10.0.0.1", "::1/64"),
    ("bit(3)", "101", "000"),
    ("point", "(1,2)", "(-0,0)"),
    ("box", "(1,2),(0,0)",),
    ("tsvector", "a b", ""),
    ("float8[]", "{-0}", "{0}", "{NaN,NULL}", "{{1},{2}}", "[0:1]={1,2}", "{}"),
    ("numeric(6,1)[]", "{NaN,1}", "{NULL,1}"),
    ("text[]", "{a,NULL}", '{"NULL"}', "{}"),
    ("mood[]", "{sad,NULL}", "{}"),
    ("numrange", "[1.0,2)", "[1.00,2)", "empty", "(,)"),
    ("tsrange", "[2024-01-01,294276-01-01)", "(,infinity)"),
    ("nummultirange", "{[1.0,2)}", "{}"),
    ("pair", "(1.0,a)", "(NaN,)", "(,)", "(-0,a)"),
    ("pair[]", '{"(1.0,a)",NULL}', '{"(,)"}'),
    ("hstore", "a=>1,b=>NULL", ""),
)  # fmt: skip


@pytest.mark.parametrize("nested", ["native", "json"])
def test_rows_without_a_key_are_found_by_values_of_every_type(
    database: Database, make_config: Callable[..., PipelineConfig], nested: str
) -> None:
    """Values that a type can't hold, that don't equal themselves, or print unlike their equals."""
    database.execute(
        "create extension hstore",
        "create type mood as enum ('sad', 'so, \"so\"', '')",
        "create domain feeling as mood",
        "create type pair as (a numeric(6,1), b text)",
        "create table by_class (v regclass, n int)",
        "alter table by_class replica identity full",
        "insert into by_class values ('pg_class', 1)",
    )
    numbered = [
        (number, kind, [value.replace("'", "''") for value in values])
        for number, (kind, *values) in enumerate(_WHOLE)
    ]

    def execute(statement: str) -> None:
        database.execute("; ".join(statement.replace("@", f"t{number}") for number, *_ in numbered))

    def insert(n: int) -> None:
        inserts = [
            f"insert into t{number} values ('{value}'::{kind}, {n + place}, repeat('x', 3000))"
            for number, kind, values in numbered
            for place, value in enumerate([*values, values[0]])
        ]
        nulls = [f"insert into t{number} values (null, {n + 50})" for number, *_ in numbered]
        database.execute("; ".join(inserts + nulls))

    database.execute(
        "; ".join(
            f"create table t{number} (v {kind}, n int, doc text);"
            f" alter table t{number} replica identity full, alter doc set storage external"
            for number, kind, _ in numbered
        )
    )
    insert(100)
    database.execute("create publication etl_pub for all tables")
    config = make_config(database, nested=nested, numeric="decimal(10,2)")
    select = " union all ".join(
        f"select {number} as t, n, doc is null as d from public.t{number}"
        for number, *_ in numbered
    )

    def assert_in_step() -> None:
        found = rows(config, select)
        wrong = set(database.query(select)).symmetric_difference(found)
        assert not {(numbered[number][1], n) for number, n, _ in wrong}
        assert len(found) == len(set(found))

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(120)
        assert_in_step()
        execute("update @ set n = n + 1000")
        insert(200)
        execute("update @ set n = n + 2000 where n % 2 = 0")
        assert pipeline.wait_until_caught_up(120)
        assert_in_step()
        execute("delete from @ where n % 3 = 0")
        execute("update @ set v = null")
        execute("delete from @ where n > 1000")
        assert pipeline.wait_until_caught_up(120)
        assert_in_step()
        refused = pipeline.status().tables["public.by_class"]

    assert refused.state == "errored"
    assert "by_class has no key" in (refused.error or "")
