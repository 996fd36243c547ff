"""What identifies a row, where it isn't simply an ordinary primary key."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.source.catalog import fetch_published_tables
from tests.support.database import Database
from tests.support.pipelines import assert_table_in_step, rows, running

MakeConfig = Callable[..., PipelineConfig]


def follow(database: Database, config: PipelineConfig, *changes: str) -> None:
    """Copy, change, and compare."""
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute(*changes)
        assert pipeline.wait_until_caught_up(60)
        assert_table_in_step(database, config, "t")


@pytest.mark.parametrize(
    "key",
    [
        "alter table t add primary key (id) include (v)",
        "create unique index by_id on t (id) include (v);"
        " alter table t replica identity using index by_id",
    ],
    ids=["primary key", "identity index"],
)
def test_columns_that_an_index_only_includes_are_not_part_of_the_key(
    database: Database, make_config: MakeConfig, key: str
) -> None:
    database.execute(
        "create table t (id int not null, v text not null)",
        key,
        "insert into t values (1, 'a'), (2, 'b')",
        "create publication etl_pub for table t",
    )
    follow(database, make_config(database), "update t set v = 'z' where id = 1")


def test_a_key_that_is_checked_late_identifies_no_row(
    database: Database, make_config: MakeConfig
) -> None:
    """In the middle of the update, two rows have one key."""
    database.execute(
        "create table t (id int primary key deferrable, v text)",
        "alter table t replica identity full",
        "insert into t values (1, 'a'), (2, 'b'), (3, 'c')",
        "create publication etl_pub for table t",
    )
    follow(database, make_config(database), "update t set id = id + 1")


def test_a_part_of_the_key_does_not_tell_rows_apart(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(
        "create table t (a int, b int, primary key (a, b))",
        "insert into t values (1, 1), (1, 2)",
        "create publication etl_pub for table t (a) with (publish = 'insert')",
    )
    config = make_config(database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute("insert into t values (1, 3), (1, 4)", "alter table t drop b")
        assert pipeline.wait_until_caught_up(60)
        assert_table_in_step(database, config, "t")


def test_a_key_that_its_type_cannot_hold_is_a_key_all_the_same(
    database: Database, make_config: MakeConfig
) -> None:
    """A decimal has no NaN, so it is null at the destination."""
    database.execute(
        "create table t (id numeric(10, 2) primary key, v int)",
        "insert into t values ('NaN', 1), (1, 1)",
        "create publication etl_pub for table t",
    )
    config = make_config(database)
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute("update t set v = 2", "update t set v = 3")
        assert pipeline.wait_until_caught_up(60)

    assert sorted(rows(config, "select cast(id as varchar), v from public.t"), key=repr) == [
        ("1.00", 3),
        (None, 3),
    ]


def test_a_table_with_very_many_columns_is_described_quickly(
    newest_database: Database,
) -> None:
    """When the time grew with the square of their number, it took half a minute each time."""
    columns = ", ".join(f"c{number} int" for number in range(1500))
    newest_database.execute(
        f"create table wide (id int primary key, {columns})",
        "create publication etl_pub for table wide",
    )
    with newest_database.connect() as connection:
        connection.execute("set statement_timeout = '5s'")
        (wide,) = fetch_published_tables(connection, "etl_pub")

    assert len(wide.schema.columns) == 1501
