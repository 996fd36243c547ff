"""Tables that are altered: what their rows hold afterwards is what the source's rows hold."""

# A statement of a history stands on one line.
# ruff: noqa: E501

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.source.trigger import install
from tests.support.database import Database
from tests.support.in_step import differences
from tests.support.pipelines import running

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., PipelineConfig]

#: By table (an @ in the text): how it begins, and what then happens to it, a line at a time.
HISTORIES = {
    "renamed_twice_then_dropped": """
        create table @ (id int primary key, a int, b int, c int);
        insert into @ values (1, 1, 2, 3), (2, 10, 20, 30);
        --
        alter table @ rename b to b2
        insert into @ values (3, 3, 3, 3)
        alter table @ rename b2 to b3
        insert into @ values (4, 4, 4, 4)
        alter table @ drop c
        insert into @ values (5, 5, 5)
    """,
    "moved_unchanged": """
        create table @ (id int primary key, n int, doc text, other text);
        alter table @ alter doc set storage external, alter other set storage external;
        insert into @ select i, 0, repeat(md5(i::text), 100), repeat(md5(i::text || 'x'), 100) from generate_series(1, 12) i;
        --
        begin; update @ set id = id + 100 where id <= 3; alter table @ rename doc to aside; alter table @ rename other to doc; alter table @ rename aside to other; update @ set id = id + 1000 where id between 101 and 102; update @ set n = 1 where id = 5; commit
        update @ set id = id + 5000 where id > 9
    """,
    "expand_and_contract": """
        create table @ (id int primary key, amount int);
        insert into @ values (1, 10), (2, 20);
        --
        alter table @ add amount_new int
        update @ set amount_new = amount * 100
        begin; alter table @ rename amount to amount_old; alter table @ rename amount_new to amount; commit
        insert into @ values (3, 3, 300)
        alter table @ drop amount_old
        insert into @ values (4, 400)
    """,
    "shifted": """
        create table @ (id int primary key, a int, b int, c int);
        insert into @ values (1, 1, 2, 3), (2, 10, 20, 30);
        --
        alter table @ drop a
        insert into @ values (3, 4, 5)
        alter table @ rename b to a
        insert into @ values (4, 6, 7)
        alter table @ rename c to b
        insert into @ values (5, 8, 9)
        alter table @ drop a
        insert into @ values (6, 10)
    """,
    "swapped_then_dropped": """
        create table @ (id int primary key, a int, b int);
        insert into @ values (1, 1, 2), (2, 10, 20);
        --
        begin; alter table @ rename a to x; alter table @ rename b to a; alter table @ rename x to b; commit
        insert into @ values (3, 3, 4)
        alter table @ drop a
        insert into @ values (4, 5)
    """,
    "made_again": """
        create table @ (id int primary key, a int, b int);
        insert into @ values (1, 1, 2), (2, 10, 20);
        --
        alter table @ drop b
        alter table @ add b int
        insert into @ values (3, 3, 4)
    """,
    "made_again_in_the_middle": """
        create table @ (id int primary key, a int, b int);
        insert into @ values (1, 1, 2), (2, 10, 20);
        --
        begin; insert into @ values (3, 3, 3); alter table @ drop a; insert into @ values (4, 4); alter table @ add a int default 7; insert into @ values (5, 5, 5); commit
        update @ set b = 0 where id = 1
    """,
    "computed": """
        create table @ (id int primary key, c int, d int);
        insert into @ values (1, 1, 1), (2, 2, 2);
        --
        alter table @ alter c type bigint using c * 100
        alter table @ alter d type int using d + 1
        insert into @ values (3, 3, 3)
    """,
    "cast": """
        create table @ (id int primary key, f float4, c char(5), j json, t timestamp, u timestamp, v varchar(10));
        insert into @ values (1, 1.1, 'ab', '{"b": 1,  "a": 2}', '2020-01-02 03:04:05', '2020-01-02 03:04:05.678', 'x');
        --
        alter table @ alter f type numeric(20,10), alter c type text, alter j type jsonb
        set timezone to 'Asia/Tokyo'; alter table @ alter t type timestamptz
        alter table @ alter u type timestamp(0)
        alter table @ alter v type text
        insert into @ values (2, 2.5, 'cd', '{"c": 3}', '2020-01-02 03:04:05', '2020-01-02 03:04:05', 'yy')
    """,
    "widened": """
        create table @ (id int primary key, n int, v varchar(5), d numeric(10,2), t varchar(5));
        insert into @ values (1, 1, 'x', 1.5, 'y');
        --
        alter table @ alter v type varchar(50), alter d type numeric(20,2), alter t type text
        insert into @ values (2, 2, 'xx', 2.5, 'yy')
        alter table @ alter n type bigint
        insert into @ values (3, 3000000000, 'xxxxxxx', 3.5, 'yyyyyyyyyy')
    """,
    "filled": """
        create table @ (id int primary key, a int);
        insert into @ values (1, 1), (2, 2);
        --
        alter table @ add b int default 7, add c text default 'it''s', add d numeric(10,2) default 1.5, add e timestamptz default '2020-01-01 00:00+00', add f bytea default '\\x00ff', add g bool not null default false, add h text[] default '{"a b",c}', add i date default 'infinity', add j uuid default '00000000-0000-0000-0000-000000000001', add k jsonb default '{"a": 1}', add l text
        alter table @ alter b set default 8
        insert into @ (id, a) values (3, 3)
    """,
    "filled_again": """
        create table @ (id int primary key, a int);
        insert into @ values (1, 1), (2, 2);
        --
        alter table @ add b int default random() * 1000000
        insert into @ values (3, 3)
        alter table @ add c serial
        insert into @ values (4, 4)
    """,
    "keyless": """
        create table @ (a int);
        alter table @ replica identity full;
        insert into @ values (1), (2), (3);
        --
        alter table @ add b bool default false not null
        update @ set a = 10 where a = 1
        delete from @ where a = 2
    """,
    "keyed_later": """
        create table @ (a int);
        alter table @ replica identity full;
        insert into @ values (1), (2), (3);
        --
        alter table @ add b serial primary key
        update @ set a = 10 where a = 1
        delete from @ where a = 2
    """,
    "generated": """
        create table @ (id int primary key, a int, twice int generated always as (a * 2) stored);
        insert into @ (id, a) values (1, 1), (2, 2);
        --
        insert into @ (id, a) values (3, 3)
        alter table @ add thrice int generated always as (a * 3) stored
        insert into @ (id, a) values (4, 4)
        alter table @ rename a to aa
        insert into @ (id, aa) values (5, 5)
    """,
    "parts": """
        create table @ (id int primary key, a int) partition by range (id);
        create table parts_1 partition of @ for values from (0) to (10);
        create table parts_2 partition of @ for values from (10) to (20);
        insert into @ values (1, 1), (11, 11);
        --
        alter table @ add b int default 5
        insert into @ values (2, 2, 2)
        alter table @ rename a to c
        alter table @ alter c type text using 'x' || c
        insert into @ values (12, 'y', 2)
    """,
    "untouched": """
        create table @ (id int primary key, a int);
        insert into @ values (1, 1);
        --
        comment on table @ is 'nothing happens to the rows'
        insert into @ values (2, 2)
    """,
}

#: What only the event trigger reports.
REPORTED_ONLY = {
    "moods": """
        create type mood as enum ('happy', 'sad');
        create domain feeling as mood;
        create table @ (id int primary key, m mood, n mood[], o feeling);
        insert into @ values (1, 'happy', '{happy,sad}', 'happy');
        --
        alter type mood rename value 'happy' to 'glad'
        insert into @ values (2, 'sad', '{}', 'glad')
    """,
    "pairs": """
        create type pair as (a int, b text);
        create table @ (id int primary key, p pair, q pair[]);
        insert into @ values (1, '(1,x)', '{"(2,y)"}');
        --
        alter type pair add attribute c int
        insert into @ values (2, '(3,z,4)', null)
    """,
    "unwritten": """
        create table @ (id int primary key, a int, b int);
        insert into @ values (1, 1, 2), (2, 10, 20);
        --
        alter table @ rename a to c
        alter table @ drop b, add d text default 'new'
    """,
    "computed_unwritten": """
        create table @ (id int primary key, a int);
        insert into @ values (1, 1);
        --
        do $$ begin alter table @ alter a type int using a + 1; end $$
    """,
    "typeless": """
        create type short_lived as enum ('a');
        create table @ (id int primary key, t short_lived, u int);
        insert into @ values (1, 'a', 1);
        --
        drop type short_lived cascade
        insert into @ values (2, 2)
    """,
    "many_at_once": """
        create table @ (id int primary key, a int, b text);
        insert into @ values (1, 1, 'x');
        --
        begin; insert into @ values (2, 2, 'y'); alter table @ add c int default 4; insert into @ values (3, 3, 'z', 3); alter table @ drop a; update @ set c = 5 where id = 1; alter table @ add a int default 9; insert into @ values (4, 'q', 4, 4); alter table @ rename c to d; update @ set b = 'n' where id = 2; alter table @ drop b; commit
    """,
}


def beginning(history: str, name: str) -> str:
    return history.split("--")[0].replace("@", f'"{name}"')


def changes(history: str, name: str) -> list[str]:
    lines = history.split("--")[1].replace("@", f'"{name}"').splitlines()
    return [line.strip() for line in lines if line.strip()]


#: The most expensive of these run only on the newest of several servers.
ON_ONE_SERVER = {(True, "one by one"), (False, "at once")}


@pytest.mark.parametrize(
    ("reported", "pace"),
    [(True, "stopped"), (True, "one by one"), (False, "stopped"), (False, "at once")],
    ids=["reported-stopped", "reported-one by one", "found-stopped", "found-at once"],
)
def test_altered_tables_hold_what_the_source_holds(
    database: Database,
    newest_server: EmbeddedPostgres,
    make_config: MakeConfig,
    reported: bool,
    pace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if (reported, pace) in ON_ONE_SERVER and database.server is not newest_server:
        pytest.skip("runs on the newest server")
    caplog.set_level(logging.WARNING)
    histories = HISTORIES | (REPORTED_ONLY if reported else {})
    database.execute(
        *(beginning(history, name) for name, history in histories.items()),
        "create publication etl_pub for table "
        + ", ".join(f'"{name}"' for name in histories)
        + " with (publish_via_partition_root = true)",
    )
    if reported:
        with database.connect() as connection:
            install(connection)
    steps = [changes(history, name) for name, history in histories.items()]
    # As text, both sides print the same.
    config = make_config(database, nested="text")

    def assert_in_step() -> None:
        wrong = differences(database, config, histories)
        assert not wrong, "\n".join(wrong)

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        assert_in_step()
        caplog.clear()
        if pace == "at once":
            database.execute(*(line for lines in steps for line in lines))
        elif pace == "one by one":
            for number in range(max(map(len, steps))):
                database.execute(*(lines[number] for lines in steps if number < len(lines)))
                assert pipeline.wait_until_caught_up(60)
                if reported:
                    assert_in_step()
        assert pipeline.wait_until_caught_up(60)
    if pace == "stopped":
        database.execute(*(line for lines in steps for line in lines))
        with running(config) as pipeline:
            assert pipeline.wait_until_caught_up(60)
    assert_in_step()
    copied = {
        message.split()[0].removeprefix("public.")
        for message in caplog.messages
        if "copied again" in message
    }
    assert not copied & {"untouched", "filled", "keyless"}
    if reported:
        # Everything else follows in place.
        computed = {"computed", "cast", "filled_again", "keyed_later", "parts"}
        assert copied == computed | {"moods", "pairs", "computed_unwritten"}
