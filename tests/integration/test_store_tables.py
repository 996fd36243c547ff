"""A state store among the tables that are replicated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from etl_dagster.config import PipelineConfig
from tests.support.database import Database
from tests.support.pipelines import rows, running

pytestmark = pytest.mark.servers("newest")


def test_a_store_in_the_schema_of_the_published_tables_is_left_out(
    database: Database, make_config: Callable[..., PipelineConfig]
) -> None:
    database.execute(
        "create table items (id int primary key)",
        "insert into items values (1)",
        "create table pipelines_of_ours (id int primary key)",
        "create publication etl_pub for all tables",
    )
    config = make_config(database, **{"state_store.schema": "public"})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    database.execute("insert into items values (2)")
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        # Whatever tables the store has: none of them is published to the pipeline.
        assert set(pipeline.status().tables) == {"public.items", "public.pipelines_of_ours"}
        assert rows(config, "select id from public.items order by id") == [(1,), (2,)]
