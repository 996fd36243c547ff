"""Generated columns that are altered: rows that don't change have other values afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.source.trigger import install
from tests.support.database import Database
from tests.support.in_step import differences
from tests.support.pipelines import running

MakeConfig = Callable[..., PipelineConfig]

ALTERED = "alter table t alter twice set expression as (a * 20)"
BECOMES_ORDINARY = "alter table t alter twice drop expression"


def catch_up(config: PipelineConfig) -> None:
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)


def begin(database: Database, config: PipelineConfig, *, reported: bool, options: str = "") -> None:
    database.execute(
        "create table t (id int primary key, a int, twice int generated always as (a * 2) stored)",
        "insert into t (id, a) values (1, 1), (2, 2)",
        f"create publication etl_pub for table t {options}",
    )
    if reported:
        with database.connect() as connection:
            install(connection)
    catch_up(config)


@pytest.mark.parametrize("reported", [True, False], ids=["reported", "found"])
def test_a_generated_column_that_becomes_an_ordinary_one_keeps_its_values(
    database: Database, make_config: MakeConfig, reported: bool
) -> None:
    config = make_config(database)
    begin(database, config, reported=reported)
    database.execute(BECOMES_ORDINARY, "insert into t values (3, 3, 99)")
    catch_up(config)
    assert not differences(database, config, ["t"])


@pytest.mark.parametrize("reported", [True, False], ids=["reported", "found"])
def test_a_published_column_that_is_generated_otherwise_has_its_new_values(
    newest_database: Database, make_config: MakeConfig, reported: bool
) -> None:
    config = make_config(newest_database)
    options = "with (publish_generated_columns = stored)"
    begin(newest_database, config, reported=reported, options=options)
    newest_database.execute(ALTERED, "insert into t (id, a) values (3, 3)")
    catch_up(config)
    assert not differences(newest_database, config, ["t"])
