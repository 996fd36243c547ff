"""A pipeline from one Postgres database to another."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from etl_dagster.assembly import build_destination
from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.destinations.postgres import PostgresDestination, binary
from etl_dagster.destinations.postgres.querying import query
from etl_dagster.errors import DestinationError, DestinationUnreachable
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    ORDERS,
    VISITS,
    Transactions,
    batch,
    chunk,
    delete,
    end_of_copy,
    insert,
    order,
    update,
)
from tests.support.database import Database
from tests.support.every_value import create_values, value_of
from tests.support.leaks import PASSWORD, make_secret
from tests.support.pipelines import running
from tests.support.pooler import needs_pgbouncer, pgbouncer
from tests.support.waiting import PATIENCE_S, wait_until

MakeConfig = Callable[..., PipelineConfig]
SEED = int(os.environ.get("RANDOM_VALUES_SEED", "1"))
_ROWS = 24
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "postgres-destination.md"


@pytest.fixture
def replica(server: EmbeddedPostgres) -> Iterator[Database]:
    """The destination: another database of the same server."""
    with Database.create(server) as fresh:
        yield fresh


@pytest.fixture
def newest_replica(newest_server: EmbeddedPostgres) -> Iterator[Database]:
    with Database.create(newest_server) as fresh:
        yield fresh


def to(dsn: str, **more: Any) -> dict[str, Any]:
    return {"destination": {"type": "postgres", "dsn": dsn}, **more}


def copied_out(database: Database, table: str, order: str) -> list[bytes]:
    """What COPY prints of a table."""
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("set timezone = 'UTC'")
        query = f"copy (select * from public.{table} order by {order}) to stdout"
        with cursor.copy(query.encode()) as copy:
            return [bytes(line) for line in copy]


def caught_up(pipeline: Pipeline) -> None:
    assert pipeline.wait_until_caught_up(PATIENCE_S)


@pytest.mark.parametrize("user_types", ["text", "create"])
def test_every_value_of_every_type_is_printed_by_copy_as_in_the_source(
    database: Database, replica: Database, make_config: MakeConfig, user_types: str
) -> None:
    random = Random(SEED)
    kinds = create_values(database)

    def insert(numbers: range) -> None:
        with database.connect() as connection:
            for number in numbers:
                values = ", ".join(value_of(kind, number, random) for kind in kinds)
                connection.execute(f"insert into v values ({number}, {values})")

    insert(range(_ROWS // 2))
    config = make_config(database, **to(replica.dsn, **{"destination.user_types": user_types}))
    with running(config) as pipeline:
        caught_up(pipeline)
        insert(range(_ROWS // 2, _ROWS))
        database.execute("update v set id = id + 100 where id % 2 = 0")
        caught_up(pipeline)

    expected, found = (copied_out(each, "v", "id") for each in (database, replica))
    differing = {
        (kinds[place - 1].name, there[:200], here[:200])
        for one, other in zip(expected, found, strict=True)
        for place, (there, here) in enumerate(
            zip(one.split(b"\t"), other.split(b"\t"), strict=True)
        )
        if there != here
    }
    assert not differing, "\n".join(map(str, sorted(differing)))
    assert replica.query("select count(*) from _etl.odd_values") == [(0,)]


def test_values_are_the_same_in_binary_and_next_to_those_sent_as_text(
    database: Database,
    replica: Database,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = {
        "s smallint": ["-32768", "32767", "0"],
        "i integer": ["-2147483648", "2147483647"],
        "b bigint": ["-9223372036854775808", "9223372036854775807"],
        "r real": ["'NaN'", "'-0'", "3.4e38", "'-Infinity'"],
        "d float8": ["'NaN'", "'-0'", "5e-324", "'Infinity'"],
        "o boolean": ["true", "false"],
        "t text": ["''", "e'\\\\\\t\\n\\u00e4\\U0001F600'", "'\\\\N'"],
        "v varchar(5)": ["'12345'", "' '"],
        "c char(4)": ["'a'", "'abcd'"],
        "j json": ["'{ \"a\":  1 }'", "'null'"],
        "jb jsonb": ["'{ \"a\":  1.50 }'", "'null'"],
        "y bytea": ["''", "'\\x00ff'"],
        "da date": ["'infinity'", "'-infinity'", "'4714-11-24 BC'", "'5874897-12-31'"],
        "ti time": ["'24:00'", "'00:00:00.000001'"],
        "u uuid": ["'6f1b6a3c-1111-2222-3333-44445555abcd'"],
        "ts timestamp": ["'infinity'", "'4714-11-24 BC'", "'1999-12-31 23:59:59.999999'"],
        "tz timestamptz": ["'-infinity'", "'2024-02-29 00:00:00.5+02'", "'20000-01-01'"],
        "n numeric(12,2)": ["-0.01", "9999999999.99", "-9999999999.99", "0", "10000", "1234.5"],
        "n0 numeric(15,15)": ["0.000000000000001", "-0.999999999999999"],
        "n1 numeric(9,0)": ["999999999", "-10000", "100000000"],
        "n2 numeric(7,3)": ["9999.999", "0.001", "-1.100"],
    }
    database.execute(
        f"create table every (id int primary key, {', '.join(columns)})",
        "create publication etl_pub for table every",
    )

    def insert(first: int) -> None:
        """Every value once, and in two rows null."""
        for place in range(8):
            values = [
                values[place] if place < len(values) else "null" for values in columns.values()
            ]
            database.execute(f"insert into every values ({first + place}, {', '.join(values)})")

    written: list[bool] = []
    encoded = binary.encoded

    def spy(rows: Any, encoders: Any) -> Any:
        found = encoded(rows, encoders)
        written.append(found is not None)
        return found

    monkeypatch.setattr(binary, "encoded", spy)
    insert(0)
    with running(make_config(database, **to(replica.dsn))) as pipeline:
        caught_up(pipeline)
        insert(100)
        database.execute("update every set t = t || '!', id = -id - 1 where id < 4")
        caught_up(pipeline)
        assert written
        assert all(written)
        database.execute("insert into every (id, n, ts) values (200, 'NaN', '294276-12-31')")
        insert(300)
        caught_up(pipeline)
    assert copied_out(replica, "every", "id") == copied_out(database, "every", "id")
    assert not all(written)


def test_a_value_that_arrow_cannot_hold_is_a_value_like_any_other(
    newest_database: Database, newest_replica: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(
        "create table odd (id numeric(8,2) primary key, at timestamptz, n numeric(10,2), d date)",
        "insert into odd values ('NaN', '294276-12-31', 'NaN', 'infinity'), (1, null, 2, null)",
        "create publication etl_pub for table odd",
    )
    config = make_config(newest_database, **to(newest_replica.dsn, odd_values="fail"))
    with running(config) as pipeline:
        caught_up(pipeline)
        newest_database.execute("update odd set n = 3 where id = 'NaN'")
        newest_database.execute(
            "insert into odd values (7, '4714-11-24 BC', 'NaN', '4714-11-24 BC')"
        )
        caught_up(pipeline)

    assert copied_out(newest_replica, "odd", "id") == copied_out(newest_database, "odd", "id")


def test_tables_have_the_types_and_primary_keys_of_the_source_and_no_other_constraint(
    database: Database, replica: Database, make_config: MakeConfig
) -> None:
    database.execute(
        "create table customers (id int primary key)",
        "create table orders (b varchar(5), a int, n numeric(12,2) not null check (n > 0),"
        " c int references customers, i interval hour to second(2), t timestamp(3), bits bit(3),"
        " any_bits varbit, fixed char(4), big int[], spans tstzrange, at time(1) with time zone,"
        " primary key (a, b))",
        "create publication etl_pub for table customers, orders",
    )
    with running(make_config(database, **to(replica.dsn))) as pipeline:
        caught_up(pipeline)

    types = (
        "select attname, format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = 'public.orders'::regclass and attnum > 0 order by attnum"
    )
    assert replica.query(types) == database.query(types)
    constraints = (
        "select pg_get_constraintdef(oid) from pg_constraint"
        " where conrelid = 'public.orders'::regclass and contype not in ('n')"
    )
    assert replica.query(constraints) == [("PRIMARY KEY (a, b)",)]


def test_enums_domains_and_composites_are_created_on_request(
    database: Database, replica: Database, make_config: MakeConfig
) -> None:
    """And follow the source: labels while rows come, attributes with the next copy."""
    database.execute(
        'create schema "My Types"',
        "create type \"My Types\".mood as enum ('sad', 'it''s ok')",
        "create domain positive as numeric(8,2) check (value > 0)",
        "create domain temper as \"My Types\".mood check (value <> 'sad')",
        "create type place as (city text, at point)",
        "create type span as range (subtype = float8)",
        'create type "My Types".slots as range (subtype = time, multirange_type_name = many)',
        "create type words as range (subtype = text)",
        'create table people (mood "My Types".mood primary key, n positive, t temper, p place,'
        ' many place[], whole point, moods "My Types".mood[], parts positive[], tempers temper[],'
        ' spans span[], slots "My Types".slots, times many, words words)',
        "insert into people values ('sad', 1.5, 'it''s ok', ('a b', '(1,2)'), array[('x', null)"
        "::place], '(3,4)', '{sad,NULL,it''s ok}', '{1.5,2}', '{it''s ok}', '{\"[1.5,2)\"}',"
        " '(10:00,)', '{[09:00,10:00],(11:00,12:00)}', '[a,b]')",
        "create publication etl_pub for table people",
    )
    config = make_config(database, **to(replica.dsn, **{"destination.user_types": "create"}))
    types = (
        "select attname, format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = 'public.people'::regclass and attnum > 0 order by attnum"
    )
    labels = "select array_agg(e order by e)::text from unnest(enum_range(null::{})) e"
    with running(config) as pipeline:
        caught_up(pipeline)
        database.execute(
            "alter type \"My Types\".mood add value 'happy'",
            "alter type \"My Types\".mood add value 'so, so' before 'happy'",
            "alter type \"My Types\".mood add value '{\"x\\' before 'sad'",
            "insert into people (mood, t) values ('happy', 'so, so')",
            # Labels that occur in arrays only.
            'update people set moods = array[\'{"x\\\']::"My Types".mood[],'
            " tempers = array['{\"x\\']::temper[] where mood = 'happy'",
            "update people set t = 'happy' where mood = 'sad'",
        )
        caught_up(pipeline)
        # The order of texts may be another one in another database.
        assert replica.query(types) == [*database.query(types)[:-1], ("words", "text")]
        mood = labels.format('"My Types".mood')
        assert replica.query(mood) == database.query(mood)
        assert copied_out(replica, "people", "mood::text") == copied_out(
            database, "people", "mood::text"
        )

        database.execute(
            "alter type place add attribute country text",
            "insert into people (mood, p) values ('so, so', ('c', '(5,6)', 'ch'))",
        )
        wait_until(
            lambda: (
                copied_out(replica, "people", "mood::text")
                == copied_out(database, "people", "mood::text")
            )
        )
        caught_up(pipeline)
    place = "select row(null, null, 'x')::public.place::text"
    assert replica.query(place) == database.query(place)


def test_changes_of_the_schema_and_of_names_are_followed(
    database: Database, replica: Database, make_config: MakeConfig
) -> None:
    database.execute(
        "create table items (id int primary key, a int, b text)",
        "create table others (id int primary key, n numeric)",
        "insert into items select i, i, 'b' || i from generate_series(1, 50) i",
        "insert into others select i, i from generate_series(1, 50) i",
        "create publication etl_pub for table items, others",
    )
    with running(make_config(database, **to(replica.dsn))) as pipeline:
        caught_up(pipeline)
        database.execute(
            "alter table items add column c timestamptz default '2024-05-01 12:00+02'",
            "alter table items alter column a type bigint",
            "alter table items drop column b",
            "insert into items values (51, 2 ^ 40)",
            "alter table items rename to aside; alter table others rename to items;"
            " alter table aside rename to others",
            "insert into items values (51, 1.50)",
            "update others set a = a + 100 where id < 10",
            "create schema sales; alter table items set schema sales",
            "insert into sales.items values (52, 'NaN')",
            "alter table others drop constraint items_pkey, add primary key (a)",
            "update others set id = id + 1",
        )
        caught_up(pipeline)

    assert copied_out(replica, "others", "a") == copied_out(database, "others", "a")
    query = "select * from sales.items order by id"
    assert list(map(str, replica.query(query))) == list(map(str, database.query(query)))
    key = (
        "select pg_get_constraintdef(oid) from pg_constraint"
        " where conrelid = 'public.others'::regclass and contype = 'p'"
    )
    assert replica.query(key) == database.query(key)


def test_equal_rows_without_a_key_are_as_many_as_in_the_source(
    database: Database, replica: Database, make_config: MakeConfig
) -> None:
    database.execute(
        "create table visits (page text, n float8, doc json, at point)",
        "alter table visits replica identity full",
        "insert into visits select 'p' || i % 3, i % 2, '{\"a\": 1}', '(1,2)'"
        " from generate_series(1, 30) i",
        "create publication etl_pub for table visits",
    )
    with running(make_config(database, **to(replica.dsn))) as pipeline:
        caught_up(pipeline)
        database.execute(
            "delete from visits where ctid in (select ctid from visits where n = 1 limit 4)",
            "update visits set n = '-0' where page = 'p1'",
            "update visits set page = null where n = 1",
        )
        caught_up(pipeline)

    order = "page, n::text"
    assert copied_out(replica, "visits", order) == copied_out(database, "visits", order)


def test_rows_that_a_copy_has_already_brought_may_come_again(server: EmbeddedPostgres) -> None:
    """Many new rows are appended without a look for their keys, which the table then refuses."""
    stream = Transactions()
    first = stream.commit(*(insert(ORDERS, id=id, note="copied") for id in range(300)))
    again = stream.commit(
        *(insert(ORDERS, id=id, note="new") for id in range(250, 900)),
        *(update(ORDERS, id=id, note="updated") for id in range(200)),
        delete(ORDERS, id=899),
    )
    new = stream.commit(*(insert(ORDERS, id=id, note="newer") for id in range(2000, 2500)))
    with Database.create(server) as database:
        destination = PostgresDestination(database.dsn)
        destination.startup(MemoryStore())
        for changes in (first, again, new):
            destination.write_events(batch(changes))
        found = database.query("select note, count(*), min(id), max(id) from orders group by 1")
        destination.shutdown()
    assert sorted(found) == [
        ("copied", 50, 200, 249),
        ("new", 649, 250, 898),
        ("newer", 500, 2000, 2499),
        ("updated", 200, 0, 199),
    ]


def test_batches_are_written_while_the_key_of_a_copy_is_built(newest_replica: Database) -> None:
    """It takes minutes for a large table, and every other table's changes continue."""
    newest_replica.execute(
        """
        create function wait_for_test() returns event_trigger language plpgsql as $$
        begin
          if current_query() ~* 'primary key' then
            perform pg_advisory_xact_lock(4711);
          end if;
        end $$;
        create event trigger slow_key on ddl_command_start when tag in ('ALTER TABLE')
          execute function wait_for_test()
        """
    )
    copying, streaming = (PostgresDestination(newest_replica.dsn) for _ in range(2))
    copying.startup(MemoryStore())
    changes = Transactions().commit(insert(VISITS, page="/", at=1))
    copying.drop_table_for_copy(ORDERS)
    copying.write_table_rows(ORDERS, chunk("a", 0, ORDERS, [order(1)]))
    with newest_replica.connect() as test:
        test.execute("select pg_advisory_lock(4711)")
        with ThreadPoolExecutor(1) as other:
            end = other.submit(copying.write_table_rows, ORDERS, end_of_copy("a"))
            waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
            wait_until(lambda: newest_replica.query(waiting) == [(1,)] or end.done())
            streaming.write_events(batch(changes))
            assert not end.done()
            test.execute("select pg_advisory_unlock(4711)")
            end.result(PATIENCE_S)
    for destination in (copying, streaming):
        destination.shutdown()

    assert newest_replica.query("select count(*) from orders") == [(1,)]


def test_rows_of_a_large_table_are_estimated_and_shown_as_such(
    newest_database: Database,
    newest_replica: Database,
    make_config: MakeConfig,
) -> None:
    """A count would read the whole table, every time that the status is taken."""
    destination = PostgresDestination(newest_replica.dsn, large_bytes=8192 * 2)
    newest_database.execute(
        "create table large (id int primary key); create table small (id int primary key)",
        "insert into large select generate_series(1, 5000); insert into small values (1)",
        "create table unknown (id int); alter table unknown replica identity full",
        "insert into unknown select generate_series(1, 5000)",
        "create publication etl_pub for all tables",
    )
    config = make_config(newest_database, **to(newest_replica.dsn))
    with running(config, destination=destination) as pipeline:
        caught_up(pipeline)
    tables = pipeline.status().tables

    def counted(name: str) -> tuple[int | None, bool]:
        return tables[name].row_count, tables[name].row_count_estimated

    assert counted("public.small") == (1, False)
    assert counted("public.large") == (5000, True)
    assert counted("public.unknown") == (None, False)


def test_a_large_value_that_an_update_left_unchanged_stays(
    database: Database, replica: Database, make_config: MakeConfig
) -> None:
    database.execute(
        "create table docs (id int primary key, title text, body text)",
        "alter table docs alter column body set storage external",
        "insert into docs select i, 't', repeat('x' || i, 5000) from generate_series(1, 20) i",
        "create publication etl_pub for table docs",
    )
    with running(make_config(database, **to(replica.dsn))) as pipeline:
        caught_up(pipeline)
        database.execute(
            "update docs set title = 'new' where id < 10",
            "update docs set id = id + 100 where id > 15",
            "update docs set title = 'twice', body = 'short' where id = 5",
            "update docs set title = 'thrice' where id = 5",
        )
        caught_up(pipeline)

    assert copied_out(replica, "docs", "id") == copied_out(database, "docs", "id")


def test_many_small_tables_are_copied_in_groups(
    newest_database: Database, newest_replica: Database, make_config: MakeConfig
) -> None:
    names = [f"t{number}" for number in range(30)]
    newest_database.execute(
        *(f"create table {name} (id int primary key, v text)" for name in names),
        *(f"insert into {name} select i, 'v' from generate_series(1, 9) i" for name in names),
        "create publication etl_pub for all tables",
    )
    with running(make_config(newest_database, **to(newest_replica.dsn))) as pipeline:
        caught_up(pipeline)
        newest_database.execute(*(f"update {name} set v = 'w' where id < 3" for name in names))
        caught_up(pipeline)

    for name in names:
        assert copied_out(newest_replica, name, "id") == copied_out(newest_database, name, "id")


# -- what is in the way --------------------------------------------------------------------------


def test_the_stream_continues_when_the_server_is_back(
    newest_database: Database,
    make_config: MakeConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    newest_database.execute(
        "create table items (id int primary key)", "create publication etl_pub for table items"
    )
    folder = tmp_path / "other"
    folder.mkdir(mode=0o755)
    with EmbeddedPostgres(folder, newest_database.server.binaries, durable=False) as other:
        config = make_config(
            newest_database,
            **to(other.dsn(), **{"retry.max_attempts": 1000, "retry.max_delay_ms": 200}),
        )
        with running(config) as pipeline:
            caught_up(pipeline)
            other.stop()
            newest_database.execute("insert into items select generate_series(1, 100)")
            wait_until(lambda: "postgres refused a batch" in caplog.text)
            other.start()
            caught_up(pipeline)
            with psycopg.connect(other.dsn()) as connection:
                row = connection.execute("select count(*), sum(id) from public.items").fetchone()
    assert row == (100, 5050)


def test_a_wrong_password_is_reported_and_not_shown(server: EmbeddedPostgres) -> None:
    with Database.create(server) as database:
        database.execute(f"create role wrong_one login password '{PASSWORD}'")
        try:
            wrong = make_secret("wrong")
            dsn = sql_dsn(database, user="wrong_one", password=wrong)
            with pytest.raises(DestinationError) as caught:
                PostgresDestination(dsn).check()
        finally:
            database.execute("drop role wrong_one")
    assert "refuses the connection" in caught.value.reason
    assert wrong not in str(caught.value) + repr(caught.value.__cause__)
    assert not caught.value.retryable


def test_an_unreachable_server_is_waited_for() -> None:
    destination = PostgresDestination("postgresql://127.0.0.1:1/none")
    with pytest.raises(DestinationUnreachable) as caught:
        destination.check()
    assert caught.value.retryable


def test_a_role_needs_no_more_than_the_schemas(
    newest_database: Database, newest_replica: Database, make_config: MakeConfig
) -> None:
    """The least that the guide asks for: its own schemas in a database of another owner."""
    newest_database.execute(
        "create table items (id int primary key)",
        "insert into items values (1)",
        "create publication etl_pub for table items",
    )
    newest_replica.execute(f"create role least login password '{PASSWORD}'")
    dsn = sql_dsn(newest_replica, user="least", password=PASSWORD)
    try:
        with pytest.raises(DestinationError, match="may not create schema _etl") as caught:
            PostgresDestination(dsn).check()
        assert "GRANT CREATE ON DATABASE" in caught.value.solution
        newest_replica.execute(
            "create schema _etl authorization least",
            "grant create, usage on schema public to least",
        )
        with running(make_config(newest_database, **to(dsn))) as pipeline:
            caught_up(pipeline)
        assert newest_replica.query("select * from public.items") == [(1,)]
    finally:
        newest_replica.execute("drop owned by least", "drop role least")


def test_the_sources_own_database_is_refused(
    newest_database: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(
        "create table items (id int primary key)", "create publication etl_pub for table items"
    )
    destination = build_destination(make_config(newest_database, **to(newest_database.dsn)))
    with pytest.raises(DestinationError, match="is the source's own database"):
        destination.startup(MemoryStore())
    assert newest_database.query("select to_regnamespace('_etl')") == [(None,)]


def test_a_table_of_another_owner_is_left_alone(
    newest_database: Database, newest_replica: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(
        "create table items (id int primary key)",
        "create table others (id int primary key)",
        "insert into items values (1); insert into others values (1)",
        "create publication etl_pub for table items, others",
    )
    newest_replica.execute("create table items (precious text)", "insert into items values ('x')")
    with running(make_config(newest_database, **to(newest_replica.dsn))) as pipeline:
        wait_until(lambda: "others" in str(newest_replica.query("select * from _etl.tables")))
        wait_until(lambda: pipeline.status().tables["public.items"].state == "errored")
        reason = str(pipeline.status().tables["public.items"])
    assert newest_replica.query("select * from public.items") == [("x",)]
    assert "already exists" in reason


def test_a_schema_of_other_software_is_refused(newest_database: Database) -> None:
    newest_database.execute("create schema _etl; create table _etl.orders (id int)")
    with pytest.raises(DestinationError, match="in use by other software"):
        PostgresDestination(newest_database.dsn).startup(MemoryStore())


def test_a_database_that_cannot_hold_every_text_is_refused(
    newest_server: EmbeddedPostgres,
) -> None:
    with (
        Database.create(newest_server, "SQL_ASCII") as database,
        pytest.raises(DestinationError, match="keeps its text as SQL_ASCII"),
    ):
        PostgresDestination(database.dsn).check()


def test_a_query_reads_values_as_postgres_prints_them_and_writes_nothing(
    newest_replica: Database,
) -> None:
    values = "select 1 as n, 'infinity'::date as d, null as x, true as b, 1.50 as amount"

    assert query(newest_replica.dsn, values) == (
        ["n", "d", "x", "b", "amount"],
        [(1, "infinity", None, True, "1.50")],
    )
    with pytest.raises(DestinationError, match="read-only transaction"):
        query(newest_replica.dsn, "create table t (id int)")


@needs_pgbouncer
def test_a_pooler_may_share_the_sessions(
    newest_database: Database, newest_replica: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(
        "create table items (id int primary key, at timestamptz)",
        "insert into items select i, '2024-05-01' from generate_series(1, 100) i",
        "create publication etl_pub for table items",
    )
    newest_replica.execute(f'alter database "{newest_replica.name}" set datestyle = "German"')
    with (
        pgbouncer(newest_replica, "transaction") as dsn,
        running(make_config(newest_database, **to(dsn))) as pipeline,
    ):
        caught_up(pipeline)
        newest_database.execute("update items set at = '2025-02-03 BC' where id < 50")
        caught_up(pipeline)

    query = "select id, at::text from items order by id"
    newest_replica.execute(f'alter database "{newest_replica.name}" reset datestyle')
    assert newest_replica.query(query) == newest_database.query(query)


def test_the_statements_of_the_guide_make_a_database_that_can_be_written(
    newest_database: Database, make_config: MakeConfig
) -> None:
    newest_database.execute(
        "create table items (id int primary key)",
        "insert into items values (1)",
        "create publication etl_pub for table items",
    )
    as_admin, granted, by_admin = re.findall(r"```sql\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    server = newest_database.server
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        try:
            for statement in filter(str.strip, (as_admin + granted).split(";")):
                admin.execute(statement.encode())
            admin.execute(f"alter role etl password '{PASSWORD}'")
            warehouse = Database(server, "warehouse")
            warehouse.execute("alter database warehouse owner to current_user")
            warehouse.execute("revoke create on database warehouse from etl", by_admin)
            dsn = sql_dsn(warehouse, user="etl", password=PASSWORD)
            with running(make_config(newest_database, **to(dsn))) as pipeline:
                caught_up(pipeline)
            assert warehouse.query("select * from public.items") == [(1,)]
        finally:
            admin.execute("drop database if exists warehouse with (force)")
            admin.execute("drop role if exists etl")


def sql_dsn(database: Database, **other: str) -> str:
    return make_conninfo(database.dsn, **other)
