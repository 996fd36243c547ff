"""Enums, intervals, bits and times with a zone, in DuckDB's own types, from a real source."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb.reading import odd_values
from tests.support.database import PUBLICATION, Database
from tests.support.pipelines import rows, running
from tests.support.spelling import interval
from tests.support.waiting import wait_until

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

#: Intervals, times, bits and transaction IDs at the edges of their types, as Postgres prints them.
_INTERVALS = (
    "00:00:00",
    "1 year 2 mons -3 days +04:05:06.7",
    "-1 years -1 mons +1 day -00:00:00.000001",
    "1 mon",
    "30 days",
    "24:00:00",
    "178956970 years 7 mons 2147483647 days 2562047788:00:54.775806",
    "-178956970 years -8 mons -2147483648 days -2562047788:00:54.775807",
)
_TIMES = (
    "12:00:00+02",
    "10:00:00+00",
    "24:00:00-15:59:59",
    "00:00:00+15:59:59",
    "23:59:59.999999+05:30",
    "12:00:00.5-00:00:01",
    "00:00:00+00",
    "24:00:00+00",
)
_BITS = ("00000", "00001", "10000", "11111", "01010", "00100", "10101", "01111")
_XIDS = ("0", "1", "18446744073709551615", "9223372036854775808", "2", "3", "4", "5")

_TYPES = "select column_name, data_type from duckdb_columns() where table_name = '{}'"


def _types(config: PipelineConfig, table: str) -> dict[str, str]:
    return dict(rows(config, _TYPES.format(table)))


def test_every_value_is_held_exactly_by_copy_and_stream_and_in_other_types(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(
        "create type part as (i interval, b bit(5), z timetz)",
        "create table v (id int primary key, i interval, z timetz, b bit(5), vb varbit, x xid8,"
        " l interval[], p part, zs timetz[])",
        # Found by its times and bits; what is large stays when it isn't sent.
        "create table k (z timetz, b bit(5), i interval, doc text, n interval,"
        " primary key (z, b, i))",
        "alter table k alter doc set storage external",
        f"create publication {PUBLICATION} for table v, k",
    )
    values = list(zip(_INTERVALS, _TIMES, _BITS, _XIDS, strict=True))

    def insert(first: int) -> list[str]:
        found = []
        for number, (i, z, b, x) in enumerate(values, start=first):
            found.append(
                f"insert into v values ({number}, '{i}', '{z}', '{b}', '', '{x}',"
                f" array['{i}', null]::interval[], row('{i}', '{b}', '{z}')::part,"
                f" array['{z}']::timetz[])"
            )
        return found

    database.execute(*insert(1), "insert into v (id) values (0)")
    database.execute(
        *(f"insert into k values ('{z}', '{b}', '{i}', repeat('x', 3000), '{i}')"
          for i, z, b, _ in values)
    )  # fmt: skip
    config = make_config(database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            *insert(101),
            "update k set n = '1 day', b = ~b where b in ('00001', '11111')",
            "delete from k where z = '24:00:00-15:59:59'",
        )
        assert pipeline.wait_until_caught_up(60)

    assert _types(config, "v") == {
        "id": "INTEGER",
        "i": "INTERVAL",
        "z": "TIME WITH TIME ZONE",
        "b": "BIT",
        "vb": "VARCHAR",
        "x": "UBIGINT",
        "l": "INTERVAL[]",
        "p": "STRUCT(i INTERVAL, b BIT, z TIME WITH TIME ZONE)",
        "zs": "TIME WITH TIME ZONE[]",
    }
    found = rows(config, "select i, z, b, vb, x::varchar, l, p, zs from public.v order by id")
    assert found[0] == (None,) * 8
    expected = []
    for i, z, b, x in values:
        spelled = interval(i)
        part = {"i": spelled, "b": b, "z": z}
        expected.append((spelled, z, b, "", x, [spelled, None], part, [z]))
    assert found[1:] == expected * 2

    assert _types(config, "k")["i"] == "VARCHAR"
    there = rows(config, "select z, b, i, n, length(doc) from public.k order by z::varchar, b, i")
    source = database.query(
        "select z::text, b::text, i::text, n::text, length(doc) from k"
        ' order by z::text collate "C", b, i'
    )
    assert there == [(z, b, i, interval(n), count) for z, b, i, n, count in source]
    # They are numbers and moments to DuckDB, in the order that they have in Postgres.
    for order in ("i", "b", "x"):
        by_id = "select id from {}v where id > 100 order by " + order
        assert rows(config, by_id.format("public.")) == database.query(by_id.format(""))


def test_an_infinite_interval_is_odd_and_kept(
    newest_database: Database, make_config: MakeConfig
) -> None:
    database = newest_database
    database.execute(
        "create table v (id int primary key, i interval, l interval[])",
        "insert into v values (1, 'infinity', '{1 day}'), (2, '1 day', '{-infinity,1 day}')",
        f"create publication {PUBLICATION} for table v",
    )
    config = make_config(database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute("insert into v values (3, '-infinity', null)")
        assert pipeline.wait_until_caught_up(60)
    assert rows(config, "select * from public.v order by id") == [
        (1, None, ["1 day"]),
        (2, "1 day", [None, "1 day"]),
        (3, None, None),
    ]
    path = config.destination.path  # type: ignore[attr-defined]
    counts, entries = odd_values(path, limit=9)
    assert counts == {"public.v": {"i": 2, "l": 1}}
    assert sorted((entry.key, entry.column, entry.text) for entry in entries) == [
        (["1"], "i", "infinity"),
        (["2"], "l", '{-infinity,"1 day"}'),
        (["3"], "i", "-infinity"),
    ]


def test_rows_without_a_key_are_told_apart_where_duckdb_calls_them_equal(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(
        "create table v (i interval, l interval[])",
        "alter table v replica identity full",
        "insert into v values ('1 day', '{30 days}'), ('24 hours', '{30 days}'),"
        " ('24 hours', '{1 mon}'), ('24 hours', '{1 mon}')",
        f"create publication {PUBLICATION} for table v",
    )
    config = make_config(database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(
            "delete from v where i::text = '24:00:00' and l::text = '{\"30 days\"}'",
            "delete from v where ctid = (select max(ctid) from v)",
        )
        assert pipeline.wait_until_caught_up(60)
    assert sorted(rows(config, "select * from public.v")) == [
        ("1 day", ["30 days"]),
        ("24:00:00", ["1 month"]),
    ]


def test_an_enum_has_its_labels_in_their_order_through_every_change_of_them(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(
        "create type mood as enum ('sad', 'it''s \"so\"', 'NULL', '')",
        "create domain feeling as mood",
        "create table v (id int, m mood default 'sad', f feeling, ms mood[],"
        " k mood, primary key (id, k))",
        "insert into v select n, m, m, array[m], m"
        " from unnest(enum_range(null::mood)) with ordinality u (m, n)",
        f"create publication {PUBLICATION} for table v",
    )
    config = make_config(database)
    order = "select v.m::{} as label from {} v order by v.m nulls first, v.id"

    def in_step() -> None:
        assert pipeline.wait_until_caught_up(60)
        everything = "select id, m::{0}, f::{0}, ms::{0}[], k::{0} from {1} order by id"
        expected = database.query(everything.format("text", "v"))
        assert rows(config, everything.format("varchar", "public.v")) == expected
        found = rows(config, order.format("varchar", "public.v"))
        assert found == database.query(order.format("text", "v"))

    with running(config) as pipeline:
        in_step()
        labels = "'sad', 'it''s \"so\"', 'NULL', ''"
        assert _types(config, "v") == {
            "id": "INTEGER",
            "m": f"ENUM({labels})",
            "f": f"ENUM({labels})",
            "ms": "VARCHAR[]",
            "k": f"ENUM({labels})",
        }
        # In its place, in the key and among values that stay.
        database.execute(
            "alter type mood add value 'so so' before 'NULL'",
            "insert into v values (5, 'so so', 'so so', '{so so,NULL}', 'so so'),"
            " (6, null, null, null, 'sad')",
            "update v set k = 'so so' where id = 2",
            "delete from v where id = 4",
        )
        in_step()
        labels = "'sad', 'it''s \"so\"', 'so so', 'NULL', ''"
        assert _types(config, "v")["m"] == _types(config, "v")["k"] == f"ENUM({labels})"
        database.execute("alter table v add n mood default 'so so'")
        database.execute("insert into v values (7, 'sad', 'sad', null, 'sad', 'sad')")
        in_step()
        assert _types(config, "v")["n"] == f"ENUM({labels})"
    # While nothing is running, and seen by the next start.
    database.execute(
        "alter type mood add value 'glad' after 'sad'",
        "insert into v values (8, 'glad', 'glad', '{glad}', 'glad', 'glad')",
    )
    with running(config) as pipeline:
        in_step()
        # The stream says nothing of it, and rows that are there have it at once.
        database.execute("alter type mood rename value 'sad' to 'blue'")

        def is_renamed() -> bool:
            return bool(rows(config, "select 1 from public.v where m = 'blue'"))

        wait_until(is_renamed, 60)
        in_step()
        assert _types(config, "v")["m"].startswith("ENUM('blue', 'glad', ")
