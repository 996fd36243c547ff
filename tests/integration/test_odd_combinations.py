"""Odd values where something else changes, too: partitions, choices, defaults."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from tests.support.database import Database
from tests.support.pipelines import rows, running

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]


def _joined(config: PipelineConfig, table: str, column: str) -> list[tuple[object, ...]]:
    return rows(
        config,
        f"select t.id, coalesce(odd.text, t.{column}::varchar) from public.{table} t"
        f" left join _etl.odd_values odd on odd.table_name = '{table}'"
        f" and odd.column_name = '{column}' and odd.key = [t.id::varchar] order by 1, 2",
    )


def test_values_of_partitions_that_come_and_go_stay_with_their_rows(
    database: Database, make_config: MakeConfig
) -> None:
    database.execute(
        "create table t (id int primary key, n numeric(6,2)) partition by range (id)",
        "create table t_1 partition of t for values from (0) to (10)",
        "create table t_2 partition of t for values from (10) to (20)",
        "create table t_3 (id int primary key, n numeric(6,2))",
        "insert into t values (1, 'NaN'), (2, 2), (11, 'NaN')",
        "insert into t_3 values (21, 'NaN'), (22, 1)",
        "create publication etl_pub for table t with (publish_via_partition_root = true)",
    )
    config = make_config(database, partitions_removed="delete")

    def check() -> None:
        expected = database.query("select id, n::text from t order by 1")
        assert _joined(config, "t", "n") == expected
        odd = [id_ for id_, text in expected if text == "NaN"]
        assert rows(config, "select count(*) from _etl.odd_values") == [(len(odd),)]

    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        check()
        database.execute(
            "alter table t attach partition t_3 for values from (20) to (30)",
            "update t set n = 'NaN' where id = 22",
            "update t set n = 3 where id = 21",
            "update t set id = 23 where id = 1",
        )
        assert pipeline.wait_until_caught_up(60)
        check()
        database.execute("alter table t detach partition t_2", "insert into t values (3, 'NaN')")
        assert pipeline.wait_until_caught_up(60)
        check()


def test_settings_that_change_back_and_forth_lose_nothing(
    database: Database, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """By the configuration, then a reset, and changes in each state."""
    caplog.set_level(logging.WARNING)
    database.execute(
        "create domain amounts as numeric(6,1)[]",
        "create table t (id int primary key, v amounts, n numeric(6,2))",
        "insert into t values (1, '{NaN,1.0}', 'NaN'), (2, '{1.5}', 2)",
        "create publication etl_pub for table t",
    )
    [table_id] = database.query("select 't'::regclass::oid::bigint")[0]
    choices = [
        {"nested": "native", "odd_values": "null"},
        {"nested": "json", "odd_values": "text"},
        {"nested": "text", "odd_values": "null"},
        {"nested": "native", "odd_values": "null"},
    ]
    for number, choice in enumerate(choices, start=1):
        config = make_config(database, **choice)
        with running(config) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            database.execute(
                f"update t set v = array_append(v, {number}), n = n + 0 where id = 1",
                f"insert into t values ({10 + number}, '{{NaN}}', 'NaN')",
                f"delete from t where id = {9 + number}",
            )
            assert pipeline.wait_until_caught_up(60)
            check = _joined(config, "t", "n")
            assert check == database.query("select id, n::text from t order by 1")
        with closing(build_store(config)) as store:
            store.request_copy(table_id)
    # The last choice's own copy, with the odd arrays next to it.
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        database.execute("alter table t add d numeric(6,1) default 'NaN'")
        database.execute("update t set v = v || '{NaN}'::numeric[] where id = 2")
        assert pipeline.wait_until_caught_up(60)
    odd = "select key[1], text from _etl.odd_values where column_name = 'v' order by key[1]::int"
    expected = "select id::text, v::text from t where 'NaN' = any (v) order by t.id"
    assert rows(config, odd) == database.query(expected)
    assert _joined(config, "t", "d") == database.query("select id, d::text from t order by 1")
    assert "its new column d has a default that its type can't hold" in caplog.text
