"""A table without any replica identity among others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from etl_dagster.config import PipelineConfig
from tests.support.database import Database
from tests.support.replica import Replica


def test_only_its_inserts_arrive_and_the_others_are_not_held_up(
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
